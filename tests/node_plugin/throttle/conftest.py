"""A fresh place for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.node_plugin.throttle.place import Place


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path, True)
    yield made
    made.throttle.close()


@pytest.fixture
def unified(tmp_path: Path) -> Iterator[Place]:
    """Cgroups of version 2."""
    made = Place(tmp_path, False)
    yield made
    made.throttle.close()
