"""URLs that a Metalink document names: what is asked for, what is checked, and where tokens and requests
may go."""

from __future__ import annotations

import json
import tracemalloc
from contextlib import closing
from pathlib import Path

import pytest

from csi.destinations.allow_list import as_untrusted
from csi.errors import (
    CorruptContent,
    DataCacheError,
    OriginUnavailable,
    OutOfRange,
    PermissionDenied,
    SourceChanged,
    SourceNotFound,
    Unauthenticated,
)
from csi.images.fill.fill import fill
from csi.images.layout.layout import build_layout
from csi.manifest.manifest import Manifest
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.urls import MAX_URLS, UrlSpec
from csi.parameters.volume_parameters import parse_volume_parameters
from csi.sources.catalog import open_source
from csi.sources.urls import metalink as documents
from csi.sources.urls.source import UrlSource
from tests.conformance.trees import entry, read
from tests.conformance.url_kit import metalink
from tests.csi.sources.urls.test_metalink import DATA, SECRET, SUM, document, file
from tests.origins.scripted import Answer, Server

TOLD = f'<size>{len(DATA)}</size><hash type="sha-256">{SUM}</hash>'


def ranged(handler: Answer, **headers: str) -> None:
    if not handler.headers["Range"]:
        handler.say(200, DATA, **headers)
        return
    first, end = handler.span()
    handler.say(206, DATA[first:end], Content_Range=f"bytes {first}-{end - 1}/{len(DATA)}", **headers)


def source(server: Server, body: bytes, token: str | None = None) -> UrlSource:
    server.behave["/all.meta4"] = lambda handler: handler.say(200, body)
    return UrlSource(CacheSpec(UrlSpec(metalink=f"{server.url}/all.meta4")), token)


def resolved(subject: UrlSource) -> Manifest:
    return subject.resolve(subject.pin())


def test_files_that_are_told_are_not_asked_for_one_by_one(
    server: Server, other: Server, tmp_path: Path
) -> None:
    named = {f"deep/{n}.bin": (f"{(server, other)[n % 2].url}/{n}", DATA) for n in range(20)} | {
        "empty": (f"{server.url}/none", b"")
    }
    for n in range(20):
        server.behave[f"/{n}"] = other.behave[f"/{n}"] = ranged
    with closing(source(server, metalink(named))) as subject:
        manifest = resolved(subject)
        assert [seen[0] for seen in server.seen] == ["/all.meta4"]
        assert not other.seen
        assert {e.path: e.size for e in manifest.files} == {
            path: len(data) for path, (_, data) in named.items()
        }
        subject.check_read_access(manifest)
        assert [seen[2] for seen in server.seen[1:] + other.seen] == ["bytes=0-0"] * 2
    # Another process: the document is not read again.
    server.seen.clear()
    with closing(open_source(parse_volume_parameters(manifest.access).spec, {})) as subject:
        layout = build_layout(manifest)
        fill(layout, tmp_path / "image", tmp_path / "journal", lambda: subject.open_reader(manifest))
    assert "/all.meta4" not in {seen[0] for seen in server.seen}
    image = (tmp_path / "image").read_bytes()
    assert {image[e.offset : e.offset + len(DATA)] for e in layout.extents if e.entry.size} == {DATA}


def test_a_file_of_which_something_is_not_told_is_asked_for(server: Server) -> None:
    for name in ("size", "sum", "none", "both"):
        server.behave[f"/{name}"] = lambda handler: ranged(handler, ETag='"1"')
    told = {
        "size": f"<size>{len(DATA)}</size>",
        "sum": f'<hash type="sha-256">{SUM}</hash>',
        "none": "",
        "both": TOLD,
    }
    body = document(*(file(name, f"<url>{name}</url>{inside}") for name, inside in told.items()))
    with closing(source(server, body)) as subject:
        manifest = resolved(subject)
        assert sorted(seen[0] for seen in server.seen) == ["/all.meta4", "/none", "/size", "/sum"]
        assert {e.path: (e.size, e.digest.partition(" ")[0]) for e in manifest.files} == {
            "both": (len(DATA), f"claimed:{SUM}"),
            "none": (len(DATA), "token:url"),
            "size": (len(DATA), "token:url"),
            "sum": (len(DATA), f"claimed:{SUM}"),
        }
        assert read(subject, manifest, "both") == read(subject, manifest, "none") == DATA
    with closing(source(server, body)) as subject:
        assert read(subject, manifest, "sum") == DATA
        assert resolved(subject).digest == manifest.digest


