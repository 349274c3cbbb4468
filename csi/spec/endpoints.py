"""Addresses of HTTP origins as users write them, without anything that is a secret."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from urllib.parse import SplitResult, parse_qsl, urlsplit

from csi.errors import InvalidParameter
from csi.spec.shown import shown

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?\.?")
_PORTS = {"http": 80, "https": 443}
# Query parameters of signed addresses (S3, OSS, GCS, Azure, CDNs) and of plain tokens.
_SIGNED = re.compile(r"(x-(amz|oss|goog)-(signature|credential|security-token)|signature|ossaccesskeyid|awsaccesskeyid|sig|key-pair-id|policy)")
_TOKEN = re.compile(r".*(token|secret|password|passwd|api[_-]?key|auth|credential).*")


def http_url(key: str, text: str) -> SplitResult:
    """`text` as an http or https URL. Raises InvalidParameter naming `key`, also for one that carries a credential."""
    try:
        url = urlsplit(text)
        port_is_right = url.port is None or url.port > 0
    except ValueError:
        port_is_right, url = False, SplitResult("", "", "", "", "")
    if "@" in url.netloc or any(_secret(name) for name, _ in parse_qsl(url.query, keep_blank_values=True)):
        raise InvalidParameter(
            f"{key} carries a credential (a login or a signature), which does not belong into parameters; give the plain URL, and a token in a Secret"
        )
    if url.scheme.lower() not in _PORTS or not _is_host(url.hostname or "") or not port_is_right or _has_blanks(text):
        raise InvalidParameter(f"{key} is {shown(text, 100)}; it is an http:// or https:// URL")
    return url


def endpoint(key: str, text: str) -> str:
    """ "https://host[:port]" of a service named by `text`, a URL without path or a bare host; raises InvalidParameter naming `key`."""
    url = http_url(key, text if "://" in text else f"https://{text}")
    if url.path.strip("/") or url.query or url.fragment:
        raise InvalidParameter(f"{key} is {shown(text, 100)}; it is a host, or http(s)://host[:port], without path and query")
    return f"{url.scheme.lower()}://{address(url)}"


def address(url: SplitResult) -> str:
    """The host of `url` in small letters, with its port unless it is the scheme's own."""
    host = (url.hostname or "").lower().rstrip(".")
    host = f"[{host}]" if ":" in host else host
    return host if url.port in (None, _PORTS[url.scheme.lower()]) else f"{host}:{url.port}"


def addresses(urls: Iterable[str]) -> tuple[str, ...]:
    """The different hosts of URLs, as `address` writes them, in order."""
    return tuple(dict.fromkeys(address(urlsplit(url)) for url in urls))


def has_subdomains(host: str) -> bool:
    """Whether names below `host` can exist: neither an IP address nor a bare name such as localhost."""
    return not _is_ip(host) and "." in host.strip(".")


def _secret(name: str) -> bool:
    return _SIGNED.fullmatch(name.lower()) is not None or _TOKEN.fullmatch(name.lower()) is not None


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
