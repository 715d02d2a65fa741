"""The guide as a site: `make docs`. The reference page of the study file is made anew from its definitions."""

from pathlib import Path

from scalespec.orchestrator.study.reference import markdown

Path(__file__).with_name("reference").joinpath("keys.md").write_text(markdown(), encoding="utf-8")

project = "scalespec"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "scalespec"
exclude_patterns = ["_build"]
myst_heading_anchors = 3