def test_a_size_that_is_wrong_is_an_error_when_the_file_is_asked_for_or_proved_or_filled(
    server: Server, tmp_path: Path
) -> None:
    server.behave["/x"] = lambda handler: ranged(handler, ETag='"1"')
    words = f"'a' has 7 bytes, 127.0.0.1:.* sends {len(DATA)}; correct the document"
    with (
        closing(source(server, document(file("a", "<url>x</url><size>7</size>")))) as subject,
        pytest.raises(SourceChanged, match=words),
    ):
        resolved(subject)
    for size in (7, len(DATA) + 7):
        with closing(
            source(
                server,
                document(file("a", f'<url>x</url><size>{size}</size><hash type="sha-256">{SUM}</hash>')),
            )
        ) as subject:
            manifest = resolved(subject)
            with pytest.raises(SourceChanged, match="'a' has"):
                subject.check_read_access(manifest)
            with pytest.raises(SourceChanged, match="'a' has"):
                fill(
                    build_layout(manifest),
                    tmp_path / f"i{size}",
                    tmp_path / f"j{size}",
                    lambda m=manifest, s=subject: s.open_reader(m),
                )


def test_a_sum_that_is_wrong_is_caught_by_the_fill(server: Server, tmp_path: Path) -> None:
    server.behave["/x"] = ranged
    wrong = f'<url>x</url><size>{len(DATA)}</size><hash type="sha-256">{"0" * 64}</hash>'
    with closing(source(server, document(file("a", wrong)))) as subject:
        manifest = resolved(subject)
        with pytest.raises(CorruptContent, match="'a' has the sha256"):
            fill(
                build_layout(manifest),
                tmp_path / "image",
                tmp_path / "journal",
                lambda: subject.open_reader(manifest),
            )


def test_naming_the_sum_of_anothers_file_makes_no_volume_of_it(server: Server, other: Server) -> None:
    bodies = [metalink({"a": (f"{origin.url}/a", DATA)}) for origin in (server, other)]
    with closing(source(server, bodies[0])) as mine, closing(source(other, bodies[1])) as theirs:
        one, another = entry(resolved(mine), "a"), entry(resolved(theirs), "a")
    assert one.digest != another.digest
    assert one.digest.startswith(f"claimed:{SUM} ")
    assert another.digest.startswith(f"claimed:{SUM} ")


def test_the_token_goes_to_the_documents_site_alone(server: Server, other: Server) -> None:
    for origin in (server, other):
        origin.behave |= {"/told": ranged, "/asked": ranged}
    named = metalink({"here": (f"{server.url}/told", DATA), "there": (f"{other.url}/told", DATA)})
    body = named.replace(
        b"</metalink>", file("asked", f"<url>{other.url}/asked</url>").encode() + b"</metalink>"
    )
    with closing(source(server, body, SECRET)) as subject:
        manifest = resolved(subject)
        subject.check_read_access(manifest)
        assert (
            read(subject, manifest, "there")
            == read(subject, manifest, "here")
            == read(subject, manifest, "asked")
            == DATA
        )
    with closing(UrlSource(parse_volume_parameters(manifest.access).spec, SECRET)) as subject:
        assert (
            read(subject, manifest, "there")
            == read(subject, manifest, "here")
            == read(subject, manifest, "asked")
            == DATA
        )
    assert {seen[1] for seen in server.seen} == {f"Bearer {SECRET}"}
    assert {seen[1] for seen in other.seen} == {None}


def test_small_files_that_are_filled_in_one_go_show_the_token_to_the_documents_site_alone(
    server: Server, other: Server, tmp_path: Path
) -> None:
    named = {f"{n:02}.bin": (f"{(server, other)[n % 2].url}/{n}", DATA) for n in range(20)}
    for n in range(20):
        server.behave[f"/{n}"] = other.behave[f"/{n}"] = ranged
    with closing(source(server, metalink(named), SECRET)) as subject:
        manifest = resolved(subject)
        fill(
            build_layout(manifest),
            tmp_path / "image",
            tmp_path / "journal",
            lambda: subject.open_reader(manifest),
        )
    assert {seen[1] for seen in server.seen} == {f"Bearer {SECRET}"}
    assert len(server.seen) == 11
    assert {seen[1] for seen in other.seen} == {None}
    assert len(other.seen) == 10


