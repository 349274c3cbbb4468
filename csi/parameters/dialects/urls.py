"""Plain files by their URLs, or by the URL of a Metalink document (RFC 5854) that lists them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from csi.errors import InvalidParameter
from csi.parameters.dialects.endpoints import parse_http_url, unique_addresses
from csi.parameters.dialects.keys import Dialect, Key, MutableSource, SecretKey
from csi.parameters.dialects.mount_flags import refuse_mount_flags
from csi.values import join_list, redact, split_list

# All URLs are in the volume context, which is part of the PV and of every CSI call.
MAX_URLS = 1000
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
# "path=URL". A bare URL must not match, though its query may contain "=http://...".
_PATH_AND_URL = re.compile(r"(?!https?://)(.+?)=(https?://.*)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class UrlFile:
    """One file: its URL, the expected sha256 (64 hex digits, "" for none), and its path if given."""

    url: str
    sha256: str = ""
    given_path: str = ""

    @property
    def path(self) -> str:
        """The file's path in the volume: the given one, else the last segment of the URL's path."""
        return self.given_path or unquote(urlsplit(self.url).path.rpartition("/")[2])

    @property
    def as_item(self) -> str:
        """The file as an item of the key `url`."""
        return f"{self.given_path}={self.url}" if self.given_path else self.url


@dataclass(frozen=True)
class UrlSpec(MutableSource):
    """Files of HTTP servers: `files`, or those listed by the document at `metalink`.

    `metalink` is "" for none; otherwise `files` is empty.
    """

    files: tuple[UrlFile, ...] = ()
    metalink: str = ""

    @property
    def display_name(self) -> str:
        """The source as messages name it: hosts and names, without queries."""
        if self.metalink:
            return f"Metalink {self.addresses[0]} {UrlFile(self.metalink).path!r}"
        more = f" and {len(self.files) - 1} more" if len(self.files) > 1 else ""
        return f"URL {self.addresses[0]} {self.files[0].path!r}{more}"

    @property
    def grants_whole_scope(self) -> bool:
        """False for a Metalink document.

        A server may grant each path to others, and verification reads only some files.
        """
        return not self.metalink

    @property
    def origin_scope(self) -> str:
        """These files, or what the document lists."""
        if self.metalink:
            return f"Metalink {self.metalink}"
        return "URL " + " ".join(file.url for file in self.files)

    @property
    def addresses(self) -> tuple[str, ...]:
        """The hosts of the URLs.

        For a document only its own, since that host answers for what the document lists.
        """
        return unique_addresses([self.metalink] if self.metalink else (file.url for file in self.files))

    def to_context(self) -> dict[str, str]:
        if self.metalink:
            return {"type": "URL", "metalink": self.metalink}
        context = {"type": "URL", "url": join_list(tuple(file.as_item for file in self.files))}
        # "-" stands for a file without a checksum.
        checksums = tuple(file.sha256 or "-" for file in self.files)
        return context | ({"sha256": ",".join(checksums)} if any(file.sha256 for file in self.files) else {})


def _parse_url_source(values: Mapping[str, str], flags: Sequence[str]) -> UrlSpec:
    refuse_mount_flags(flags, "a URL")
    if values.get("metalink"):
        return _parse_metalink_source(values)
    urls = split_list(values.get("url", ""))
    if not urls:
        raise InvalidParameter(
            "url is missing; give one http:// or https:// URL, or several by commas or one a line, "
            "or as metalink the URL of a Metalink document"
        )
    if len(urls) > MAX_URLS:
        raise InvalidParameter(
            f"url has {len(urls)} URLs; at most {MAX_URLS} make a volume; "
            "a Metalink document (key metalink) can name more"
        )
    files = tuple(
        _parse_file(url, sha256)
        for url, sha256 in zip(urls, _parse_checksums(values.get("sha256", ""), len(urls)), strict=True)
    )
    _check_paths(files)
    return UrlSpec(files)


def _parse_metalink_source(values: Mapping[str, str]) -> UrlSpec:
    for key, remedy in (
        ("url", "keep one of them"),
        ("sha256", "the document has the sums of its files; remove sha256, or give url"),
    ):
        if values.get(key):
            raise InvalidParameter(f"metalink and {key} are both given; {remedy}")
    return UrlSpec(metalink=parse_http_url("metalink", values["metalink"])._replace(fragment="").geturl())


def _parse_file(text: str, sha256: str) -> UrlFile:
    match = _PATH_AND_URL.fullmatch(text)
    url = parse_http_url("url", match[2] if match else text)
    return UrlFile(url._replace(fragment="").geturl(), sha256, match[1] if match else "")


def _parse_checksums(text: str, count: int) -> list[str]:
    checksums = [
        "" if checksum == "-" else checksum.removeprefix("sha256:").lower() for checksum in split_list(text)
    ]
    if not checksums:
        return [""] * count
    if len(checksums) != count:
        raise InvalidParameter(
            f"sha256 has {len(checksums)} values for {count} URLs; "
            "give one for each, '-' for a file without one"
        )
    for checksum in checksums:
        if checksum and not _SHA256.fullmatch(checksum):
            raise InvalidParameter(f"sha256 is {redact(checksum, 70)}; it is 64 hex digits")
    return checksums


def _check_paths(files: Sequence[UrlFile]) -> None:
    seen: set[str] = set()
    for file in files:
        if (
            any(part in ("", ".", "..") for part in file.path.split("/"))
            or ("/" in file.path and not file.given_path)
            or "\0" in file.path
        ):
            raise InvalidParameter(
                f"url {redact(file.url, 100)} ends in no file name; "
                "give the URL of a file, or its path as path=URL"
            )
        if file.path in seen:
            raise InvalidParameter(
                f"url names two files {redact(file.path, 100)}; give them paths of their own as path=URL"
            )
        seen.add(file.path)


DIALECT = Dialect(
    "url",
    "a URL",
    "Plain files by URL",
    ("URL",),
    (
        Key(
            "url",
            "the file's http(s) URL, or several by commas or one a line; without login and signature; "
            "`path=URL` gives a file another path in the volume",
            "required, or `metalink`",
            is_required=True,
        ),
        Key(
            "metalink",
            "in place of `url`, the http(s) URL of a Metalink 4 document (RFC 5854), "
            "without login and signature, that names up to 100,000 files; "
            "those with `size` and a `sha-256` hash need no request when the volume is created",
            "none",
        ),
        Key(
            "sha256",
            "what the file's bytes must be: 64 hex digits, one for each URL, `-` for none; only with `url`",
            "not checked; computed by reading the file if its server sends no length, "
            "or neither ETag nor time",
        ),
    ),
    _parse_url_source,
    (
        SecretKey(
            "accessToken",
            "sent as `Authorization: Bearer` to the host of the URL or of the Metalink "
            "document, and no other",
        ),
        SecretKey("token", "the same"),
    ),
)
