"""A page of a bucket's listing: ListBucketResult, the XML response of ListObjectsV2.

Source: Amazon S3, "ListObjectsV2": Contents with Key, LastModified, Size and ETag, IsTruncated and
NextContinuationToken. If the response has EncodingType "url", keys are form-encoded: "%2F" for "/", "+" for a
blank.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import unquote_plus
from xml.parsers import expat

from csi.sources.plain_xml import XmlHandler, create_parser
from csi.values import parse_decimal

_ROOT_ELEMENT = "ListBucketResult"
_OBJECT_PATH = [_ROOT_ELEMENT, "Contents"]
# Limits against hostile responses.
_MAX_DEPTH = 16
_MAX_OBJECT_SIZE = 1 << 62


class ListedObject(NamedTuple):
    """An object as its bucket lists it; `etag` is "" if the store gives none."""

    key: str
    size: int
    mtime_ns: int
    etag: str


@dataclass
class ListingPage:
    """Objects in the store's order, and whether more follow.

    `continuation_token` is "" if the response has none.
    """

    objects: list[ListedObject] = field(default_factory=list)
    is_truncated: bool = False
    continuation_token: str = ""


def parse_page(body: bytes) -> ListingPage:
    """Parse a page; raises ValueError, without quoting the body, if it is not one or has a document type."""
    handler = _PageHandler()
    parser = create_parser(handler)
    try:
        parser.Parse(body, True)
    except expat.ExpatError as error:
        raise ValueError("invalid XML, or cut short") from error
    return handler.build()


class _PageHandler(XmlHandler):
    """Collects the fields of the page and of the current object.

    Unknown nested elements (Owner) are ignored.
    """

    def __init__(self) -> None:
        self._path: list[str] = []
        self._characters: list[str] = []
        self._page_fields: dict[str, str] = {}
        self._object_fields: dict[str, str] = {}
        self._objects: list[ListedObject] = []

    def on_start_element(self, name: str, _: dict[str, str]) -> None:
        self._path.append(name.rpartition(":")[2])
        self._characters.clear()
        if self._path[0] != _ROOT_ELEMENT or len(self._path) > _MAX_DEPTH:
            raise ValueError("not a listing")

    def on_text(self, text: str) -> None:
        self._characters.append(text)

    def on_end_element(self, _: str) -> None:
        name, text = self._path.pop(), "".join(self._characters)
        self._characters.clear()
        if self._path == _OBJECT_PATH:
            self._object_fields[name] = text
        elif self._path == [_ROOT_ELEMENT] and name == _OBJECT_PATH[1]:
            self._objects.append(_parse_object(self._object_fields))
            self._object_fields = {}
        elif self._path == [_ROOT_ELEMENT]:
            self._page_fields[name] = text

    def build(self) -> ListingPage:
        token = self._page_fields.get("NextContinuationToken", "")
        truncated = self._page_fields.get("IsTruncated", "").strip()
        if truncated not in ("true", "false", ""):
            raise ValueError("IsTruncated is neither true nor false")
        if self._page_fields.get("EncodingType", "").strip() == "url":
            self._objects = [
                item._replace(key=unquote_plus(item.key, errors="strict")) for item in self._objects
            ]
        return ListingPage(self._objects, truncated == "true" if truncated else bool(token), token)


def _parse_object(fields: dict[str, str]) -> ListedObject:
    key, size = fields.get("Key", ""), parse_decimal(fields.get("Size", "").strip())
    if not key or size is None or size > _MAX_OBJECT_SIZE:
        raise ValueError("an object without a key or a size")
    return ListedObject(
        key, size, _parse_time_ns(fields.get("LastModified", "").strip()), fields.get("ETag", "")
    )


def _parse_time_ns(text: str) -> int:
    """Parse an RFC 3339 time into nanoseconds since 1970, to the microsecond."""
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError("an object with an invalid time") from error
    moment = moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
    # Integers throughout: timestamp() is a float, which cannot hold nanoseconds.
    since_epoch = moment.replace(microsecond=0) - datetime.datetime.fromtimestamp(0, datetime.UTC)
    return (since_epoch.days * 86400 + since_epoch.seconds) * 10**9 + moment.microsecond * 1000
