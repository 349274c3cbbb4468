"""The controller under test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.controller_plugin.controller import Controller


@pytest.fixture
def controller(tmp_path: Path) -> Controller:
    return Controller(tmp_path)
