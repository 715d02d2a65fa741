"""`python -m scalespec`, the same as `scalespec`."""

from scalespec.orchestrator.cli import main

main()
