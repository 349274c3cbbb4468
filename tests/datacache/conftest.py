from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.apiserver import ApiServer
from tests.datacache.cluster.well_cluster import Cluster


@pytest.fixture(scope="module")
def installed(api_server: ApiServer) -> Iterator[Cluster]:
    found = Cluster(api_server)
    api_server.forget_volumes()
    found.install()
    yield found
    found.remove()


@pytest.fixture
def well(installed: Cluster) -> Iterator[Cluster]:
    """The cluster, put right after the test."""
    installed.beating = True
    yield installed
    while installed.undo:
        installed.undo.pop()()
