"""A real NFS server for the tests of a module, a fresh folder on it for each test, and HTTP servers that
the tests script."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi.sources.http.connections import Connections
from tests.csi.sources.http.origin import ranged
from tests.origins import versitygw
from tests.origins.ganesha import Export, Ganesha
from tests.origins.scripted import Server
from tests.origins.versitygw import ObjectServer


@pytest.fixture(scope="module")
def nas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ganesha]:
    """A server with one export, readable by all."""
    export = tmp_path_factory.mktemp("export")
    export.chmod(0o755)
    with Ganesha([Export(export)]) as server:
        yield server


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectServer]:
    """A real S3 server."""
    if why := versitygw.missing():
        pytest.skip(f"no real S3 server was asked: {why}")
    with ObjectServer() as running:
        yield running


@pytest.fixture
def folder(nas: Ganesha, request: pytest.FixtureRequest) -> Path:
    """An empty folder below the export."""
    path = nas.exports[0].path / re.sub(r"\W+", "-", request.node.name)
    path.mkdir()
    return path


@pytest.fixture(params=["3", "4.0"])
def version(request: pytest.FixtureRequest) -> str:
    """Each version of NFS that is spoken."""
    return str(request.param)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        running.behave["/file"] = ranged
        yield running
        running.shutdown()


@pytest.fixture
def other() -> Iterator[Server]:
    with Server("127.0.0.2") as running:
        running.behave["/signed"] = ranged
        yield running
        running.shutdown()


@pytest.fixture
def pool() -> Iterator[Connections]:
    made = Connections(4)
    yield made
    made.close()
