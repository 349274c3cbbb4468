"""Every kit that exists, one after another, under every test of this folder."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest

from tests.conformance.kit import Kit

# "module:class(argument)" of each kit; imported when its turn comes, so that one that cannot be imported is one that fails.
KITS = (
    ("tests.conformance.hub_kit", "HubKit", ("HuggingFace/Model",)),
    ("tests.conformance.hub_kit", "HubKit", ("HuggingFace/DataSet",)),
    ("tests.conformance.nas_kit", "NasKit", ("3",)),
    ("tests.conformance.nas_kit", "NasKit", ("4.0",)),
    ("tests.conformance.objects_kit", "ObjectsKit", ("S3",)),
    ("tests.conformance.objects_kit", "ObjectsKit", ("OSS",)),
    ("tests.conformance.url_kit", "UrlKit", ("URL",)),
)


@pytest.fixture(scope="module", params=KITS, ids=lambda kit: f"{kit[1]}-{kit[2][0].replace('/', '-')}")
def origin(request: pytest.FixtureRequest) -> Iterator[Kit]:
    """A running origin, shared by the tests of one module."""
    module, name, arguments = request.param
    kit: Kit = getattr(importlib.import_module(module), name)(*arguments)
    if why := kit.missing():
        pytest.skip(f"the conformance suite was not run against {kit.name}: {why}")
    with kit:
        yield kit
