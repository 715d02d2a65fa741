"""One direction of dependencies: what each package may import, read from its source; and one name for every module."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("analysis", "trainables", "orchestrator")
ALLOWED = {
    "analysis": {"scalespec.analysis", "numpy", "scipy", "pandas", "pyarrow", "matplotlib", "mpl_toolkits"},
    "trainables": {"scalespec.trainables", "torch", "datasets", "tiktoken", "safetensors", "numpy"},
}
LAZY = {"analysis": {"torch"}}


def package_of(module: str, names: list[str]) -> list[str]:
    """The imported packages; of our own the part, as `scalespec.analysis`."""
    top, _, rest = module.partition(".")
    if top != "scalespec":
        return [top]
    return [f"scalespec.{rest.partition('.')[0]}"] if rest else [f"scalespec.{name}" for name in names]


def imports(path: Path) -> list[tuple[str, bool]]:
    """Imported packages, and whether the import stands inside a function."""
    tree = ast.parse(path.read_text())
    inside = {
        id(node) for function in ast.walk(tree) if isinstance(function, ast.FunctionDef) for node in ast.walk(function)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(name, id(node) in inside) for alias in node.names for name in package_of(alias.name, [])]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = package_of(str(node.module), [alias.name for alias in node.names])
            found += [(name, id(node) in inside) for name in names]
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
    known = {*(f"scalespec.{folder}" for folder in FOLDERS), *sys.stdlib_module_names}
    renamed = {"yaml": "pyyaml", "great_tables": "great-tables"}
    for path in (ROOT / "orchestrator").rglob("*.py"):
        for name, _ in imports(path):
            assert name in known or f'"{renamed.get(name, name)}' in text, f"{path.relative_to(ROOT)} imports {name}"


def test_every_folder_with_code_is_installed():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {file.parent.relative_to(ROOT) for top in FOLDERS for file in (ROOT / top).rglob("*.py")}
    assert listed == {"scalespec", *("scalespec." + ".".join(folder.parts) for folder in folders)}


def test_there_is_no_circle_of_imports():
    """Among all imports, those inside functions included."""
    modules = {
        "scalespec." + ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for top in FOLDERS
        for file in (ROOT / top).rglob("*.py")
    }
    graph: dict[str, set[str]] = {}
    for name, file in modules.items():
        graph[name] = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                graph[name] |= {one if one in modules else str(node.module) for one in inner}
        graph[name] &= set(modules) - {name}
    left = dict(graph)
    while free := [name for name, needs in left.items() if not needs & set(left)]:
        for name in free:
            del left[name]
    assert not left, f"a circle among {sorted(left)}"


def ran(code: str, cwd: Path) -> str:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=cwd, env=kept)
    return done.stdout.strip()


def test_importing_analysis_starts_neither_torch_nor_ray():
    code = "import scalespec.analysis.laws, scalespec.analysis.spectral, sys; print({'torch', 'ray', 'mlflow'} & set(sys.modules))"
    assert ran(code, ROOT) == "set()"


@pytest.mark.parametrize("module", ["orchestrator", "scalespec"])
def test_no_module_is_loaded_under_two_names(module):
    """`python -m orchestrator` in the checkout sees its folders at the top too."""
    code = (
        "import runpy, sys\n"
        "sys.argv = ['scalespec', '--help']\n"
        f"try: runpy.run_module({module!r}, run_name='__main__', alter_sys=True)\n"
        "except SystemExit: pass\n"
        "import scalespec.orchestrator.run\n"
        "print(sorted(m for m in sys.modules if m.split('.')[0] in ('analysis', 'trainables', 'orchestrator')))"
    )
    assert ran(code, ROOT).splitlines()[-1] == "[]"


def test_it_works_beside_packages_of_the_same_names(tmp_path):
    """A user's own analysis/, trainables/ and orchestrator/ where the command is given."""
    for name in FOLDERS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('a package of the user')")
    code = "import scalespec.orchestrator.run, scalespec.orchestrator.cli as cli; cli.main(['--help'])"
    assert "spectra" in ran(code, tmp_path)
