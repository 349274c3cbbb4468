"""Object stores: who may read, what is caught, what keys are refused; a real server where one can do it, else answers written here."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from csi.errors import (
    DataCacheError,
    InvalidParameter,
    OriginUnavailable,
    PermissionDenied,
    SourceChanged,
    SourceNotFound,
    Unauthenticated,
    UnsafeContent,
)
from csi.sources.catalog import access_key, open_source
from csi.sources.object_store import AccessKey
from csi.sources.objects import ObjectSource
from csi.spec.cache import CacheSpec
from csi.spec.manifest import Kind
from csi.spec.objects import ObjectSpec
from tests.conformance.trees import entry, read
from tests.origins import versitygw
from tests.origins.scripted import Answer, Server
from tests.origins.versitygw import READER_ID, READER_SECRET, ObjectServer

KEY = AccessKey("keyid", "keySecret123")


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectServer]:
    if why := versitygw.missing():
        pytest.skip(f"nothing was read from a real S3 server: {why}")
    with ObjectServer() as running:
        yield running


def reader() -> AccessKey:
    return AccessKey(READER_ID, READER_SECRET)


def source(server: ObjectServer, bucket: str, prefix: str = "", key: Callable[[], AccessKey] | None = reader) -> ObjectSource:
    return ObjectSource(CacheSpec(ObjectSpec("S3", server.endpoint, bucket, prefix, path_style=True)), key)


def failing(subject: ObjectSource) -> DataCacheError:
    with closing(subject), pytest.raises(DataCacheError) as error:
        subject.resolve(subject.pin())
    assert "keySecret123" not in str(error.value) and READER_SECRET not in str(error.value) and "<Error>" not in str(error.value)
    return error.value


def test_a_bucket_that_is_open_to_all_is_read_without_a_secret(server: ObjectServer) -> None:
    bucket = server.bucket({"a b/ü%.bin": b"content"}, anonymous=True)
    with closing(source(server, bucket, key=None)) as subject:
        manifest = subject.resolve(subject.pin())
        subject.prove(manifest)
        assert read(subject, manifest, "a b/ü%.bin") == b"content"


def test_each_refusal_is_said_in_its_own_words(server: ObjectServer) -> None:
    bucket = server.bucket({"one": b"1"})
    for key, kind, words in (
        (lambda: KEY, Unauthenticated, "InvalidAccessKeyId"),
        (lambda: AccessKey(READER_ID, "wrong"), Unauthenticated, "SignatureDoesNotMatch"),
        (None, Unauthenticated, "may not be read by anybody; name a Secret"),
    ):
        error = failing(source(server, bucket, key=key))
        assert type(error) is kind and words in str(error)
    assert isinstance(failing(source(server, "no-such-bucket")), SourceNotFound)
    assert "has no objects" in str(failing(source(server, bucket, "elsewhere")))


def test_an_object_that_is_replaced_between_two_ranges_is_caught_and_not_mixed_in(server: ObjectServer) -> None:
    bucket = server.bucket({"big": b"a" * 3_000_000})
    with closing(source(server, bucket)) as subject:
        manifest = subject.resolve(subject.pin())
        with subject.reader(manifest) as ranges:
            ranges.read_into(entry(manifest, "big"), 0, memoryview(bytearray(1_000_000)))
            server.put(bucket, {"big": b"b" * 3_000_000})
            with pytest.raises(SourceChanged, match="'big'.*has changed since it was listed"):
                ranges.read_into(entry(manifest, "big"), 1_000_000, memoryview(bytearray(1_000_000)))


def test_the_same_bytes_in_two_buckets_are_two_contents(server: ObjectServer) -> None:
    digests = set()
    for bucket in (server.bucket({"one": b"1"}), server.bucket({"one": b"1"})):
        with closing(source(server, bucket)) as subject:
            digests.add(subject.resolve(subject.pin()).digest)
    assert len(digests) == 2


def listing(*keys: str, more: str = "") -> bytes:
    items = "".join(
        f"<Contents><Key>{key}</Key><LastModified>2026-01-02T03:04:05.678Z</LastModified><Size>{size}</Size><ETag>&quot;e&quot;</ETag></Contents>"
        for key, size in ((key, 0 if key.endswith("/") or key == "empty" else 1) for key in keys)
    )
    token = f"<NextContinuationToken>{more}</NextContinuationToken>" if more else ""
    return f"<ListBucketResult><IsTruncated>{str(bool(more)).lower()}</IsTruncated>{token}{items}</ListBucketResult>".encode()


@pytest.fixture
def scripted() -> Iterator[Server]:
    with Server() as running:
        yield running
        running.shutdown()


def told(scripted: Server, key: Callable[[], AccessKey] | None = None) -> ObjectSource:
    return ObjectSource(CacheSpec(ObjectSpec("OSS", scripted.url, "bucket", "", path_style=True)), key)


def test_what_consoles_put_where_a_folder_is_counts_as_the_folder(scripted: Server) -> None:
    scripted.behave["/bucket"] = lambda handler: handler.say(200, listing("dir/", "dir/deep/", "dir/deep/file", "empty"))
    with closing(told(scripted)) as subject:
        found = {e.path: e.kind for e in subject.resolve(subject.pin()).entries}
    assert found == {"dir": Kind.DIRECTORY, "dir/deep": Kind.DIRECTORY, "dir/deep/file": Kind.FILE, "empty": Kind.FILE}


@pytest.mark.parametrize("key", ["a//b", "x/../y", "./z"])
def test_a_key_that_is_no_path_is_refused(scripted: Server, key: str) -> None:
    scripted.behave["/bucket"] = lambda handler: handler.say(200, listing("fine", key))
    assert isinstance(failing(told(scripted)), UnsafeContent)


def test_a_hundred_thousand_objects_come_in_pages_of_a_thousand(scripted: Server) -> None:
    def page(handler: Answer) -> None:
        _, _, after = handler.path.partition("continuation-token=")
        number = int(after.partition("&")[0] or 0)
        handler.say(200, listing(*(f"{number:03}/{n:03}" for n in range(1000)), more=str(number + 1) if number < 99 else ""))

    scripted.behave["/bucket"] = page
    with closing(told(scripted)) as subject:
        manifest = subject.resolve(subject.pin())
    assert sum(1 for _ in manifest.files) == 100_000 and len(scripted.seen) == 100


def test_a_store_that_is_none_or_not_there_is_named(scripted: Server) -> None:
    scripted.behave["/bucket"] = lambda handler: handler.say(200, b"<html>hello</html>")
    assert isinstance(failing(told(scripted)), DataCacheError)
    scripted.behave["/bucket"] = lambda handler: handler.say(400, b"<Error><Code>InvalidBucketName</Code></Error>")
    assert "InvalidBucketName" in str(failing(told(scripted)))
    gone = replace(told(scripted).pin(), source=ObjectSpec("S3", "http://127.0.0.1:1", "bucket", path_style=True))
    error = failing(ObjectSource(gone, None))
    assert isinstance(error, OriginUnavailable) and "127.0.0.1:1" in str(error)


def test_a_signed_address_that_ended_is_signed_anew(scripted: Server) -> None:
    asked: list[str] = []

    def answer(handler: Answer) -> None:
        asked.append(handler.path)
        if len(asked) == 2:
            handler.say(403, b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>")
        else:
            first, end = handler.span()
            handler.say(206, b"x" * (end - first), Content_Range=f"bytes {first}-{end - 1}/1000", ETag='"e"')

    scripted.behave["/bucket"] = lambda handler: handler.say(200, listing("file").replace(b"<Size>1<", b"<Size>1000<"))
    scripted.behave["/bucket/file"] = answer
    with closing(told(scripted, lambda: KEY)) as subject:
        manifest = subject.resolve(subject.pin())
        with subject.reader(manifest) as ranges:
            for offset in (0, 500):
                ranges.read_into(entry(manifest, "file"), offset, memoryview(bytearray(500)))
    assert len(asked) == 3 and all("X-Amz-Signature=" in path for path in asked)


def role_service(scripted: Server, hardened: bool) -> None:
    expires = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    key = {"AccessKeyId": "STS.id", "AccessKeySecret": "roleSecret", "SecurityToken": "roleToken", "Expiration": expires, "Code": "Success"}

    def answer(handler: Answer) -> None:
        wanted = "tok" if hardened else None
        handler.say(200, json.dumps(key).encode()) if handler.headers.get("X-aliyun-ecs-metadata-token") == wanted else handler.say(403)

    scripted.behave["/latest/meta-data/ram/security-credentials/reader"] = answer
    scripted.behave["/latest/meta-data/ram/security-credentials/other"] = lambda handler: handler.say(404)
    scripted.behave["PUT /latest/api/token"] = lambda handler: handler.say(200, b"tok") if hardened else handler.say(404)


@pytest.mark.parametrize("hardened", [False, True])
def test_the_instances_role_gives_the_key_where_no_secret_does(scripted: Server, monkeypatch: pytest.MonkeyPatch, hardened: bool) -> None:
    role_service(scripted, hardened)
    monkeypatch.setenv("ALIBABA_CLOUD_ECS_METADATA", scripted.url)
    spec = ObjectSpec("OSS", scripted.url, "bucket", path_style=True, ram_role="reader")
    key = access_key(spec, {})
    assert key is not None and (key().id, key().token) == ("STS.id", "roleToken")
    scripted.behave["/bucket"] = lambda handler: handler.say(200, listing("file"))
    with closing(open_source(CacheSpec(spec), {})) as subject:
        subject.resolve(subject.pin())
    assert "Credential=STS.id/" in (scripted.seen[-1][1] or "")
    missing = access_key(replace(spec, ram_role="other"), {})
    with pytest.raises(PermissionDenied, match="no such RAM role"):
        assert missing and missing()


def test_without_a_metadata_service_a_role_is_of_no_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIBABA_CLOUD_ECS_METADATA", "http://127.0.0.1:1")
    key = access_key(ObjectSpec("OSS", "http://127.0.0.1:1", "bucket", path_style=True, ram_role="reader"), {})
    with pytest.raises(OriginUnavailable, match="ramRole reader"):
        assert key and key()


@pytest.mark.parametrize(
    ("store", "names"), [("OSS", ("akId", "akSecret", "securityToken")), ("S3", ("accessKeyId", "secretAccessKey", "sessionToken"))]
)
def test_each_store_reads_its_own_keys_of_the_secret(store: str, names: tuple[str, str, str]) -> None:
    spec = ObjectSpec(store, "https://store.example", "bucket")
    key = access_key(spec, dict(zip(names, ("id", " secret\n", "session"), strict=True)))
    assert key and key() == AccessKey("id", "secret", "session")
    with pytest.raises(InvalidParameter, match=f"has not both {names[0]} and {names[1]}"):
        access_key(spec, {names[0]: "id", "token": "x"})
    assert access_key(spec, {}) is None
