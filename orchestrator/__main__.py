"""`python -m orchestrator` in a checkout, the same as `scalespec`."""

import sys

# this folder is scalespec.orchestrator; under the name it was started by, nothing must be found a second time
sys.modules.pop("orchestrator", None)

from scalespec.orchestrator.cli import main  # noqa: E402

main()
