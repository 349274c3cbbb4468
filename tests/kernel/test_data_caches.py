"""A DataCache from the SDK's call to the pod's bytes, by the programs themselves: filled, kept, read where its origin is gone."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from csi.errors import DataCacheError
from tests.controller_plugin.openapi.sdks import KINDS, Sdk
from tests.operator_program import OperatorProgram
from tests.origins.hub import Hub
from tests.origins.onc_rpc import wait_until
from tests.plugins import Plugins

pytestmark = pytest.mark.kernel

KEYS = {"LTAIexample": "a-secret"}
MODEL = os.urandom(5 << 20)
FILES = {"model.bin": MODEL, "folder/config.json": b"{}"}
SOURCE = {"Type": "URL", "Options": {"repoSource": "HuggingFace/Model", "repoId": "org/cached"}}
REGION = {"--api-region": "cn-local"}


class Place:
    """An operator and nodes over one registry, with a hub and, where `store` says so, an image store."""

    def __init__(self, folder: Path, hub: Hub, store: str, stack: ExitStack) -> None:
        self.folder, self.hub, self.stack = folder, hub, stack
        self.store = ["--image-store", store] if store else []
        self.registry = folder / "registry"
        self.environment = {"HF_ENDPOINT": hub.endpoint}
        self.operator = stack.enter_context(OperatorProgram(folder, str(self.registry), KEYS, self.environment, *self.store))

    def node(self, name: str) -> Plugins:
        """One more node."""
        made = Plugins(self.folder / name, self.environment, node=["--registry", str(self.registry), *self.store])
        made.folder.mkdir()
        return self.stack.enter_context(made)

    def sdk(self, kind: Any = KINDS[0]) -> Sdk:
        made: Sdk = kind(self.operator.port, *next(iter(KEYS.items())))
        return made


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as running:
        running.repo("org/cached", FILES)
        yield running


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path, hub: Hub) -> Iterator[Place]:
    (tmp_path / "images").mkdir()
    with ExitStack() as stack:
        yield Place(tmp_path, hub, getattr(request, "param", f"file://{tmp_path}/images"), stack)


def status(sdk: Sdk, cache_id: str) -> str:
    (found,) = sdk("DescribeDataCaches", DataCacheId=[cache_id])["DataCaches"]
    return str(found["Status"])


def read(node: Plugins, name: str, path: str = "/models/cached", **attributes: str) -> dict[str, str]:
    """SHA-256 of each file that a pod reads, which names the cache by its path."""
    target = node.folder / f"pods/{name}/volumes/kubernetes.io~csi/v/mount"
    context = {"cachePath": path, "csi.storage.k8s.io/ephemeral": "true", "csi.storage.k8s.io/pod.namespace": "default", **attributes}
    with node.client() as client:
        client.publish(f"csi-{name}", str(target), context)
        found = {str(file.relative_to(target)): hashlib.sha256(file.read_bytes()).hexdigest() for file in target.rglob("*") if file.is_file()}
        client.unpublish(f"csi-{name}", str(target))
    return found


SUMS = {path: hashlib.sha256(data).hexdigest() for path, data in FILES.items()}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_cache_is_created_filled_kept_and_read_on_a_node_that_never_saw_its_origin(place: Place, kind: Any) -> None:
    sdk, first = place.sdk(kind), place.node("first")
    made = sdk("CreateDataCache", Path="/models/cached", DataSource=SOURCE, Size=20)["DataCacheId"]
    assert wait_until(lambda: status(sdk, made) == "Available", 60), place.operator.text() + first.node.text()
    assert read(first, "one") == SUMS
    place.hub.repo("org/cached", {"model.bin": b"another"})
    place.hub.stop()
    second = place.node("second")
    assert read(second, "two") == SUMS
    place.hub.start()


@pytest.mark.parametrize("place", [""], indirect=True, ids=["no image store"])
def test_without_an_image_store_a_lost_origin_is_told_with_what_to_do(place: Place) -> None:
    sdk, first = place.sdk(), place.node("first")
    made = sdk("CreateDataCache", Path="/models/cached", DataSource=SOURCE)["DataCacheId"]
    assert wait_until(lambda: status(sdk, made) == "Available", 60), place.operator.text() + first.node.text()
    assert read(first, "one") == SUMS
    place.hub.stop()
    first.node.stop()
    second = place.node("second")
    with pytest.raises(
        DataCacheError, match=r"no image store keeps what was cached \(--image-store\): bring the origin back, or update the DataCache"
    ):
        read(second, "two")
    place.hub.start()
