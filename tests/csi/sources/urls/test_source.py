"""Plain URLs: servers of every kind, sums, tokens that stay with their host."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from csi.concurrency.rate_limit import RateLimiter
from csi.errors import (
    CorruptContent,
    DataCacheError,
    InvalidParameter,
    OriginUnavailable,
    OutOfRange,
    SourceChanged,
    SourceNotFound,
    Unauthenticated,
)
from csi.images.fill.fill import fill
from csi.images.layout.layout import build_layout
from csi.manifest.manifest import DEFAULT_MTIME_NS, Manifest
from csi.manifest.reader import Reader
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.content_ref import Secrets
from csi.parameters.volume_parameters import parse_volume_parameters
from csi.sources.catalog import open_source
from csi.sources.http import throughput
from csi.sources.urls import full_read as whole_files
from csi.sources.urls.source import UrlSource
from csi.worker.operations import ResolveSource
from csi.worker_process.__main__ import Worker
from tests.conformance.trees import entry, read
from tests.origins.scripted import Answer, Server

DATA = bytes(range(256)) * 4000
SUM = hashlib.sha256(DATA).hexdigest()


def url(parameters: dict[str, str], token: str | None = None) -> UrlSource:
    return UrlSource(parse_volume_parameters(parameters).spec, token)


def resolved(subject: UrlSource) -> Manifest:
    return subject.resolve(subject.pin())


def failing(subject: UrlSource) -> DataCacheError:
    with closing(subject), pytest.raises(DataCacheError) as error:
        resolved(subject)
    return error.value


def whole(handler: Answer, **headers: str) -> None:
    handler.say(200, DATA, **headers)


def ranged(handler: Answer, **headers: str) -> None:
    if not handler.headers["Range"]:
        whole(handler, **headers)
        return
    first, end = handler.span()
    handler.say(206, DATA[first:end], Content_Range=f"bytes {first}-{end - 1}/{len(DATA)}", **headers)


def without_length(handler: Answer) -> None:
    """As HTTP/1.0 servers and scripts answer: the end of the connection is the end of the file."""
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.wfile.write(DATA)
    handler.close_connection = True


def chunked(handler: Answer) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    for at in range(0, len(DATA), 100_000):
        piece = DATA[at : at + 100_000]
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
    handler.wfile.write(b"0\r\n\r\n")


@pytest.mark.parametrize("kind", [ranged, whole, without_length, chunked])
def test_a_file_comes_whole_from_a_server_of_any_kind(server: Server, tmp_path: Path, kind: object) -> None:
    server.behave["/x/data.bin"] = kind
    with closing(url({"url": f"{server.url}/x/data.bin"})) as subject:
        manifest = resolved(subject)
        subject.check_read_access(manifest)
        layout = build_layout(manifest)
        fill(
            layout,
            tmp_path / "image",
            tmp_path / "journal",
            lambda: subject.open_reader(manifest),
            max_connections=2,
            chunk_bytes=1 << 18,
        )
    assert [(e.path, e.size) for e in manifest.files] == [("data.bin", len(DATA))]
    at = layout.extents[0].offset
    assert (tmp_path / "image").read_bytes()[at : at + len(DATA)] == DATA


def test_a_file_whose_length_is_not_told_is_held_to_the_sum_it_had(server: Server) -> None:
    server.behave["/data.bin"] = without_length
    with closing(url({"url": f"{server.url}/data.bin"})) as subject:
        assert entry(resolved(subject), "data.bin").digest.startswith(f"claimed:{SUM} ")


def test_a_file_that_changes_without_a_sign_is_not_taken_for_one(server: Server, tmp_path: Path) -> None:
    """No ETag, no Last-Modified, the same size: only the sum that was taken when it was resolved tells."""
    size, served = 1 << 20, 0

    def changing(handler: Answer) -> None:
        nonlocal served
        first, end = handler.span() if handler.headers["Range"] else (0, size)
        served += end - first
        body = (b"A" if served <= size + size // 2 else b"B") * (end - first)
        handler.say(
            206 if handler.headers["Range"] else 200, body, Content_Range=f"bytes {first}-{end - 1}/{size}"
        )

    server.behave["/data.bin"] = changing
    with closing(url({"url": f"{server.url}/data.bin"})) as subject:
        manifest = resolved(subject)
        with pytest.raises(CorruptContent, match="data.bin"):
            fill(
                build_layout(manifest),
                tmp_path / "i",
                tmp_path / "j",
                lambda: subject.open_reader(manifest),
                max_connections=1,
                chunk_bytes=size // 4,
            )


def test_a_file_that_tells_no_changes_is_read_whole_unless_its_sum_is_given(server: Server) -> None:
    server.behave["/data.bin"] = ranged
    for given, asked in (({}, ["bytes=0-0", None]), ({"sha256": SUM}, ["bytes=0-0"])):
        server.seen.clear()
        with closing(url({"url": f"{server.url}/data.bin"} | given)) as subject:
            assert entry(resolved(subject), "data.bin").digest.startswith(f"claimed:{SUM} ")
        assert [seen[2] for seen in server.seen] == asked


def endless(handler: Answer) -> None:
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    with suppress(OSError):
        while True:
            handler.wfile.write(bytes(1 << 16))
    handler.close_connection = True


def test_a_file_that_does_not_end_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_files, "MAX_VOLUME_BYTES", 1 << 20)
    server.behave["/data.bin"] = endless
    error = failing(url({"url": f"{server.url}/data.bin"}))
    assert isinstance(error, OutOfRange)
    assert f"more than {1 << 20} bytes" in str(error)


@pytest.mark.parametrize(
    ("rate", "parameters"),
    [(None, {"bandwidthLimit": "4Mi"}), (4 << 20, {}), (4 << 20, {"bandwidthLimit": "1Gi"})],
)
def test_a_file_is_read_whole_no_faster_than_it_may_be(
    server: Server, rate: int | None, parameters: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: Counter[int] = Counter()
    monkeypatch.setattr(
        RateLimiter,
        "wait_for",
        lambda pace, count, *others: taken.update({one._rate: count for one in (pace, *others)}),
    )
    server.behave["/data.bin"] = without_length
    alone = {"url": f"{server.url}/data.bin"}
    for named in (alone, {"sources": json.dumps([{"folder": "a", **alone}])}):
        spec = parse_volume_parameters(named | parameters).spec
        taken.clear()
        Worker(io.BytesIO(), rate).resolve(ResolveSource(spec, Secrets()), ())
        # Not a byte is read but by the leave of the lower of the limits.
        assert taken[4 << 20] >= len(DATA)


def test_a_file_that_trickles_while_it_is_read_whole_is_given_up(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throughput, "MEASURING_WINDOW", 0.2)

    def drip(handler: Answer) -> None:
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        with suppress(OSError):
            for _ in range(1000):
                handler.wfile.write(b"x")
                time.sleep(0.01)
        handler.close_connection = True

    server.behave["/data.bin"] = drip
    error = failing(url({"url": f"{server.url}/data.bin"}))
    assert isinstance(error, OriginUnavailable)
    assert "far slower than others" in str(error)


def test_an_empty_file_is_one(server: Server) -> None:
    server.behave["/416"] = lambda handler: handler.say(416, Content_Range="bytes */0")
    server.behave["/200"] = lambda handler: handler.say(200)
    with closing(url({"url": f"{server.url}/416,{server.url}/200"})) as subject:
        assert {e.path: e.size for e in resolved(subject).files} == {"416": 0, "200": 0}


def test_a_length_that_no_file_has_is_none(server: Server) -> None:
    server.behave["/x"] = lambda handler: handler.say(206, DATA[:1], Content_Range=f"bytes 0-0/{'9' * 5000}")
    assert isinstance(failing(url({"url": f"{server.url}/x"})), OriginUnavailable)


def test_the_time_is_the_servers(server: Server) -> None:
    server.behave["/a"] = lambda handler: ranged(handler, Last_Modified="Tue, 14 Nov 2023 22:13:20 GMT")
    server.behave["/b"] = lambda handler: ranged(handler, Last_Modified="yesterday")
    with closing(url({"url": f"{server.url}/a,{server.url}/b"})) as subject:
        assert [e.mtime_ns for e in resolved(subject).files] == [1_700_000_000 * 10**9, DEFAULT_MTIME_NS]


def test_a_sum_that_the_user_gave_is_checked(server: Server, tmp_path: Path) -> None:
    server.behave["/data.bin"] = ranged
    for number, (given, right) in enumerate(((SUM, True), ("0" * 64, False))):
        with closing(url({"url": f"{server.url}/data.bin", "sha256": given})) as subject:
            manifest = resolved(subject)
            arguments = (
                build_layout(manifest),
                tmp_path / f"image{number}",
                tmp_path / f"journal{number}",
                lambda m=manifest: subject.open_reader(m),
            )
            if right:
                fill(*arguments)
            else:
                with pytest.raises(
                    CorruptContent, match=f"'data.bin' has the sha256 {SUM}, not 000.*check sha256"
                ):
                    fill(*arguments)


def test_naming_the_sum_of_another_file_makes_no_volume_of_it(server: Server, other: Server) -> None:
    digests = set()
    for origin in (server, other):
        origin.behave["/data.bin"] = ranged
        with closing(url({"url": f"{origin.url}/data.bin", "sha256": SUM})) as subject:
            digests.add(resolved(subject).digest)
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"ETag": '"1"'}, {"ETag": '"2"'}),
        (
            {"Last_Modified": "Tue, 14 Nov 2023 22:13:20 GMT"},
            {"Last_Modified": "Wed, 15 Nov 2023 22:13:20 GMT"},
        ),
        ({"ETag": '"1"'}, {}),
        ({"Last_Modified": "Tue, 14 Nov 2023 22:13:20 GMT"}, {}),
        ({"ETag": '"1"'}, {"Last_Modified": "Tue, 14 Nov 2023 22:13:20 GMT"}),
    ],
)
def test_a_file_that_changes_between_two_ranges_is_caught(
    server: Server, before: dict[str, str], after: dict[str, str]
) -> None:
    server.behave["/data.bin"] = lambda handler: ranged(handler, **before)
    with closing(url({"url": f"{server.url}/data.bin"})) as subject:
        manifest = resolved(subject)
        assert read(subject, manifest, "data.bin", 0, 1000) == DATA[:1000]
        server.behave["/data.bin"] = lambda handler: ranged(handler, **after)
        with pytest.raises(SourceChanged, match="data.bin"):
            read(subject, manifest, "data.bin", 1000, 1000)


def test_the_token_goes_to_the_host_of_the_url_and_not_where_that_sends(
    server: Server, other: Server
) -> None:
    server.behave["/data.bin"] = lambda handler: handler.say(302, Location=f"{other.url}/signed")
    other.behave["/signed"] = ranged
    with closing(url({"url": f"{server.url}/data.bin"}, "secretToken")) as subject:
        manifest = resolved(subject)
        assert read(subject, manifest, "data.bin") == DATA
    assert {seen[1] for seen in server.seen} == {"Bearer secretToken"}
    assert {seen[1] for seen in other.seen} == {None}


def test_one_token_is_not_shown_to_several_hosts(server: Server, other: Server) -> None:
    with pytest.raises(InvalidParameter, match="several hosts.*name them in sources"):
        url({"url": f"{server.url}/a,{other.url}/b"}, "secretToken")


def test_one_token_is_not_shown_to_https_and_http_of_one_host() -> None:
    with pytest.raises(InvalidParameter, match="http and https of one.*name them in sources"):
        url({"url": "https://files.example/a,http://files.example/b"}, "secretToken")
    url({"url": "https://files.example/a,https://FILES.example:443/b"}, "secretToken").close()


def test_each_refusal_is_said_in_its_own_words(server: Server) -> None:
    def say(status: int, token: str | None = None, body: bytes = b"", **headers: str) -> DataCacheError:
        server.behave["/data.bin"] = lambda handler: handler.say(status, body, **headers)
        error = failing(url({"url": f"{server.url}/data.bin"}, token))
        assert (
            "secretToken" not in str(error)
            and "data.bin" in str(error)
            or isinstance(error, OriginUnavailable)
        )
        return error

    assert isinstance(say(401), Unauthenticated)
    assert "requires a token" in str(say(401))
    assert "refuses the token" in str(say(401, "secretToken"))
    assert isinstance(say(404), SourceNotFound)
    assert isinstance(say(500), OriginUnavailable)
    assert "compressed" in str(say(200, body=b"x", Content_Encoding="gzip"))
    gone = CacheSpec(parse_volume_parameters({"url": "http://127.0.0.1:1/x"}).spec.source)
    with closing(open_source(gone, {})) as subject, pytest.raises(OriginUnavailable, match="127.0.0.1:1"):
        subject.resolve(subject.pin())


def test_as_many_connections_are_kept_as_a_fill_has_readers(server: Server) -> None:
    readers, all_asked = 24, threading.Barrier(24, timeout=60)
    server.behave["/data.bin"] = ranged
    spec = parse_volume_parameters({"url": f"{server.url}/data.bin", "sha256": SUM}).spec
    with closing(open_source(spec, {}, max_connections=readers)) as subject:
        manifest = resolved(subject)
        (file,) = manifest.files

        def answer_together(handler: Answer) -> None:
            all_asked.wait()
            ranged(handler)

        def read_once(reader: Reader) -> None:
            reader.read_into(file, 0, memoryview(bytearray(4096)))

        server.behave["/data.bin"] = answer_together
        with ExitStack() as opened, ThreadPoolExecutor(readers) as threads:
            all_readers = [opened.enter_context(subject.open_reader(manifest)) for _ in range(readers)]
            list(threads.map(read_once, all_readers))
            accepted = server.accepted
            list(threads.map(read_once, all_readers))
        assert server.accepted == accepted
