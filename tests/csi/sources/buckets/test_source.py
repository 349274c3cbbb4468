"""Object stores: who may read, what is caught, what keys are refused.

A real server where one can do it, else answers written here.
"""

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
from csi.manifest.manifest import EntryKind
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.buckets import BucketSpec
from csi.sources.buckets.object_store import AccessKey
from csi.sources.buckets.source import BucketSource
from csi.sources.catalog import find_access_key, open_source
from tests.conformance.trees import entry, read
from tests.csi.sources.buckets.origin import KEY, failing, list_bucket, told
from tests.origins.scripted import Answer, Server
from tests.origins.versitygw import READER_ID, READER_SECRET, ObjectServer


def reader() -> AccessKey:
    return AccessKey(READER_ID, READER_SECRET)


def source(
    store: ObjectServer, bucket: str, prefix: str = "", key: Callable[[], AccessKey] | None = reader
) -> BucketSource:
    return BucketSource(CacheSpec(BucketSpec("S3", store.endpoint, bucket, prefix, path_style=True)), key)


def test_a_bucket_that_is_open_to_all_is_read_without_a_secret(store: ObjectServer) -> None:
    bucket = store.bucket({"a b/ü%.bin": b"content"}, anonymous=True)
    with closing(source(store, bucket, key=None)) as subject:
        manifest = subject.resolve(subject.pin())
        subject.check_read_access(manifest)
        assert read(subject, manifest, "a b/ü%.bin") == b"content"


def test_each_refusal_is_said_in_its_own_words(store: ObjectServer) -> None:
    bucket = store.bucket({"one": b"1"})
    for key, kind, words in (
        (lambda: replace(KEY, token=""), Unauthenticated, "InvalidAccessKeyId"),
        (lambda: KEY, Unauthenticated, "InvalidToken"),
        (lambda: AccessKey(READER_ID, "wrong"), Unauthenticated, "SignatureDoesNotMatch"),
        (None, Unauthenticated, "does not allow anonymous reads; name a Secret"),
    ):
        error = failing(source(store, bucket, key=key))
        assert type(error) is kind
        assert words in str(error)
    assert isinstance(failing(source(store, "no-such-bucket")), SourceNotFound)
    assert "has no objects" in str(failing(source(store, bucket, "elsewhere")))


def test_an_object_that_is_replaced_between_two_ranges_is_caught_and_not_mixed_in(
    store: ObjectServer,
) -> None:
    bucket = store.bucket({"big": b"a" * 3_000_000})
    with closing(source(store, bucket)) as subject:
        manifest = subject.resolve(subject.pin())
        with subject.open_reader(manifest) as ranges:
            ranges.read_into(entry(manifest, "big"), 0, memoryview(bytearray(1_000_000)))
            store.put(bucket, {"big": b"b" * 3_000_000})
            with pytest.raises(SourceChanged, match="'big'.*has changed since it was listed"):
                ranges.read_into(entry(manifest, "big"), 1_000_000, memoryview(bytearray(1_000_000)))


def test_the_same_bytes_in_two_buckets_are_two_contents(store: ObjectServer) -> None:
    digests = set()
    for bucket in (store.bucket({"one": b"1"}), store.bucket({"one": b"1"})):
        with closing(source(store, bucket)) as subject:
            digests.add(subject.resolve(subject.pin()).digest)
    assert len(digests) == 2


@pytest.fixture
def scripted() -> Iterator[Server]:
    with Server() as running:
        yield running
        running.shutdown()


def test_what_consoles_put_where_a_folder_is_counts_as_the_folder(scripted: Server) -> None:
    keys = ("dir/", "dir/deep/", "dir/deep/file", "empty", "other", "other/file", "void/")
    sizes = {"other": 0}
    scripted.behave["/bucket"] = lambda handler: handler.say(200, list_bucket(*keys, **sizes))
    with closing(told(scripted)) as subject:
        manifest = subject.resolve(subject.pin())
    folders = {"dir", "dir/deep", "other", "void"}
    assert {e.path for e in manifest.entries if e.kind is EntryKind.DIRECTORY} == folders
    assert {e.path for e in manifest.files} == {"dir/deep/file", "empty", "other/file"}


def test_a_folder_is_the_same_whether_or_not_a_console_put_something_there(scripted: Server) -> None:
    digests = set()
    for keys in (("dir/file",), ("dir/", "dir/file"), ("dir", "dir/file")):
        scripted.behave["/bucket"] = lambda handler, keys=keys: handler.say(200, list_bucket(*keys, dir=0))
        with closing(told(scripted)) as subject:
            digests.add(subject.resolve(subject.pin()).digest)
    assert len(digests) == 1