def test_an_inline_volume_is_filled_from_no_private_address(
    server: Server, other: Server, tmp_path: Path
) -> None:
    other.behave["/a"] = ranged
    with closing(of_pod(server, metalink({"a": (f"{other.url}/a", DATA)}))) as subject:
        manifest = resolved(subject)
        with pytest.raises(PermissionDenied, match="requests may not go to"):
            fill(
                build_layout(manifest),
                tmp_path / "image",
                tmp_path / "journal",
                lambda: subject.open_reader(manifest),
            )
    assert not other.seen


def test_a_document_that_is_redirected_names_files_of_where_it_was_asked_for(
    server: Server, other: Server
) -> None:
    """Where it was redirected to may be signed, and the volume keeps what files are called.

    The token stays behind.
    """
    server.behave |= {
        "/all.meta4": lambda handler: handler.say(
            302, Location=f"{other.url}/signed-secret/all.meta4?st=secret"
        ),
        "/a": ranged,
    }
    other.behave["/signed-secret/all.meta4"] = lambda handler: handler.say(
        200, document(file("a", f"<url>a</url>{TOLD}"))
    )
    with closing(UrlSource(CacheSpec(UrlSpec(metalink=f"{server.url}/all.meta4")), SECRET)) as subject:
        manifest = resolved(subject)
        assert read(subject, manifest, "a") == DATA
    assert "secret" not in repr(manifest.entries)
    assert {seen[1] for seen in other.seen} == {None}


def test_files_that_have_to_be_asked_for_are_not_without_number(server: Server) -> None:
    body = document(*(file(f"{number}", f"<url>{number}</url>") for number in range(MAX_URLS + 1)))
    server.behave["/all.meta4"] = lambda handler: handler.say(200, body)
    with (
        closing(UrlSource(CacheSpec(UrlSpec(metalink=f"{server.url}/all.meta4")), None)) as subject,
        pytest.raises(OutOfRange, match="sha-256"),
    ):
        resolved(subject)
    assert len(server.seen) == 1


def test_a_document_may_be_one_of_several_sources(server: Server, other: Server) -> None:
    other.behave |= {"/told": ranged, "/asked": lambda handler: ranged(handler, ETag='"1"')}
    body = document(
        *(
            file(f"deep/{name}", f"<url>{other.url}/{name}</url>{inside}")
            for name, inside in (("told", TOLD), ("asked", ""))
        )
    )
    server.behave["/all.meta4"] = lambda handler: handler.say(200, body)
    spec = parse_volume_parameters(
        {"sources": json.dumps([{"folder": "base", "metalink": f"{server.url}/all.meta4"}])}
    ).spec
    with closing(open_source(spec, {"base.token": SECRET})) as subject:
        manifest = subject.resolve(subject.pin())
        subject.check_read_access(manifest)
    with closing(
        open_source(parse_volume_parameters(manifest.access).spec, {"base.token": SECRET})
    ) as subject:
        assert read(subject, manifest, "base/deep/told") == read(subject, manifest, "base/deep/asked") == DATA
    assert {seen[1] for seen in server.seen} == {f"Bearer {SECRET}"}
    assert {seen[1] for seen in other.seen} == {None}


def test_who_may_not_read_the_document_proves_nothing_by_its_files(server: Server, other: Server) -> None:
    other.behave["/a"] = ranged
    with closing(source(server, metalink({"a": (f"{other.url}/a", DATA)}))) as subject:
        manifest = resolved(subject)
    server.behave["/all.meta4"] = lambda handler: handler.say(401)
    for token, words in ((None, "requires a token"), (SECRET, "refuses the token")):
        for ask in (resolved, lambda subject: subject.check_read_access(manifest)):
            with (
                closing(UrlSource(parse_volume_parameters(manifest.access).spec, token)) as subject,
                pytest.raises(Unauthenticated, match=words) as refused,
            ):
                ask(subject)
            assert SECRET not in str(refused.value)
            assert "all.meta4" in str(refused.value)


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (404, SourceNotFound, "check metalink"),
        (403, PermissionDenied, "all.meta4"),
        (500, OriginUnavailable, "the Metalink document"),
    ],
)
def test_a_document_that_is_not_given_is_said_so(
    server: Server, status: int, error: type[DataCacheError], words: str
) -> None:
    with closing(source(server, b"")) as subject, pytest.raises(error, match=words):
        server.behave["/all.meta4"] = lambda handler: handler.say(status)
        resolved(subject)


