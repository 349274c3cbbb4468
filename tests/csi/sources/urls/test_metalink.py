"""Metalink documents: what they say of files, and what is refused, with which words."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Iterable, Iterator

import pytest

from csi.errors import (
    DataCacheError,
    FailedPrecondition,
    OutOfRange,
    PermissionDenied,
    UnsafeContent,
)
from csi.sources.urls.metalink import MetalinkFile, parse_files

DATA = bytes(range(256)) * 400
SUM = hashlib.sha256(DATA).hexdigest()
SPACE = 'xmlns="urn:ietf:params:xml:ns:metalink"'
ADDRESS = "http://files.example/models/all.meta4"
SECRET = "verySecret123"
URL = "<url>http://files.example/a</url>"


def document(*files: str, root: str = f"<metalink {SPACE}>", before: str = "") -> bytes:
    return f"{before}{root}\n{''.join(files)}</metalink>".encode()


def file(name: str = "a", inside: str = URL) -> str:
    return f'<file name="{name}">{inside}</file>\n'


def files(body: bytes, address: str = ADDRESS) -> list[MetalinkFile]:
    """The files of a document that comes in small pieces."""
    return list(
        parse_files((body[at : at + 1000] for at in range(0, len(body), 1000)), address, "the document")
    )


def test_a_file_has_its_best_http_address_its_size_and_its_sum() -> None:
    told = (
        '<url priority="2">https://b.example/a</url><url priority="1">ftp://c.example/a</url><url>http://d.example/a</url>'
        f'<size> 5 </size><hash type="md5">00</hash><hash type="sha-256">\n{SUM.upper()}</hash><metaurl mediatype="torrent">http://t.example/</metaurl>'
        '<pieces type="sha-256" length="4"><hash>11</hash></pieces><x:size xmlns:x="urn:x">7</x:size><url priority="2">http://e.example/a</url>'
    )
    assert files(
        document("<published>2026-01-01T00:00:00Z</published>", file("deep/a &amp; b", told), file("c"))
    ) == [
        MetalinkFile("deep/a & b", "https://b.example/a", 5, SUM),
        MetalinkFile("c", "http://files.example/a", None, ""),
    ]


def test_prefixes_are_as_good_as_none_and_addresses_may_be_relative() -> None:
    body = (
        '<m:metalink xmlns:m="urn:ietf:params:xml:ns:metalink"><m:file name="a"><m:url>../b%20c#d</m:url></m:file>'  # noqa: E501
        '<m:file name="b"><m:url>//h.example/x</m:url></m:file></m:metalink>'
    )
    assert [listed.url for listed in files(body.encode())] == [
        "http://files.example/b%20c",
        "http://h.example/x",
    ]


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        (file(inside=""), FailedPrecondition, "line 3, file 'a': it has no http or https url; add one"),
        (
            file(inside="<url>ftp://a.example/x</url>"),
            FailedPrecondition,
            "file 'a': it has no http or https url",
        ),
        (
            file(inside="<metaurl>http://a.example/x.torrent</metaurl>"),
            FailedPrecondition,
            "it has no http or https url",
        ),
        (file(inside="<url>http://[x/a</url>"), FailedPrecondition, "is not a plain http"),
        (file(inside="<url>//[x/a</url>"), FailedPrecondition, "cannot be read"),
        (file(inside="<url>http://a.example/x y</url>"), FailedPrecondition, "has a blank"),
        (
            file(inside="<url>ht\ntp://a.example/x</url>"),
            FailedPrecondition,
            "has a blank or a control character",
        ),
        (file(inside="<url>//\ta.example/x</url>"), FailedPrecondition, "has a blank or a control character"),
        (file(inside="<url></url>"), FailedPrecondition, "one of its URLs is empty"),
        (file(inside="<url>#x</url>"), FailedPrecondition, "one of its URLs is empty"),
        (file(inside="<url>http:///x</url>"), FailedPrecondition, "is not a plain http"),
        (
            file(inside=f"<url>http://a.example/{'x' * 9000}</url>"),
            FailedPrecondition,
            "over 8192 characters",
        ),
        (
            file(inside=f"<url>http://a.example/{'x<!---->' * 9000}</url>"),
            FailedPrecondition,
            "over 8192 characters",
        ),
        (
            file(inside=f'<url priority="0">{ADDRESS}</url>'),
            FailedPrecondition,
            "priority is '0'; it is 1 (the best) to 999999",
        ),
        (
            file(inside=f'<url priority="{"9" * 5000}">{ADDRESS}</url>'),
            FailedPrecondition,
            "priority is '999",
        ),
        (
            file(inside=f'{URL}<hash type="sha-256">12</hash>'),
            FailedPrecondition,
            "line 3, file 'a': its sha-256 is '12'; it is 64 hex digits",
        ),
        (
            file(inside=f'{URL}<hash type="sha-256">{SUM}</hash><hash type="sha-256">{SUM[::-1]}</hash>'),
            FailedPrecondition,
            "two sha-256",
        ),
        (
            file(inside=f"{URL}<size>-1</size>"),
            FailedPrecondition,
            "its size is '-1'; it is the number of its bytes",
        ),
        (file(inside=f"{URL}<size>{'9' * 20}</size>"), FailedPrecondition, "its size is '999"),
        (file(inside=f"{URL}<size>{'9' * 5000}</size>"), FailedPrecondition, "its size is '999"),
        (file(inside=f"{URL}<size>٣</size>"), FailedPrecondition, "its size is"),
        (file(inside=f"{URL}<size>1</size><size>2</size>"), FailedPrecondition, "two sizes"),
        (
            file("ok"),
            FailedPrecondition,
            "line 3, file 'ok': an earlier file has the same name; give each its own",
        ),
        (file("../x"), UnsafeContent, "line 3: the path '../x'"),
        (file("/etc/passwd"), UnsafeContent, "absolute"),
        (file("a/../b"), UnsafeContent, "'..' component"),
        (file("a//b"), UnsafeContent, "component"),
        (file("a/"), UnsafeContent, "component"),
        (file("."), UnsafeContent, "component"),
        (file(""), UnsafeContent, "is empty"),
        (f"<file>{URL}</file>", UnsafeContent, "is empty"),
        (file("x" * 256), UnsafeContent, "over 255 bytes"),
        (file("x/" * 3000 + "x"), UnsafeContent, "over 4095 bytes"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_line_and_name(
    bad: str, error: type[DataCacheError], words: str
) -> None:
    with pytest.raises(DataCacheError) as refused:
        files(document(file("ok"), bad))
    assert type(refused.value) is error
    assert words in str(refused.value)
    assert str(refused.value).startswith("the document, line ")


@pytest.mark.parametrize(
    "url",
    [
        f"http://user:{SECRET}@a.example/x",
        f"http://a.example/x?X-Amz-Signature={SECRET}",
        f"http://a.example/x?token={SECRET}",
        f"http://a.example/x#access_token={SECRET}",
    ],
)
def test_an_address_that_opens_something_is_refused_and_never_repeated(url: str) -> None:
    with pytest.raises(FailedPrecondition, match="without login, signature") as refused:
        files(document(file(inside=f"<url>{url}</url>")))
    assert SECRET not in str(refused.value)


def many(text: str, count: int) -> Iterator[bytes]:
    yield f"<metalink {SPACE}>".encode()
    for at in range(0, count, 100):
        yield "".join(text.format(n) for n in range(at, at + 100)).encode()


LAYERS = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 9))
HOSTILE: list[tuple[Iterable[bytes], str]] = [
    (
        [document(file("&e8;"), before=f'<!DOCTYPE metalink [<!ENTITY e0 "boom">{LAYERS}]>')],
        "a document type declaration",
    ),
    (
        [document(file("&x;"), before='<!DOCTYPE metalink [<!ENTITY x SYSTEM "file:///etc/passwd">]>')],
        "a document type declaration",
    ),
    (
        [document(file(), before='<!DOCTYPE metalink SYSTEM "http://127.0.0.1/x.dtd">')],
        "a document type declaration",
    ),
    ([document(file("&x;"))], "invalid XML"),
    ([document(file())[:-5]], "invalid XML or UTF-8 from here on, or cut short"),
    ([b""], "invalid XML"),
    ([b"\xff\xfe<\x00m\x00"], "invalid XML"),
    ([b"<html><body>log in</body></html>"], "not a Metalink 4 document"),
    ([document(file(), root='<metalink xmlns="http://www.metalinker.org/">')], "not a Metalink 4 document"),
    ([document(file(), root="<metalink>")], "not a Metalink 4 document"),
    ([document()], "names no file"),
    (
        [document(file(), root=f'<x:metalink xmlns:x="urn:x" {SPACE}>').replace(b"</m", b"</x:m")],
        "not a Metalink 4 document",
    ),
    (many("<x>", 200_000), "more than 16 deep"),
    (many("<n{0}/>", 5_000_000), "over 1000 names"),
    (many('<n a{0}="x"/>', 5_000_000), "over 1000 names"),
    (many('<n xmlns:a{0}="x"/>', 5_000_000), "over 1000 names"),
    (
        (piece if n else piece + b'<file name="' for n, piece in enumerate(many("x" * 100, 1_000_000))),
        "over 1 MiB",
    ),
    ((piece if n else piece + b"<!--" for n, piece in enumerate(many("x" * 100, 1_000_000))), "over 1 MiB"),
    (many("x" * 1000, 100_000), "more than 64 MiB"),
    (many('<file name="{0}"><url>http://a.example/{0}</url></file>', 200_000), "more than 100000 files"),
    (many('<file name="{0}"><url>http://a{0}.example/</url></file>', 1_000), "one more host"),
]


@pytest.mark.parametrize(("body", "words"), HOSTILE, ids=[words for _, words in HOSTILE])
def test_a_hostile_document_is_refused_in_bounded_memory(body: Iterable[bytes], words: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises((FailedPrecondition, OutOfRange), match=words):
            for _ in parse_files(body, ADDRESS, "the document"):
                pass
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_a_document_that_came_by_https_names_no_file_by_http() -> None:
    either = '<url priority="1">http://a.example/x</url><url priority="2">https://a.example/x</url>'
    assert [listed.url for listed in files(document(file(inside=either)), "https://files.example/x")] == [
        "https://a.example/x"
    ]
    with pytest.raises(PermissionDenied, match="line 2, file 'a': its URLs are http.*give it an https URL"):
        files(document(file()), "https://files.example/x")
