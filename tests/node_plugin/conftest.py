"""A node over a fake kernel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.node_plugin.node import Node
from tests.node_plugin.prewarm.prefetching import Ahead


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A node whose volumes nobody has touched yet."""
    made = Node(tmp_path)
    yield made
    made.close()


@pytest.fixture
def ahead() -> Iterator[Ahead]:
    with ExitStack() as stack:
        yield Ahead(stack)
