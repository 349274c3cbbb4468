"""Addresses of HTTP origins as users write them; addresses that contain a secret are refused."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from urllib.parse import SplitResult, unquote_plus, urlsplit

from csi.errors import InvalidParameter
from csi.values import redact

# DNS names of at most 253 characters; underscores occur in internal names.
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?\.?")
_PORTS = {"http": 80, "https": 443}
# Words in names of query parameters whose value grants access: signatures and keys of S3, OSS, COS, TOS, GCS,
# Azure and CDNs, plain tokens, and keys of shared links. "expires" is here because a URL that expires is a
# signed one, whatever its signature is called (nginx's secure_link calls it md5).
_CREDENTIAL_WORDS = frozenset(
    "sig sign signature hmac jwt key ak sk akid auth oauth authkey authorization bearer pwd pass passphrase "
    "code policy expires verify "
    "hdnts hdnea hdntl gda rlkey resourcekey sessionid jsessionid".split()
)
_CREDENTIAL_PARTS = re.compile(
    r"token(?!i[sz])|secret|passwo?r?d|credential|signature|(access|api)[^a-z]?key"
)
# The words of CamelCase, snake_case and kebab-case names.
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
# "~" separates the fields of Akamai's single token parameter; "?" begins the query of a URL within the URL.
_SEPARATORS = re.compile(r"[&;~?]")


def parse_http_url(key: str, text: str) -> SplitResult:
    """Parse `text` as an http or https URL.

    Raises InvalidParameter naming `key` if it is not one, or if it carries a credential.
    """
    try:
        url = urlsplit(text)
        is_port_valid = url.port is None or url.port > 0
    except ValueError:
        is_port_valid, url = False, SplitResult("", "", "", "", "")
    if "@" in url.netloc or _carries_credential(f"{url.query}&{url.fragment}"):
        raise InvalidParameter(
            f"{key} carries a credential (a login or a signature), which does not belong in parameters; "
            "give the plain URL, and a token in a Secret"
        )
    if (
        url.scheme.lower() not in _PORTS
        or not _is_host(url.hostname or "")
        or not is_port_valid
        or _has_blanks(text)
    ):
        raise InvalidParameter(f"{key} is {redact(text, 100)}; it is an http:// or https:// URL")
    return url


def parse_endpoint(key: str, text: str) -> str:
    """Parse a service address (URL without path, or bare host) into "https://host[:port]".

    The scheme is https for a bare host. Raises InvalidParameter naming `key`.
    """
    url = parse_http_url(key, text if "://" in text else f"https://{text}")
    if url.path.strip("/") or url.query or url.fragment:
        raise InvalidParameter(
            f"{key} is {redact(text, 100)}; it is a host, or http(s)://host[:port], without path and query"
        )
    return f"{url.scheme.lower()}://{format_address(url)}"


def format_address(url: SplitResult) -> str:
    """Return the host of `url` in lower case, with its port unless it is the scheme's default."""
    host = (url.hostname or "").lower().rstrip(".")
    host = f"[{host}]" if ":" in host else host
    return host if url.port in (None, _PORTS[url.scheme.lower()]) else f"{host}:{url.port}"


def unique_addresses(urls: Iterable[str]) -> tuple[str, ...]:
    """Return the distinct hosts of `urls`, formatted by `format_address`, in order."""
    return tuple(dict.fromkeys(format_address(urlsplit(url)) for url in urls))


def can_have_subdomains(host: str) -> bool:
    """Return whether names below `host` can exist: not for IP addresses and bare names such as localhost."""
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
