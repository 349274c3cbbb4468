"""Addresses of HTTP origins as users write them, without anything that is a secret."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from urllib.parse import SplitResult, unquote_plus, urlsplit

from csi.errors import InvalidParameter
from csi.values import redact

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?\.?")
_PORTS = {"http": 80, "https": 443}
# What names of query parameters hold where the value opens something: signatures and keys of S3, OSS, COS, TOS, GCS, Azure and CDNs, plain tokens,
# keys of links that are handed on. An address that ends is a signed one, whatever its signature is called (nginx's is md5).
_CREDENTIAL_WORDS = frozenset(
    "sig sign signature hmac jwt key ak sk akid auth oauth authkey authorization bearer pwd pass passphrase code policy expires verify "
    "hdnts hdnea hdntl gda rlkey resourcekey sessionid jsessionid".split()
)
_CREDENTIAL_PARTS = re.compile(
    r"token(?!i[sz])|secret|passwo?r?d|credential|signature|(access|api)[^a-z]?key"
)
# Words of CamelCase, snake_case and kebab-case.
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
# "~" separates the parts of a CDN's one parameter; "?" begins the query of an address within the address.
_SEPARATORS = re.compile(r"[&;~?]")


def parse_http_url(key: str, text: str) -> SplitResult:
    """`text` as an http or https URL. Raises InvalidParameter naming `key`, also for one that carries a credential."""
    try:
        url = urlsplit(text)
        port_is_right = url.port is None or url.port > 0
    except ValueError:
        port_is_right, url = False, SplitResult("", "", "", "", "")
    if "@" in url.netloc or _carries_credential(f"{url.query}&{url.fragment}"):
        raise InvalidParameter(
            f"{key} carries a credential (a login or a signature), which does not belong into parameters; give the plain URL, and a token in a Secret"
        )
    if (
        url.scheme.lower() not in _PORTS
        or not _is_host(url.hostname or "")
        or not port_is_right
        or _has_blanks(text)
    ):
        raise InvalidParameter(f"{key} is {redact(text, 100)}; it is an http:// or https:// URL")
    return url


def parse_endpoint(key: str, text: str) -> str:
    """ "https://host[:port]" of a service named by `text`, a URL without path or a bare host; raises InvalidParameter naming `key`."""
    url = parse_http_url(key, text if "://" in text else f"https://{text}")
    if url.path.strip("/") or url.query or url.fragment:
        raise InvalidParameter(
            f"{key} is {redact(text, 100)}; it is a host, or http(s)://host[:port], without path and query"
        )
    return f"{url.scheme.lower()}://{format_address(url)}"


def format_address(url: SplitResult) -> str:
    """The host of `url` in small letters, with its port unless it is the scheme's own."""
    host = (url.hostname or "").lower().rstrip(".")
    host = f"[{host}]" if ":" in host else host
    return host if url.port in (None, _PORTS[url.scheme.lower()]) else f"{host}:{url.port}"


def unique_addresses(urls: Iterable[str]) -> tuple[str, ...]:
    """The different hosts of URLs, as `format_address` writes them, in order."""
    return tuple(dict.fromkeys(format_address(urlsplit(url)) for url in urls))


def can_have_subdomains(host: str) -> bool:
    """Whether names below `host` can exist: neither an IP address nor a bare name such as localhost."""
    return not _is_ip(host) and "." in host.strip(".")


def _carries_credential(query: str) -> bool:
    names = (part.partition("=")[0] for part in _SEPARATORS.split(unquote_plus(query)))
    return any(
        _CREDENTIAL_PARTS.search(name.lower())
        or not _CREDENTIAL_WORDS.isdisjoint(word.lower() for word in _WORD.findall(name))
        for name in names
    )


def _is_host(host: str) -> bool:
    return _HOST.fullmatch(host) is not None or _is_ip(host)


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _has_blanks(text: str) -> bool:
    return any(character <= " " or character == "\x7f" for character in text)