def test_a_document_that_is_cut_short_is_no_shorter_one(server: Server) -> None:
    body = metalink({str(n): (f"{server.url}/{n}", DATA) for n in range(1000)})

    def cut(handler: Answer) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: len(body) // 2])
        handler.close_connection = True

    with (
        closing(source(server, body)) as subject,
        pytest.raises(OriginUnavailable, match="while reading the Metalink document"),
    ):
        server.behave["/all.meta4"] = cut
        resolved(subject)


def of_pod(server: Server, body: bytes, *allowed: str) -> UrlSource:
    server.behave["/all.meta4"] = lambda handler: handler.say(200, body)
    spec = as_untrusted(CacheSpec(UrlSpec(metalink=f"{server.url}/all.meta4")))
    subject = open_source(spec, {}, [server.url.removeprefix("http://"), *allowed])
    assert isinstance(subject, UrlSource)
    return subject


@pytest.mark.parametrize(
    "target",
    [
        "{there}",
        "http://localhost:{port}",
        "http://169.254.169.254",
        "http://10.0.0.1",
        "http://[::1]:{port}",
        "http://127.1:{port}",
    ],
)
@pytest.mark.parametrize("told", [True, False])
def test_a_document_of_an_inline_volume_leads_to_no_private_address(
    server: Server, other: Server, target: str, told: bool
) -> None:
    other.behave["/a"] = ranged
    url = target.format(there=other.url, port=other.server_address[1]) + "/a"
    body = metalink({"a": (url, DATA)}) if told else document(file("a", f"<url>{url}</url>"))
    with (
        closing(of_pod(server, body)) as subject,
        pytest.raises(PermissionDenied, match="requests may not go to"),
    ):
        subject.check_read_access(resolved(subject))
    assert not other.seen


def test_a_document_of_an_inline_volume_leads_where_the_operator_listed(
    server: Server, other: Server
) -> None:
    other.behave["/a"] = ranged
    with closing(of_pod(server, metalink({"a": (f"{other.url}/a", DATA)}), "127.0.0.2")) as subject:
        manifest = resolved(subject)
        subject.check_read_access(manifest)
        assert read(subject, manifest, "a") == DATA


def test_a_document_of_an_administrator_leads_to_no_metadata_service(server: Server) -> None:
    with (
        closing(source(server, metalink({"a": ("http://169.254.169.254/a", DATA)}))) as subject,
        pytest.raises(PermissionDenied, match="link"),
    ):
        subject.check_read_access(resolved(subject))


def test_a_file_of_a_document_costs_little_more_than_its_entry(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a path of 40 bytes and a URL of 80: 600 bytes, of which ordering and checking takes 150 for a
    moment."""

    def peak(count: int) -> int:
        paths = (f"data/{n // 1000:03}/part-{n:06}-of-{count:06}.json" for n in range(count))
        with closing(
            source(
                server, metalink({path: (f"{server.url}/models/organisation/{path}", DATA) for path in paths})
            )
        ) as subject:
            resolved(subject)
            tracemalloc.start()
            before = tracemalloc.get_traced_memory()[0]
            assert sum(1 for _ in resolved(subject).files) == count
            most = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            return most - before

    few, lots = peak(1_000), peak(4_000)
    print(f"{(lots - few) / 3_000:.0f} bytes a file")
    assert (lots - few) / 3_000 < 1000


def test_the_most_files_there_may_be_are_resolved(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_METALINK_FILES", 2_000)
    with closing(
        source(server, metalink({str(n): (f"{server.url}/{n}", DATA) for n in range(2_000)}))
    ) as subject:
        assert sum(1 for _ in resolved(subject).files) == 2_000
    body = metalink({str(n): (f"{server.url}/{n}", DATA) for n in range(2_001)})
    with (
        closing(source(server, body)) as subject,
        pytest.raises(OutOfRange, match="more than 2000 files; split it into several documents"),
    ):
        resolved(subject)
