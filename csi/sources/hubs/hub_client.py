"""HTTP client for huggingface_hub, with bounded waits, no stray credentials, and our own errors.

Its default client waits for ever, keeps cookies from one token to the next, and retries failures for up to
half a minute, which callers of this driver would rather hear of.
"""

from __future__ import annotations

from typing import Any

import httpx2

from csi.destinations.destinations import Destinations
from csi.errors import OriginUnavailable
from csi.sources.http.connections import CONNECT_TIMEOUT, IDLE_TIMEOUT, READ_TIMEOUT, unreachable_error
from csi.sources.http.environment import get_ssl_context
from csi.sources.http.file_urls import MAX_REDIRECTS
from csi.sources.http.response_checks import transient_error
from csi.sources.http.sites import Site, format_site, parse_site
from csi.sources.hubs.redirect_policy import check_hop

_TIMEOUT = httpx2.Timeout(READ_TIMEOUT, connect=CONNECT_TIMEOUT)
_LIMITS = httpx2.Limits(max_keepalive_connections=2, keepalive_expiry=IDLE_TIMEOUT)
# Errors of an idle connection that the peer has closed. One retry is safe, as all requests only read.
_STALE_CONNECTION_ERRORS = (httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.WriteError)


class HubClient(httpx2.Client):
    """HTTP client for the hub at `hub_site`.

    Sends Authorization to no other site, and requests only where allowed.

    The addresses of each redirect's host are checked against `destinations` before it is followed. Only
    metadata is fetched here; file bytes go through the ranged HTTP reader, which connects exactly to the
    checked address.
    """

    def __init__(self, hub_site: Site, destinations: Destinations | None = None) -> None:
        hooks = {"request": [self._check]}
        super().__init__(
            verify=get_ssl_context(),
            follow_redirects=True,
            max_redirects=MAX_REDIRECTS,
            limits=_LIMITS,
            event_hooks=hooks,
        )
        self._hub_site, self._destinations = hub_site, destinations or Destinations()

    def _check(self, request: httpx2.Request) -> None:
        check_hop(self._destinations, self._hub_site, parse_site(str(request.url)))

    def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send like httpx2.Client.send.

        Raises OriginUnavailable and OriginThrottled for temporary failures.
        """
        url = str(request.url)
        request.extensions = {**request.extensions, "timeout": _TIMEOUT.as_dict()}
        if parse_site(url) != self._hub_site:
            request.headers.pop("Authorization", None)
        # A session cookie of one token must not reach requests with another.
        self.cookies.clear()
        try:
            response = self._send_with_retry(request, options)
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            raise unreachable_error(error, format_site(url)) from error
        except httpx2.TooManyRedirects as error:
            raise OriginUnavailable(f"{format_site(url)}: more than {MAX_REDIRECTS} redirects") from error
        if response.status_code in (408, 429) or response.status_code >= 500:
            response.close()
            raise transient_error(
                response.status_code, response.headers, f"{format_site(url)} answered {response.status_code}"
            )
        return response

    def _send_with_retry(self, request: httpx2.Request, options: dict[str, Any]) -> httpx2.Response:
        try:
            return super().send(request, **options)
        except _STALE_CONNECTION_ERRORS:
            return super().send(request, **options)
