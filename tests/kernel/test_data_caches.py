"""DataCaches from the SDK's call to the pod's bytes, by the programs themselves: filled, kept, copied,
read where their origin is gone."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from aliyunsdkcore.utils import parameter_helper

from csi.errors import DataCacheError
from csi.image_store.stored_image import PART_BYTES
from tests.controller_plugin.operator.openapi.sdks import KINDS, ApiError, Sdk
from tests.kernel.place import Place, Store, bucket_store, folder_store, read, status
from tests.origins.hub import Hub
from tests.origins.onc_rpc import wait_until
from tests.origins.versitygw import ObjectServer
from tests.plugins import Plugins

pytestmark = pytest.mark.kernel

FILES = {"model.bin": os.urandom(5 << 20), "folder/config.json": b"{}"}
PARTS = 8
LARGE = {"model.bin": os.urandom(PARTS * PART_BYTES - (1 << 20)), "config.json": b"{}"}
HUB = {"repoSource": "HuggingFace/Model", "repoId": "org/cached"}
SOURCE = {"Type": "URL", "Options": HUB}
TAKE = 60.0

NewStore = Callable[[str], Store]


@pytest.fixture(params=["folder", "bucket"])
def new_store(request: pytest.FixtureRequest, tmp_path: Path) -> NewStore:
    """`new_store(name)` makes an empty image store."""

    def made(name: str) -> Store:
        if request.param == "folder":
            return folder_store(tmp_path / name)
        return bucket_store(request.getfixturevalue("objects"), tmp_path / f"key-of-{name}")

    return made


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as running:
        running.repo("org/cached", FILES)
        yield running


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def sums(files: dict[str, bytes]) -> dict[str, str]:
    return {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}


def available(place: Place, sdk: Sdk, cache_id: str) -> None:
    assert wait_until(lambda: status(sdk, cache_id) == "Available", TAKE), place.operator.text()[-4000:]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_cache_is_created_filled_kept_and_read_on_a_node_that_never_saw_its_origin(
    tmp_path: Path, hub: Hub, stack: ExitStack, new_store: NewStore, kind: Any
) -> None:
    place = Place(tmp_path, hub, new_store("images"), stack)
    sdk, first = place.sdk(kind), place.node("first")
    available(
        place, sdk, sdk("CreateDataCache", Path="/models/cached", DataSource=SOURCE, Size=20)["DataCacheId"]
    )
    assert read(first, "one") == sums(FILES)
    hub.repo("org/cached", {"model.bin": b"another"})
    hub.stop()
    assert read(place.node("second"), "two") == sums(FILES)


def test_a_request_that_was_made_counts_no_more_after_a_restart(
    tmp_path: Path, hub: Hub, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(tmp_path, hub, None, stack)
    sdk = place.sdk()
    monkeypatch.setattr(parameter_helper, "get_uuid", lambda: "the-same")
    assert sdk("CreateDataCache", Path="/models/cached", DataSource=SOURCE)["DataCacheId"]
    place.operator.kill()
    place.operator.start()
    with pytest.raises(ApiError, match="SignatureNonceUsed"):
        sdk("DeleteDataCache", Bucket="default", Path="/models/cached")


def test_without_an_image_store_a_lost_origin_is_told_with_what_to_do(
    tmp_path: Path, hub: Hub, stack: ExitStack
) -> None:
    place = Place(tmp_path, hub, None, stack)
    sdk, first = place.sdk(), place.node("first")
    available(place, sdk, sdk("CreateDataCache", Path="/models/cached", DataSource=SOURCE)["DataCacheId"])
    assert read(first, "one") == sums(FILES)
    hub.stop()
    first.node.stop()
    second = place.node("second")
    with pytest.raises(
        DataCacheError,
        match=r"there is no image store that keeps cached images \(--image-store\); restore the origin, or update the DataCache",  # noqa: E501
    ):
        read(second, "two")


def test_uploads_by_two_nodes_at_once_that_are_killed_at_random_leave_one_good_copy(
    tmp_path: Path, hub: Hub, stack: ExitStack, new_store: NewStore
) -> None:
    hub.repo("org/cached", LARGE)
    store = new_store("images")
    place = Place(tmp_path, hub, store, stack)
    nodes, sdk = [place.node(name) for name in ("first", "second")], place.sdk()
    made = sdk("CreateDataCache", Path="/models/cached", DataSource=SOURCE)["DataCacheId"]
    for parts in sorted(random.sample(range(1, PARTS), 3)):
        assert wait_until(lambda parts=parts: len(store.parts()) >= parts, TAKE), place.operator.text()[
            -4000:
        ]  # type: ignore[misc]
        print(
            f"killed at {len(store.parts())} of {PARTS} parts, {'whole' if store.images() else 'not whole'}"
        )
        killed_and_back(nodes)
    available(place, sdk, made)
    assert len(store.images()) == 1
    assert len(store.parts()) == PARTS
    assert [part.name for part in store.parts()] == sorted(
        hashlib.sha256(part.read_bytes()).hexdigest() for part in store.parts()
    )
    hub.stop()
    for node in nodes:
        node.node.stop()
    assert read(place.node("third"), "three") == sums(LARGE)


def killed_and_back(nodes: list[Plugins]) -> None:
    for node in nodes:
        node.node.kill()
    for node in nodes:
        node.node.start()


def test_a_copy_is_had_in_the_other_region_though_the_operator_that_brings_it_is_killed(
    tmp_path: Path, hub: Hub, stack: ExitStack, objects: ObjectServer
) -> None:
    hub.repo("org/cached", LARGE)
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    store, far = folder_store(tmp_path / "images"), bucket_store(objects, tmp_path / "far-key")
    here = Place(tmp_path / "here", hub, store, stack, *far.copy_flags("cn-there"))
    there = Place(tmp_path / "there", hub, far, stack, region="cn-there")
    sdk = here.sdk()
    here.node("first")
    made = sdk("CreateDataCache", Path="/models/cached", DataSource=SOURCE)["DataCacheId"]
    available(here, sdk, made)
    hub.stop()
    asked = {
        "DataCacheId": made,
        "DestinationRegionId": "cn-there",
        "Bucket": "copies",
        "Path": "/models/copied",
        "ClientToken": "one",
    }
    copied = sdk("CopyDataCache", **asked)["DataCacheId"]
    for parts in sorted(random.sample(range(1, PARTS), 2)):
        assert wait_until(lambda parts=parts: len(far.parts()) >= parts, TAKE), here.operator.text()[-4000:]  # type: ignore[misc]
        print(f"killed at {len(far.parts())} of {PARTS} parts, {'whole' if far.images() else 'not whole'}")
        here.operator.kill()
        here.operator.start()
    assert sdk("CopyDataCache", **asked)["DataCacheId"] == copied
    assert wait_until(
        lambda: bool(there.sdk()("DescribeDataCaches", DataCacheId=[copied])["DataCaches"]), TAKE
    ), there.operator.text()[-4000:]
    available(there, there.sdk(), copied)
    assert read(there.node("second"), "two", "/models/copied", cacheBucket="copies") == sums(LARGE)
    assert [part.name for part in far.parts()] == [part.name for part in store.parts()]
