"""Destination checks for the hubs' own clients, which resolve names and follow redirects by themselves."""

from __future__ import annotations

from csi.destinations.destinations import Destinations, lookup_host
from csi.errors import PermissionDenied
from csi.sources.http.connections import unreachable_error
from csi.sources.http.environment import is_proxied
from csi.sources.http.sites import Site


def check_hop(destinations: Destinations, origin_site: Site, target_site: Site) -> None:
    """Check that the client of the hub at `origin_site` may send a request to `target_site`.

    Every address of the name must be allowed, as we cannot tell which one the client connects to. Raises
    PermissionDenied, also for leaving https, and OriginUnavailable for a name that cannot be resolved.
    """
    if target_site == origin_site and destinations.trusted:
        return
    scheme, host, port = target_site
    if origin_site[0] == "https" and scheme != "https":
        raise PermissionDenied(
            f"{origin_site[1]} redirects from https to {scheme} ({host}), where anybody could change the data"
        )
    try:
        max_scope = destinations.max_scope(
            None if target_site == origin_site else origin_site[1], is_proxied(origin_site)
        )
        if is_proxied(target_site):
            destinations.check_literal_address(host, port, max_scope)
        else:
            destinations.check_all_allowed(host, port, lookup_host(host, port), max_scope)
    except (OSError, UnicodeError) as error:
        raise unreachable_error(error, f"{host}:{port}") from error