def test_the_listed_folders_own_object_is_no_part_of_it(scripted: Server) -> None:
    scripted.behave["/bucket"] = lambda handler: handler.say(200, list_bucket("data/", "data/file"))
    spec = BucketSpec("OSS", scripted.url, "bucket", "data", path_style=True)
    with closing(BucketSource(CacheSpec(spec), None)) as subject:
        assert [e.path for e in subject.resolve(subject.pin()).entries] == ["file"]


def test_bytes_under_a_folders_key_are_not_left_out_without_a_word(scripted: Server) -> None:
    scripted.behave["/bucket"] = lambda handler: handler.say(200, list_bucket("dir/", **{"dir/": 5}))
    error = failing(told(scripted))
    assert isinstance(error, UnsafeContent)
    assert "'dir/' with 5 bytes" in str(error)


@pytest.mark.parametrize("key", ["a//b", "x/../y", "./z", "/a", "a//", "tab&#9;"])
def test_a_key_that_is_no_path_is_refused(scripted: Server, key: str) -> None:
    scripted.behave["/bucket"] = lambda handler: handler.say(200, list_bucket("fine", key))
    assert isinstance(failing(told(scripted)), UnsafeContent)


def test_a_hundred_thousand_objects_come_in_pages_of_a_thousand(scripted: Server) -> None:
    def page(handler: Answer) -> None:
        _, _, after = handler.path.partition("continuation-token=")
        number = int(after.partition("&")[0] or 0)
        handler.say(
            200,
            list_bucket(
                *(f"{number:03}/{n:03}" for n in range(1000)), more=str(number + 1) if number < 99 else ""
            ),
        )

    scripted.behave["/bucket"] = page
    with closing(told(scripted)) as subject:
        manifest = subject.resolve(subject.pin())
    assert sum(1 for _ in manifest.files) == 100_000
    assert len(scripted.seen) == 100


def test_a_store_that_is_none_or_not_there_is_named(scripted: Server) -> None:
    scripted.behave["/bucket"] = lambda handler: handler.say(200, b"<html>hello</html>")
    assert isinstance(failing(told(scripted)), DataCacheError)
    scripted.behave["/bucket"] = lambda handler: handler.say(
        400, b"<Error><Code>InvalidBucketName</Code></Error>"
    )
    assert "InvalidBucketName" in str(failing(told(scripted)))
    gone = replace(
        told(scripted).pin(), source=BucketSpec("S3", "http://127.0.0.1:1", "bucket", path_style=True)
    )
    error = failing(BucketSource(gone, None))
    assert isinstance(error, OriginUnavailable)
    assert "127.0.0.1:1" in str(error)


def test_a_signed_address_that_ended_is_signed_anew(scripted: Server) -> None:
    asked: list[str] = []

    def answer(handler: Answer) -> None:
        asked.append(handler.path)
        if len(asked) == 2:
            handler.say(
                403, b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"
            )
        else:
            first, end = handler.span()
            handler.say(206, b"x" * (end - first), Content_Range=f"bytes {first}-{end - 1}/1000", ETag='"e"')

    scripted.behave["/bucket"] = lambda handler: handler.say(
        200, list_bucket("file").replace(b"<Size>1<", b"<Size>1000<")
    )
    scripted.behave["/bucket/file"] = answer
    with closing(told(scripted, lambda: KEY)) as subject:
        manifest = subject.resolve(subject.pin())
        with subject.open_reader(manifest) as ranges:
            for offset in (0, 500):
                ranges.read_into(entry(manifest, "file"), offset, memoryview(bytearray(500)))
    assert len(asked) == 3
    assert all("X-Amz-Signature=" in path for path in asked)


def test_a_time_that_is_none_is_the_stores_fault(scripted: Server) -> None:
    scripted.behave["/bucket"] = lambda handler: handler.say(
        200, list_bucket("file").replace(b"<ETag>&quot;e&quot;</ETag>", b"")
    )
    scripted.behave["/bucket/file"] = lambda handler: handler.say(
        206, b"1", Content_Range="bytes 0-0/1", Last_Modified="yesterday"
    )
    with closing(told(scripted)) as subject:
        manifest = subject.resolve(subject.pin())
        with pytest.raises(OriginUnavailable, match="'file' with an invalid Last-Modified"):
            subject.check_read_access(manifest)


@pytest.mark.parametrize(
    "key",
    [
        AccessKey("id\nX-Other: 1", "secret"),
        AccessKey("id", "secret", "tok\u2028en"),
        AccessKey("id", "s\xe9"),
    ],
)
def test_a_key_that_can_be_none_is_refused_before_anybody_is_asked(scripted: Server, key: AccessKey) -> None:
    error = failing(told(scripted, lambda: key))
    assert isinstance(error, InvalidParameter)
    assert "that no access key has" in str(error)
    assert scripted.accepted == 0


