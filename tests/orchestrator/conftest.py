"""One Ray instance for the whole test run: starting one takes seconds, and a process can be connected to one only."""

from __future__ import annotations

import pytest

from orchestrator import cluster


@pytest.fixture(scope="session")
def ray_cluster():
    with cluster.connected() as machine:
        yield machine
