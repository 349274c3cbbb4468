"""Both kinds of registry; the one in a cluster on a real API server, started once."""

from __future__ import annotations

import pytest

from csi.registry.volumes.directory import DirectoryVolumeRegistry
from tests.csi.registry.kinds import InCluster, Make


@pytest.fixture(scope="session", params=["directory", "kubernetes"])
def make(request: pytest.FixtureRequest) -> Make:
    """Opens a registry over a folder.

    A second one over the same folder is the next start of the controller, or another replica.
    """
    return (
        DirectoryVolumeRegistry
        if request.param == "directory"
        else InCluster(request.getfixturevalue("api_server"))
    )
