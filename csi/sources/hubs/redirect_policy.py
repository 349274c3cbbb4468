"""Where a hub's own client may go, which resolves names and follows redirects by itself: each hop is judged before it is taken."""

from __future__ import annotations

from csi.destinations.destinations import Destinations, lookup_host
from csi.errors import PermissionDenied
from csi.sources.http.connections import Site, is_proxied, unreachable_error


def check_hop(destinations: Destinations, origin_site: Site, target_site: Site) -> None:
    """Return when the client of the hub at `origin_site` may ask `target_site`, at each address that its name has: which one it takes is not ours to say.

    Raises PermissionDenied, also for what leaves https, and OriginUnavailable for a name that cannot be resolved.
    """
    if target_site == origin_site and destinations.trusted:
        return
    scheme, host, port = target_site
    if origin_site[0] == "https" and scheme != "https":
        raise PermissionDenied(
            f"{origin_site[1]} redirects from https to {scheme} ({host}), where anybody could change what comes"
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
