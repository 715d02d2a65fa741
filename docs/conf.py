"""The guide as a site: `make docs`."""

project = "scalespec"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "scalespec"
exclude_patterns = ["_build"]
myst_heading_anchors = 3
