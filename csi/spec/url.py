"""Plain files by their URLs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from csi.errors import InvalidParameter
from csi.spec.endpoints import addresses, http_url
from csi.spec.keys import Dialect, Key, SecretKey
from csi.spec.lists import join_list, split_list
from csi.spec.mount_flags import refuse_flags
from csi.spec.shown import shown

MOST_FILES = 1000
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True)
class UrlFile:
    """One file: its URL, and the sha256 that the user expects of its bytes (64 hex digits, "" for none)."""

    url: str
    sha256: str = ""

    @property
    def name(self) -> str:
        """The file's name in the volume: the last part of the URL's path."""
        return unquote(urlsplit(self.url).path.rpartition("/")[2])


@dataclass(frozen=True)
class UrlSpec:
    """Files of HTTP servers, each at the top of the volume."""

    files: tuple[UrlFile, ...]

    @property
    def shown(self) -> str:
        """The source as messages name it: hosts and names, no query."""
        more = f" and {len(self.files) - 1} more" if len(self.files) > 1 else ""
        return f"URL {self.addresses[0]} {self.files[0].name!r}{more}"

    @property
    def place(self) -> str:
        """What a credential opens: these files."""
        return "URL " + " ".join(file.url for file in self.files)

    @property
    def pinned(self) -> bool:
        """Never: a file at a URL is replaced in place."""
        return False

    @property
    def source_moves(self) -> bool:
        """Always."""
        return True

    @property
    def addresses(self) -> tuple[str, ...]:
        """The hosts of the URLs."""
        return addresses(file.url for file in self.files)

    def to_context(self) -> dict[str, str]:
        """The flat parameters that parse to this spec."""
        context = {"type": "URL", "url": join_list(tuple(file.url for file in self.files))}
        # "-" keeps the place of a file without one.
        sums = tuple(file.sha256 or "-" for file in self.files)
        return context | ({"sha256": ",".join(sums)} if any(file.sha256 for file in self.files) else {})


def _parse(values: Mapping[str, str], flags: Sequence[str]) -> UrlSpec:
    refuse_flags(flags, "a URL")
    urls = split_list(values.get("url", ""))
    if not urls:
        raise InvalidParameter("url is missing; give one http:// or https:// URL, or several by commas or one a line")
    if len(urls) > MOST_FILES:
        raise InvalidParameter(f"url has {len(urls)} URLs; at most {MOST_FILES} make a volume")
    files = tuple(UrlFile(_plain(url), sha256) for url, sha256 in zip(urls, _sums(values.get("sha256", ""), len(urls)), strict=True))
    _check_names(files)
    return UrlSpec(files)


def _plain(text: str) -> str:
    url = http_url("url", text)
    return url._replace(fragment="").geturl()


def _sums(text: str, count: int) -> list[str]:
    sums = ["" if part == "-" else part.removeprefix("sha256:").lower() for part in split_list(text)]
    if not sums:
        return [""] * count
    if len(sums) != count:
        raise InvalidParameter(f"sha256 has {len(sums)} values for {count} URLs; give one for each, '-' for a file without one")
    for part in sums:
        if part and not _SHA256.fullmatch(part):
            raise InvalidParameter(f"sha256 is {shown(part, 70)}; it is 64 hex digits")
    return sums


def _check_names(files: Sequence[UrlFile]) -> None:
    seen: set[str] = set()
    for file in files:
        if not file.name or file.name in (".", "..") or "/" in file.name or "\0" in file.name:
            raise InvalidParameter(f"url {shown(file.url, 100)} ends in no file name; give the URL of a file")
        if file.name in seen:
            raise InvalidParameter(f"url names two files {shown(file.name, 100)}; give them folders of their own with sources")
        seen.add(file.name)


DIALECT = Dialect(
    "url",
    "a URL",
    ("URL",),
    (
        Key("url", "the file's http(s) URL, or several by commas or one a line; without login and signature", "required"),
        Key("sha256", "what the file's bytes must be: 64 hex digits, one for each URL, `-` for none", "not checked"),
    ),
    _parse,
    (
        SecretKey("accessToken", "sent as `Authorization: Bearer` to the host of the URL"),
        SecretKey("token", "the same"),
    ),
)
