"""The guide and the reference as a site: `make docs`. Pages that are made from definitions are made anew."""

from pathlib import Path

from scalespec.orchestrator.cli import app
from scalespec.orchestrator.study import reference
from scalespec.orchestrator.terminal import verbs

REFERENCE = Path(__file__).with_name("reference")
for name, page in {"keys.md": reference.markdown(), "verbs.md": verbs.markdown(app)}.items():
    REFERENCE.joinpath(name).write_text(page, encoding="utf-8")

project = "scalespec"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = "scalespec"
exclude_patterns = ["_build"]
myst_heading_anchors = 3

default_role = "code"  # docstrings write `name` as Markdown does
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "undoc-members": True}
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
