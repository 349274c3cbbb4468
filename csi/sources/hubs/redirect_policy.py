"""Where a hub's own client may go, which resolves names and follows redirects by itself: each hop is judged before it is taken."""

from __future__ import annotations

from csi.destinations.destinations import Destinations, resolved
from csi.errors import PermissionDenied
from csi.sources.http.connections import Site, is_proxied, unreachable


def check_hop(destinations: Destinations, home: Site, there: Site) -> None:
    """Return when the client of the hub at `home` may ask `there`, at each address that its name has: which one it takes is not ours to say.

    Raises PermissionDenied, also for what leaves https, and OriginUnavailable for a name that cannot be resolved.
    """
    if there == home and destinations.trusted:
        return
    scheme, host, port = there
    if home[0] == "https" and scheme != "https":
        raise PermissionDenied(f"{home[1]} redirects from https to {scheme} ({host}), where anybody could change what comes")
    try:
        farthest = destinations.farthest(None if there == home else home[1], is_proxied(home))
        if is_proxied(there):
            destinations.check_literal(host, port, farthest)
        else:
            destinations.check_all(host, port, resolved(host, port), farthest)
    except (OSError, UnicodeError) as error:
        raise unreachable(error, f"{host}:{port}") from error
