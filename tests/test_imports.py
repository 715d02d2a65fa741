"""One direction of dependencies: what each package may import, read from its source."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "analysis": {"analysis", "numpy", "scipy", "pandas", "pyarrow", "matplotlib", "mpl_toolkits"},
    "trainables": {"trainables", "torch", "datasets", "tiktoken", "safetensors", "numpy"},
}
LAZY = {"analysis": {"torch"}}


def imports(path: Path) -> list[tuple[str, bool]]:
    """Top-level names of imported packages, and whether the import stands inside a function."""
    tree = ast.parse(path.read_text())
    inside = {
        id(node) for function in ast.walk(tree) if isinstance(function, ast.FunctionDef) for node in ast.walk(function)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name.partition(".")[0], id(node) in inside) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.append((str(node.module).partition(".")[0], id(node) in inside))
    return found


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_import_only_what_they_may(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        for name, lazy in imports(path):
            allowed = ALLOWED[package] | set(sys.stdlib_module_names) | (LAZY.get(package, set()) if lazy else set())
            assert name in allowed, f"{path.relative_to(ROOT)} imports {name}"


def test_the_orchestrator_imports_only_what_is_declared():
    text = (ROOT / "pyproject.toml").read_text()
    known = {"orchestrator", "analysis", "trainables", *sys.stdlib_module_names}
    renamed = {"yaml": "pyyaml", "great_tables": "great-tables"}
    for path in (ROOT / "orchestrator").rglob("*.py"):
        for name, _ in imports(path):
            assert name in known or f'"{renamed.get(name, name)}' in text, f"{path.relative_to(ROOT)} imports {name}"


def test_importing_analysis_starts_neither_torch_nor_ray():
    import subprocess

    code = (
        "import analysis, analysis.laws, analysis.spectral, sys; print({'torch', 'ray', 'mlflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "set()"
