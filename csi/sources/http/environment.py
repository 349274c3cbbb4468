"""What the environment says about connections: proxies, and the CA certificates to trust.

The variables are those of curl and the hub clients: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY, and for
trust REQUESTS_CA_BUNDLE, SSL_CERT_FILE or CURL_CA_BUNDLE (the first one that is set).
"""

from __future__ import annotations

import functools
import ipaddress
import os
import ssl
import urllib.request
from urllib.parse import unquote, urlsplit, urlunsplit

from csi.errors import InvalidParameter
from csi.sources.http.sites import Site

CA_BUNDLE_VARIABLES = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE")


def get_ssl_context() -> ssl.SSLContext:
    """Return the trusted certificates.

    Raises InvalidParameter if the environment names an unreadable bundle.
    """
    return _load_ssl_context(*find_ca_bundle())


@functools.lru_cache(maxsize=1)
def _load_ssl_context(variable: str, path: str) -> ssl.SSLContext:
    """Load the certificates, cached: parsing them takes longer than a request to a near hub."""
    if not variable:
        return ssl.create_default_context()
    try:
        return (
            ssl.create_default_context(capath=path)
            if os.path.isdir(path)
            else ssl.create_default_context(cafile=path)
        )
    except OSError as error:
        message = (
            f"{variable} names {path!r}, which cannot be read as a bundle of CA certificates; "
            "correct it in the plugin's environment"
        )
        raise InvalidParameter(message) from error


def find_proxy(url: str) -> str:
    """Return the proxy that the environment names for `url`, "" for none."""
    parts = urlsplit(url)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all") or ""
    if (
        not proxy
        or urllib.request.proxy_bypass(parts.netloc.rpartition("@")[2])
        or _is_in_networks(parts.hostname or "", proxies.get("no", ""))
    ):
        return ""
    return proxy if "://" in proxy else f"http://{proxy}"


def _is_in_networks(host: str, no_proxy: str) -> bool:
    """Return whether `host` is an address in one of the networks in NO_PROXY.

    Clusters put CIDR networks there; Python's proxy_bypass compares names only.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return any(
        address in network for network in map(_parse_network, no_proxy.split(",")) if network is not None
    )


def _parse_network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text.strip(), strict=False)
    except ValueError:
        return None


def is_proxied(target_site: Site) -> bool:
    """Return whether requests to this site go through a proxy."""
    return bool(find_proxy("{}://{}:{}/".format(*target_site)))


def find_ca_bundle() -> tuple[str, str]:
    """Return the variable that names the trusted certificates and their file or folder.

    "" for the system's.
    """
    return next(((key, os.environ[key]) for key in CA_BUNDLE_VARIABLES if os.environ.get(key)), ("", ""))


def split_login(proxy: str) -> tuple[str, str]:
    """Split a proxy URL into the URL without login and the login as "user:password" ("" for none)."""
    parts = urlsplit(proxy)
    login, _, host = parts.netloc.rpartition("@")
    return urlunsplit((parts.scheme, host, "", "", "")), unquote(login)
