"""The study as written: its YAML with lines, its grid, its plan, and what it may use."""
