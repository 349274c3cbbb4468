"""Every kit that exists, one after another, under every test of this folder."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest

from tests.conformance.kit import FaultyKit, Kit

# "module:class(argument)" of each kit; imported when its turn comes, so that one that cannot be imported is
# one that fails.
KITS = (
    ("tests.conformance.hub_kit", "HubKit", ("HuggingFace/Model",)),
    ("tests.conformance.hub_kit", "HubKit", ("HuggingFace/DataSet",)),
    ("tests.conformance.nas_kit", "NasKit", ("3",)),
    ("tests.conformance.nas_kit", "NasKit", ("4.0",)),
    ("tests.conformance.nas_kit", "NasKit", ("3", "guarded")),
    ("tests.conformance.nas_kit", "NasKit", ("4.0", "guarded")),
    ("tests.conformance.objects_kit", "ObjectsKit", ("S3",)),
    ("tests.conformance.objects_kit", "ObjectsKit", ("OSS",)),
    ("tests.conformance.url_kit", "UrlKit", ("URL",)),
    ("tests.conformance.url_kit", "MetalinkKit", ("URL by metalink",)),
    ("tests.conformance.modelscope_kit", "ModelScopeKit", ("ModelScope/Model",)),
    ("tests.conformance.modelscope_kit", "ModelScopeKit", ("ModelScope/DataSet",)),
    ("tests.conformance.several_kit", "SeveralKit", ()),
)


# Those whose origins speak HTTP and fail as they are told.
FAULTY_KITS = (
    ("tests.conformance.hub_kit", "HubKit", ("HuggingFace/Model",)),
    ("tests.conformance.url_kit", "UrlKit", ("URL with sha256",)),
    ("tests.conformance.url_kit", "MetalinkKit", ("URL by metalink",)),
    ("tests.conformance.objects_kit", "FaultyObjectsKit", ("S3",)),
    ("tests.conformance.modelscope_kit", "ModelScopeKit", ("ModelScope/Model",)),
)


def name_of(kit: tuple[str, str, tuple[str, ...]]) -> str:
    """How a kit is called in the names of tests."""
    return "-".join((kit[1], *kit[2])).replace("/", "-").replace(" ", "-")


@pytest.fixture(scope="module", params=KITS, ids=name_of)
def origin(request: pytest.FixtureRequest) -> Iterator[Kit]:
    """A running origin, shared by the tests of one module."""
    yield from _running(request.param)


@pytest.fixture(scope="module")
def faulty(request: pytest.FixtureRequest) -> Iterator[FaultyKit]:
    """A running origin that fails as it is told; which one is `test_faults`' to say."""
    for kit in _running(request.param):
        assert isinstance(kit, FaultyKit)
        yield kit


def _running(chosen: tuple[str, str, tuple[str, ...]]) -> Iterator[Kit]:
    module, name, arguments = chosen
    kit: Kit = getattr(importlib.import_module(module), name)(*arguments)
    if why := kit.missing():
        pytest.skip(f"the conformance suite was not run against {kit.name}: {why}")
    with kit:
        yield kit
