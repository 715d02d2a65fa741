"""A study asks, the disk tells: which runs a study wants next, given those that are finished."""
