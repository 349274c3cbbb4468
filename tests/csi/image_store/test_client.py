"""The image store through real workers: images go there and come back, on a folder and on a real S3
server, and it is never in the way."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest

from csi.errors import (
    Busy,
    DataCacheError,
    FailedPrecondition,
    InvalidParameter,
    NotFound,
    OriginUnavailable,
    PermissionDenied,
    SourceNotFound,
    Unauthenticated,
)
from csi.image_store.client import IMAGE_STORE_LANE, ImageStoreClient, ImageStoreConfig
from csi.images.node_store.store import Store
from csi.manifest.manifest import build_manifest
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.content_ref import ContentRef, Secrets
from csi.parameters.dialects.hub import HubSpec
from csi.worker.operations import FillImage, FindStoredImage, ImageStoreRef, ResolveSource
from csi.worker.pool import WorkerCall, WorkerPool
from csi.worker.results import Resolution
from csi.worker_process import image_store_operations
from csi.worker_process.image_store_operations import fill_from_image_store_or_origin
from tests.origins.hub import Hub
from tests.origins.versitygw import ROOT_ID, ROOT_SECRET, ObjectServer

FILES = {"model.bin": os.urandom(3 << 20), "folder/config.json": b"{}", "empty": b""}
EMPTY = build_manifest([], {})
HUB = CacheSpec(HubSpec("HuggingFace/Model", "org/kept", "main"))


class Node:
    """A node's store, and what is in the image store for it."""

    def __init__(self, folder: Path, pool: WorkerPool, access: ImageStoreConfig) -> None:
        self.store, self.pool, self.stored = Store(folder, None), pool, ImageStoreClient(pool, access)

    def resolve(self) -> Resolution:
        temp = self.store.new_temp_path()
        found = self.pool.call("resolve", ResolveSource(HUB, Secrets(), temp))
        self.store.adopt_manifest(found.digest, temp, found.image_bytes)
        return found

    def fill(self, digest: str, call: WorkerCall | None = None, store_url: str | None = None) -> bytes:
        """SHA-256 of the image once it is full."""
        paths = self.store.get_paths(digest)
        image_store = self.stored.read_reference()
        if store_url is not None:
            image_store = replace(image_store, url=store_url)
        operation = FillImage(ContentRef(digest), paths.folder, 4, image_store=image_store)
        with self.store.reserve(digest):
            self.pool.call("fill", operation, call)
        return hashlib.sha256(paths.image.read_bytes()).digest()

    def bring(self, digest: str) -> None:
        self.stored.upload(self.store.get_paths(digest).folder, WorkerCall(), lambda progress: None)

    def take_manifest(self, digest: str) -> None:
        temp = self.store.new_temp_path()
        kept = self.stored.write_manifest(digest, temp)
        self.store.adopt_manifest(digest, temp, kept.image_bytes)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as running:
        running.repo("org/kept", FILES)
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        yield running


@pytest.fixture(params=["file", "s3"])
def access(request: pytest.FixtureRequest, tmp_path: Path) -> ImageStoreConfig:
    if request.param == "file":
        (tmp_path / "images").mkdir()
        return ImageStoreConfig(f"file://{tmp_path}/images")
    server: ObjectServer = request.getfixturevalue("objects")
    secret = tmp_path / "secret"
    secret.mkdir()
    for key, value in (("accessKeyId", ROOT_ID), ("secretAccessKey", ROOT_SECRET)):
        (secret / key).write_text(f"{value}\n")
    return ImageStoreConfig(f"s3://{server.bucket({})}/kept?endpoint={quote(server.endpoint)}", secret)


@pytest.fixture
def pool(hub: Hub) -> Iterator[WorkerPool]:
    made = WorkerPool({"resolve": 1, "fill": 1, IMAGE_STORE_LANE: 2}, allowed_destinations=["127.0.0.0/8"])
    yield made
    made.close()


@pytest.fixture
def node(tmp_path: Path, pool: WorkerPool, access: ImageStoreConfig) -> Node:
    (tmp_path / "first").mkdir()
    return Node(tmp_path / "first", pool, access)


@pytest.fixture
def other(tmp_path: Path, pool: WorkerPool, access: ImageStoreConfig) -> Node:
    (tmp_path / "second").mkdir()
    return Node(tmp_path / "second", pool, access)


def test_an_image_goes_there_and_another_node_has_it_without_its_origin(
    node: Node, other: Node, hub: Hub
) -> None:
    found = node.resolve()
    assert node.stored.find(found.digest) is None
    assert node.stored.list_images() == []
    image = node.fill(found.digest)
    node.bring(found.digest)
    kept = node.stored.find(found.digest)
    assert kept
    assert (kept.image_bytes, kept.content_bytes) == (found.image_bytes, found.content_bytes)
    assert kept.access == found.spec.to_context()
    assert node.stored.find(f"s-{found.digest[:20]}") == kept
    assert node.stored.list_images() == [kept]
    sent = hub.counters.bytes_sent["org/kept/model.bin"]
    hub.stop()
    other.take_manifest(found.digest)
    assert other.fill(found.digest) == image
    hub.start()
    assert hub.counters.bytes_sent["org/kept/model.bin"] == sent


