"""A hub, an NFS server, and machines with both programs on them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.kernel.machine import Machine
from tests.origins.ganesha import Export, Ganesha
from tests.origins.hub import Hub

Start = Callable[..., Machine]


@pytest.fixture
def hub() -> Iterator[Hub]:
    """An empty hub."""
    with Hub() as running:
        yield running


@pytest.fixture
def start(hub: Hub, tmp_path: Path) -> Iterator[Start]:
    """`start(*flags of the node plugin)` gives a fresh machine whose hub is `hub`."""
    numbers = itertools.count(1)
    with ExitStack() as machines:

        def started(*node: str, controller: list[str] | None = None) -> Machine:
            folder = tmp_path / f"machine{next(numbers)}"
            folder.mkdir()
            return machines.enter_context(
                Machine(folder, {"HF_ENDPOINT": hub.endpoint}, list(node), controller)
            )

        yield started


@pytest.fixture(scope="module")
def nas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ganesha]:
    """A server with one export that everybody may read."""
    export = tmp_path_factory.mktemp("export")
    export.chmod(0o755)
    with Ganesha([Export(export)]) as server:
        yield server
