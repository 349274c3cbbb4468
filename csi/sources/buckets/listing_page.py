"""A page of a bucket's listing: ListBucketResult, the XML that ListObjectsV2 answers with.

Amazon S3, "ListObjectsV2": Contents with Key, LastModified, Size and ETag, IsTruncated and NextContinuationToken. Where the answer has
EncodingType "url", keys are as in a form's field: "%2F" for "/", "+" for a blank.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import unquote_plus
from xml.parsers import expat

from csi.sources.plain_xml import plain_parser
from csi.values import whole_number

_ROOT = "ListBucketResult"
_OBJECT = [_ROOT, "Contents"]
_DEEPEST = 16
_LARGEST_SIZE = 1 << 62


class Listed(NamedTuple):
    """An object as its bucket lists it; `etag` is "" where the store gives none."""

    key: str
    size: int
    mtime_ns: int
    etag: str


@dataclass
class Page:
    """Objects, in the store's order, and whether more follow, after `token` ("" where the answer has none)."""

    objects: list[Listed] = field(default_factory=list)
    more: bool = False
    token: str = ""


def parse_page(body: bytes) -> Page:
    """The page that `body` holds; raises ValueError (with no word of the body) for what is none, and for a document type of its own."""
    reading = _Reading()
    parser = plain_parser(reading)
    try:
        parser.Parse(body, True)
    except expat.ExpatError as error:
        raise ValueError("no XML, or cut short") from error
    return reading.page()


class _Reading:
    """What the parser has come by: the fields of the page, and those of the object it is in. Elements within elements that it does not know
    (Owner, RestoreStatus) are left out."""

    def __init__(self) -> None:
        self._where: list[str] = []
        self._text: list[str] = []
        self._fields: dict[str, str] = {}
        self._of_object: dict[str, str] = {}
        self._objects: list[Listed] = []

    def start(self, name: str, _: dict[str, str]) -> None:
        self._where.append(name.rpartition(":")[2])
        self._text.clear()
        if self._where[0] != _ROOT or len(self._where) > _DEEPEST:
            raise ValueError("no listing")

    def text(self, text: str) -> None:
        self._text.append(text)

    def end(self, _: str) -> None:
        name, text = self._where.pop(), "".join(self._text)
        self._text.clear()
        if self._where == _OBJECT:
            self._of_object[name] = text
        elif self._where == [_ROOT] and name == _OBJECT[1]:
            self._objects.append(_listed(self._of_object))
            self._of_object = {}
        elif self._where == [_ROOT]:
            self._fields[name] = text

    def page(self) -> Page:
        token, truncated = self._fields.get("NextContinuationToken", ""), self._fields.get("IsTruncated", "").strip()
        if truncated not in ("true", "false", ""):
            raise ValueError("IsTruncated is neither true nor false")
        if self._fields.get("EncodingType", "").strip() == "url":
            self._objects = [item._replace(key=unquote_plus(item.key, errors="strict")) for item in self._objects]
        return Page(self._objects, truncated == "true" if truncated else bool(token), token)


def _listed(fields: dict[str, str]) -> Listed:
    key, size = fields.get("Key", ""), whole_number(fields.get("Size", "").strip())
    if not key or size is None or size > _LARGEST_SIZE:
        raise ValueError("an object without a key or a size")
    return Listed(key, size, _nanoseconds(fields.get("LastModified", "").strip()), fields.get("ETag", ""))


def _nanoseconds(text: str) -> int:
    """Since 1970, of a time as RFC 3339 writes it, to the microsecond."""
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError("an object with a time that is none") from error
    moment = moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
    whole = moment.replace(microsecond=0) - datetime.datetime.fromtimestamp(0, datetime.UTC)
    return (whole.days * 86400 + whole.seconds) * 10**9 + moment.microsecond * 1000