def test_what_is_removed_or_was_unwanted_for_long_enough_is_gone(node: Node, tmp_path: Path) -> None:
    digest = node.resolve().digest
    node.fill(digest)
    node.bring(digest)
    assert node.stored.collect({digest}, 0, tmp_path / "wanted") == []
    assert node.stored.find(digest)
    assert node.stored.collect((), 0, tmp_path / "wanted") == []
    assert node.stored.collect((), 0, tmp_path / "wanted") == [digest]
    node.bring(digest)
    node.stored.remove(digest)
    assert node.stored.find(digest) is None
    assert not (tmp_path / "wanted").exists()


def test_a_fill_goes_on_from_its_origin_where_the_store_fails(
    node: Node, other: Node, access: ImageStoreConfig, tmp_path: Path
) -> None:
    digest = node.resolve().digest
    image = node.fill(digest)
    other.resolve()
    gone = (
        replace(access, url=f"file://{tmp_path}/nowhere")
        if access.folder is None
        else replace(access, url="s3://bucket/x?endpoint=http%3A//127.0.0.1%3A1")
    )
    assert other.fill(digest, store_url=gone.url) == image


def test_where_both_fail_the_error_says_both(other: Node, hub: Hub) -> None:
    digest = other.resolve().digest
    hub.stop()
    with pytest.raises(DataCacheError, match=r"\(and .* does not have this image\)"):
        other.fill(digest)
    hub.start()


@pytest.mark.parametrize("first", ["origin", "store"])
def test_a_fill_that_was_begun_from_one_place_ends_the_same_from_the_other(
    node: Node, other: Node, hub: Hub, first: str
) -> None:
    digest = node.resolve().digest
    image = node.fill(digest)
    node.bring(digest)
    other.resolve()
    call, none = WorkerCall(), {"store_url": ""}
    hub.faults.rate = 1 << 20
    stopper = threading.Timer(0.6, call.stop)
    stopper.start()
    try:
        other.fill(digest, call, **(none if first == "origin" else {}))
    except Busy:
        pass
    finally:
        stopper.cancel()
        hub.faults.rate = None
    if not other.store.find_sealed(digest):
        assert other.fill(digest, **({} if first == "origin" else none)) == image
    assert hashlib.sha256(other.store.get_paths(digest).image.read_bytes()).digest() == image


@pytest.mark.parametrize("kind", [OriginUnavailable, SourceNotFound, Unauthenticated, PermissionDenied])
def test_what_an_origin_has_begun_and_refuses_now_comes_from_the_store(
    kind: type[DataCacheError], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said: list[str | None] = [None, "the image store does not have it"]
    monkeypatch.setattr(image_store_operations, "read_journal_digest", lambda path: EMPTY.digest)
    monkeypatch.setattr(
        image_store_operations, "_fill_from_image_store", lambda operation, manifest, tell: said.pop(0)
    )
    operation = FillImage(ContentRef(EMPTY.digest), tmp_path, 4, image_store=ImageStoreRef("file:///images"))

    def refused() -> None:
        raise kind("gone")

    fill_from_image_store_or_origin(operation, EMPTY, lambda progress: None, refused)
    with pytest.raises(kind, match="gone.*does not have it"):
        fill_from_image_store_or_origin(operation, EMPTY, lambda progress: None, refused)


def test_no_store_asks_nobody(pool: WorkerPool, tmp_path: Path) -> None:
    stored = ImageStoreClient(pool, ImageStoreConfig())
    assert not stored.is_configured
    assert stored.find("a" * 64) is None
    assert stored.read_reference() == ImageStoreRef()


def test_a_store_that_cannot_be_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match="image store"):
        ImageStoreConfig("ftp://x").check_url()
    with pytest.raises(FailedPrecondition, match="--image-store-secret"):
        ImageStoreConfig("s3://bucket", tmp_path / "none").read_credential()


def test_what_is_not_there_is_not_found(node: Node) -> None:
    with pytest.raises(NotFound):
        node.stored.write_manifest("a" * 64, node.store.new_temp_path())


def test_the_credential_is_in_no_log_and_no_error(
    node: Node, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    digest = node.resolve().digest
    node.fill(digest)
    node.bring(digest)
    assert ROOT_SECRET not in caplog.text + "".join(capfd.readouterr()) + repr(
        FindStoredImage(node.stored.read_reference(), digest)
    )
