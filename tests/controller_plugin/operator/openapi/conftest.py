"""The API and both SDKs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from controller_plugin.operator.https_server import serve_app
from tests.controller_plugin.operator.openapi.region import KEYS, Region
from tests.controller_plugin.operator.openapi.sdks import KINDS, Sdk


@pytest.fixture
def region(tmp_path: Path) -> Iterator[Region]:
    made = Region(tmp_path)
    with serve_app(made.app, "127.0.0.1", 0) as made.port:
        yield made


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def sdk(request: pytest.FixtureRequest, region: Region) -> Sdk:
    (key_id, secret) = next(iter(KEYS.items()))
    made: Sdk = request.param(region.port, key_id, secret)
    return made
