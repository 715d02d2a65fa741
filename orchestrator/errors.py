"""What a user can mend: every such error is one line that names the key or file and the remedy, and exit code 2."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input. The command line prints the message alone and exits with 2."""