def role_service(scripted: Server, hardened: bool) -> None:
    expires = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)).strftime(
        "%Y-%m-%dT%H:%M:%SZ"
    )
    key = {
        "AccessKeyId": "STS.id",
        "AccessKeySecret": "roleSecret",
        "SecurityToken": "roleToken",
        "Expiration": expires,
        "Code": "Success",
    }

    def answer(handler: Answer) -> None:
        wanted = "tok" if hardened else None
        handler.say(200, json.dumps(key).encode()) if handler.headers.get(
            "X-aliyun-ecs-metadata-token"
        ) == wanted else handler.say(403)

    scripted.behave["/latest/meta-data/ram/security-credentials/reader"] = answer
    scripted.behave["/latest/meta-data/ram/security-credentials/other"] = lambda handler: handler.say(404)
    scripted.behave["PUT /latest/api/token"] = lambda handler: (
        handler.say(200, b"tok") if hardened else handler.say(404)
    )


@pytest.mark.parametrize("hardened", [False, True])
def test_the_instances_role_gives_the_key_where_no_secret_does(
    scripted: Server, monkeypatch: pytest.MonkeyPatch, hardened: bool
) -> None:
    role_service(scripted, hardened)
    monkeypatch.setenv("ALIBABA_CLOUD_ECS_METADATA", scripted.url)
    spec = BucketSpec("OSS", scripted.url, "bucket", path_style=True, ram_role="reader")
    key = find_access_key(spec, {})
    assert key is not None
    assert (key().id, key().token) == ("STS.id", "roleToken")
    scripted.behave["/bucket"] = lambda handler: handler.say(200, list_bucket("file"))
    with closing(open_source(CacheSpec(spec), {})) as subject:
        subject.resolve(subject.pin())
    assert "Credential=STS.id/" in (scripted.seen[-1][1] or "")
    missing = find_access_key(replace(spec, ram_role="other"), {})
    with pytest.raises(PermissionDenied, match="no such RAM role"):
        assert missing
        assert missing()


def test_the_metadata_service_leads_nowhere_else(scripted: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    role_service(scripted, hardened=True)
    with Server("127.0.0.2") as elsewhere:
        path = "/latest/meta-data/ram/security-credentials/reader"
        elsewhere.behave[path] = scripted.behave[path]
        scripted.behave[path] = lambda handler: handler.say(302, Location=elsewhere.url + path)
        monkeypatch.setenv("ALIBABA_CLOUD_ECS_METADATA", scripted.url)
        key = find_access_key(
            BucketSpec("OSS", scripted.url, "bucket", path_style=True, ram_role="reader"), {}
        )
        with pytest.raises(OriginUnavailable, match="answered 302"):
            assert key
            assert key()
        assert elsewhere.accepted == 0
        elsewhere.shutdown()


def test_a_key_that_ends_soon_is_asked_for_anew_and_another_is_not(scripted: Server) -> None:
    scripted.behave["/bucket"] = lambda handler: handler.say(200, list_bucket("file"))
    now = datetime.datetime.now(datetime.UTC)
    asked = dict.fromkeys((1, 60), 0)

    def key(minutes: int) -> AccessKey:
        asked[minutes] += 1
        return AccessKey("id", "secret", "token", now + datetime.timedelta(minutes=minutes))

    for minutes in asked:
        with closing(told(scripted, lambda minutes=minutes: key(minutes))) as subject:
            for _ in range(3):
                subject.resolve(subject.pin())
    assert asked == {1: 3, 60: 1}


def test_without_a_metadata_service_a_role_is_of_no_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIBABA_CLOUD_ECS_METADATA", "http://127.0.0.1:1")
    key = find_access_key(
        BucketSpec("OSS", "http://127.0.0.1:1", "bucket", path_style=True, ram_role="reader"), {}
    )
    with pytest.raises(OriginUnavailable, match="ramRole reader"):
        assert key
        assert key()


@pytest.mark.parametrize(
    ("store", "names"),
    [
        ("OSS", ("akId", "akSecret", "securityToken")),
        ("S3", ("accessKeyId", "secretAccessKey", "sessionToken")),
    ],
)
def test_each_store_reads_its_own_keys_of_the_secret(store: str, names: tuple[str, str, str]) -> None:
    spec = BucketSpec(store, "https://store.example", "bucket")
    key = find_access_key(spec, dict(zip(names, ("id", " secret\n", "session"), strict=True)))
    assert key
    assert key() == AccessKey("id", "secret", "session")
    with pytest.raises(InvalidParameter, match=f"does not have both {names[0]} and {names[1]}"):
        find_access_key(spec, {names[0]: "id", "token": "x"})
    assert find_access_key(spec, {}) is None
