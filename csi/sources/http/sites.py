"""Sites: scheme, host and port of a URL, within which a credential may be sent."""

from __future__ import annotations

import functools
from urllib.parse import urlsplit

from csi.errors import OriginUnavailable

_DEFAULT_PORTS = {"http": 80, "https": 443}

Site = tuple[str, str, int]


def parse_site(url: str) -> Site:
    """Return scheme, host and port of `url`: credentials for one site must not reach another.

    Raises OriginUnavailable unless it is an http or https URL.
    """
    return _parse_site(_strip_path(url))


def _strip_path(url: str) -> str:
    """Return `url` without its path, so that a million files of one site share one cache entry."""
    end = url.find("/", len("https://"))
    return url if end < 0 else url[:end]


@functools.lru_cache(maxsize=256)
def _parse_site(url: str) -> Site:
    try:
        parts = urlsplit(url)
        port = parts.port or _DEFAULT_PORTS[parts.scheme]
    except (ValueError, KeyError) as error:
        raise OriginUnavailable("the origin returned an address that is not an http or https URL") from error
    return parts.scheme, (parts.hostname or "").lower(), port


def format_site(url: str) -> str:
    """Return host and port of `url` for messages, without user, path and query."""
    return urlsplit(_strip_path(url)).netloc.rpartition("@")[2]
