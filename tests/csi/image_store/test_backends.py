"""What every backend of the image store does: objects by key, each whole or not there."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from csi.errors import (
    FailedPrecondition,
    OriginUnavailable,
    PermissionDenied,
    SourceNotFound,
    Unauthenticated,
)
from csi.image_store.backend import Backend
from csi.image_store.location import parse_image_store_url
from csi.image_store.store import open_backend
from csi.linux.durable_files import TEMP_SUFFIX
from csi.manifest.manifest import Entry, EntryKind
from tests.origins.versitygw import READER_ID, READER_SECRET, ROOT_ID, ROOT_SECRET, ObjectServer

OWNER = 65532


def test_an_object_is_what_was_put_last(backend: Backend) -> None:
    assert backend.get("a/b.json") is None
    assert backend.size("a/b.json") is None
    backend.put("a/b.json", b"first")
    backend.put("a/b.json", memoryview(b"second"))
    assert backend.get("a/b.json") == b"second"
    assert backend.size("a/b.json") == 6


def test_objects_are_listed_below_their_folder(backend: Backend) -> None:
    for key in ("a/1", "a/b/2", "ab/3", "c/4"):
        backend.put(key, key.encode())
    listed = list(backend.list_objects("a"))
    assert sorted(one.key for one in listed) == ["a/1", "a/b/2"]
    assert {one.size for one in listed} == {3, 5}
    assert all(abs(one.modified_at - time.time()) < 3600 for one in listed)
    assert list(backend.list_objects("nothing")) == []


def test_more_objects_are_listed_than_a_page_has(backend: Backend) -> None:
    for number in range(1100):
        backend.put(f"many/{number}", b"")
    assert len(list(backend.list_objects("many"))) == 1100


def test_what_was_removed_is_gone_and_may_be_removed_again(backend: Backend) -> None:
    backend.put("a/b/c", b"1")
    for _ in range(2):
        backend.delete("a/b/c")
    assert backend.get("a/b/c") is None
    assert list(backend.list_objects("a")) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_puts_into_a_folder_its_owner_can_remove() -> None:
    code = "import sys; from tests.csi.image_store import test_backends as t; t.remove_as_owner(sys.argv[1])"
    with tempfile.TemporaryDirectory() as root:
        os.chown(root, OWNER, OWNER)
        backend = open_backend(parse_image_store_url(f"file://{root}"), {})
        backend.put("images/a/parts/b", b"1")
        backend.put("images/a/index", b"2")
        subprocess.run([sys.executable, "-c", code, root], check=True)
        assert list(Path(root).iterdir()) == []


def remove_as_owner(root: str) -> None:
    """In a process of its own, which is not root afterwards."""
    # Before: a checkout below /root, which its modules are still loaded from here, nobody else can read.
    backend = open_backend(parse_image_store_url(f"file://{root}"), {})
    os.setgroups([])
    os.setgid(OWNER)
    os.setuid(OWNER)
    for key in ("images/a/parts/b", "images/a/index"):
        backend.delete(key)


def test_tidying_leaves_objects_alone(backend: Backend) -> None:
    backend.put("a/b", b"1")
    backend.sweep(time.time() + 3600)
    assert backend.get("a/b") == b"1"


def test_what_a_killed_put_left_in_a_folder_goes_once_it_is_old_and_its_empty_folder_too(
    tmp_path: Path,
) -> None:
    backend, left = open_backend(parse_image_store_url(f"file://{tmp_path}"), {}), []
    for name in ("images/a/parts", "images/b"):
        (tmp_path / name).mkdir(parents=True)
        left.append(tmp_path / name / f".{name[-1]}.0{TEMP_SUFFIX}")
        left[-1].write_bytes(b"half")
    os.utime(left[0], (1.0, 1.0))
    backend.sweep(time.time() - 60)
    assert not (tmp_path / "images/a").exists()
    assert left[1].exists()


def test_readers_read_ranges(backend: Backend) -> None:
    backend.put("parts/one", bytes(range(200)))
    buffer = bytearray(50)
    with backend.get_reader_factory("parts")() as reader:
        reader.read_into(Entry("one", EntryKind.FILE, size=200), 100, memoryview(buffer))
        assert bytes(buffer) == bytes(range(100, 150))
        with pytest.raises(SourceNotFound):
            reader.read_into(Entry("two", EntryKind.FILE, size=200), 0, memoryview(buffer))


def test_a_folder_that_is_not_mounted_is_no_empty_store(tmp_path: Path) -> None:
    backend = open_backend(parse_image_store_url(f"file://{tmp_path}/missing"), {})
    with pytest.raises(OriginUnavailable, match="mount it"):
        backend.get("images/x")
    with pytest.raises(OriginUnavailable, match="mount it"):
        backend.put("images/x", b"")
    assert list(tmp_path.iterdir()) == []


ASKED: dict[str, Callable[[Backend], object]] = {
    "put": lambda backend: backend.put("images/x", b""),
    "get": lambda backend: backend.get("images/x"),
    "list": lambda backend: list(backend.list_objects("images")),
    "folders": lambda backend: list(backend.list_folders("images")),
    "delete": lambda backend: backend.delete("images/x"),
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize("key", ["wrongid", "rootid"])
def test_a_wrong_access_key_is_named_without_its_value(
    objects: ObjectServer, key: str, ask: Callable[[Backend], object]
) -> None:
    url = f"s3://{objects.bucket({})}?endpoint={objects.endpoint}"
    backend = open_backend(parse_image_store_url(url), {"accessKeyId": key, "secretAccessKey": "w0rd"})
    with pytest.raises((Unauthenticated, PermissionDenied)) as caught:
        ask(backend)
    assert "access key" in str(caught.value)
    assert "w0rd" not in str(caught.value)


@pytest.mark.parametrize("asked", ["put", "list", "folders", "delete"])
def test_a_right_that_is_missing_is_told(objects: ObjectServer, asked: str) -> None:
    bucket = objects.bucket({"images/x": b""})
    objects.allow(bucket, "s3:GetObject")
    backend = open_backend(
        parse_image_store_url(f"s3://{bucket}?endpoint={objects.endpoint}"),
        {"accessKeyId": READER_ID, "secretAccessKey": READER_SECRET},
    )
    assert backend.get("images/x") == b""
    with pytest.raises(PermissionDenied, match="rights"):
        ASKED[asked](backend)


@pytest.mark.parametrize("asked", ["put", "get", "list", "folders"])
def test_a_bucket_of_another_region_says_which(objects: ObjectServer, asked: str) -> None:
    url = f"s3://{objects.bucket({})}?endpoint={objects.endpoint}&region=eu-central-1"
    backend = open_backend(
        parse_image_store_url(url), {"accessKeyId": ROOT_ID, "secretAccessKey": ROOT_SECRET}
    )
    with pytest.raises(
        FailedPrecondition, match="is in the region us-east-1, .*; write region=us-east-1 there"
    ):
        ASKED[asked](backend)


@pytest.mark.parametrize("asked", ["put", "get", "list", "folders"])
def test_a_bucket_that_is_not_there_is_no_empty_store(objects: ObjectServer, asked: str) -> None:
    backend = open_backend(
        parse_image_store_url(f"s3://absent?endpoint={objects.endpoint}"),
        {"accessKeyId": ROOT_ID, "secretAccessKey": ROOT_SECRET},
    )
    with pytest.raises(OriginUnavailable, match="no such bucket"):
        ASKED[asked](backend)


def test_a_server_that_is_down_is_unavailable(objects: ObjectServer) -> None:
    with ObjectServer() as server:
        url = f"s3://bucket?endpoint={server.endpoint}"
    backend = open_backend(parse_image_store_url(url), {"accessKeyId": "id", "secretAccessKey": "w0rd"})
    with pytest.raises(OriginUnavailable):
        backend.get("images/x")
