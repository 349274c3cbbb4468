"""What a page of a listing says, in every spelling of stores, and what is no page."""

from __future__ import annotations

import pytest

from csi.sources.buckets.listing_page import ListedObject, ListingPage, parse_page
from tests.csi.sources.buckets.origin import list_bucket

NAMESPACE = b'<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
SECOND = 10**9


def objects(*fields: str, more: str = "") -> bytes:
    return f"<ListBucketResult>{more}{''.join(f'<Contents>{one}</Contents>' for one in fields)}</ListBucketResult>".encode()  # noqa: E501


def one(key: str = "a", size: str = "1", moved: str = "2026-01-02T03:04:05.678Z") -> str:
    return f"<Key>{key}</Key><LastModified>{moved}</LastModified><Size>{size}</Size>"


def test_a_page_is_read_with_or_without_a_namespace() -> None:
    page = parse_page(list_bucket("a &amp; b", more="next").replace(b"<ListBucketResult>", NAMESPACE))
    assert page == ListingPage(
        [ListedObject("a & b", 1, 1767323045 * SECOND + 678_000_000, '"e"')], True, "next"
    )


def test_what_elements_within_an_object_say_is_not_the_objects() -> None:
    owner = "<Owner><Key>other</Key><Size>9</Size></Owner><RestoreStatus><Size>7</Size></RestoreStatus>"
    common = "<CommonPrefixes><Prefix>x</Prefix></CommonPrefixes>"
    assert [(item.key, item.size) for item in parse_page(objects(one() + owner, more=common)).objects] == [
        ("a", 1)
    ]


@pytest.mark.parametrize(
    ("encoding", "written", "key"),
    [
        ("url", "a+b%2Bc%25%C3%BC%0A%2F", "a b+c%ü\n/"),
        ("url", "a%20b/c", "a b/c"),
        # Stores that do not know encoding-type say nothing of it, or nothing in it.
        ("", "a+b%2Bc", "a+b%2Bc"),
    ],
)
def test_keys_are_decoded_where_the_store_says_that_they_are_encoded(
    encoding: str, written: str, key: str
) -> None:
    for told in (
        f"<EncodingType>{encoding}</EncodingType>",
        "" if not encoding else f"<EncodingType> {encoding} </EncodingType>",
    ):
        assert [item.key for item in parse_page(objects(one(written), more=told)).objects] == [key]


@pytest.mark.parametrize(
    ("said", "more"),
    [("<IsTruncated>true</IsTruncated>", True), ("<IsTruncated>false</IsTruncated>", False), ("", True)],
)
def test_whether_more_follows_is_the_stores_word_else_the_tokens(said: str, more: bool) -> None:
    page = parse_page(objects(one(), more=said + "<NextContinuationToken>t</NextContinuationToken>"))
    assert (page.is_truncated, page.continuation_token) == (more, "t")


def test_times_are_exact_to_the_microsecond_in_any_zone() -> None:
    moved = (
        "1970-01-01T00:00:00Z",
        "1970-01-01T01:00:00.000001+01:00",
        "1970-01-01T00:00:00",
        "1969-12-31T23:59:59.5Z",
    )
    assert [item.mtime_ns for item in parse_page(objects(*(one(moved=text) for text in moved))).objects] == [
        0,
        1000,
        0,
        -SECOND // 2,
    ]


def test_entities_of_its_own_are_not_expanded() -> None:
    layers = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 9))
    bomb = f'<!DOCTYPE ListBucketResult [<!ENTITY e0 "boom">{layers}]>'.encode() + objects(one("&e8;"))
    with pytest.raises(ValueError, match="a document type of its own"):
        parse_page(bomb)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>hello</html>",
        b'<?xml version="1.0" encoding="rot13"?><html/>',
        list_bucket("a")[:-5],
        b"\xff\xfe",
        b"<ListBucketResult>" * 100_000,
        objects("<Size>1</Size>"),
        objects(one(size="many")),
        objects(one(size="-1")),
        objects(one(size="9" * 5000)),
        objects(one(moved="yesterday")),
        objects(one(), more="<IsTruncated>perhaps</IsTruncated>"),
        objects(one("%FF"), more="<EncodingType>url</EncodingType>"),
    ],
)
def test_what_is_no_page_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError) as error:
        parse_page(body)
    assert "yesterday" not in str(error.value)
    assert "many" not in str(error.value)
