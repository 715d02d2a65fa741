"""Plan, run and read neural scaling-law studies."""
