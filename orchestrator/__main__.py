"""`python -m orchestrator`, the same as `scalespec`."""

from orchestrator.cli import main

main()
