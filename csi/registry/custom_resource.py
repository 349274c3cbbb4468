"""What the driver's custom resources have in common: group and version, how times are written, conditions, a status that is applied.

Source: Kubernetes API conventions, "Typical status properties"; RFC 3339 for times.
"""

from __future__ import annotations

import calendar
import time
from collections.abc import Mapping, Sequence
from typing import Any

from csi.cluster.api_server import APPLY_PATCH, ApiServer
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.pinning import display_name_without_revision, get_revision

GROUP, VERSION = "datacache.csi.io", "v1alpha1"
CONTROLLER_STATUS_MANAGER = "datacache-controller-status"
_TIME = "%Y-%m-%dT%H:%M:%SZ"


def type_meta(kind: str) -> dict[str, str]:
    """What every object of a kind begins with."""
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": kind}


def format_time(seconds: float) -> str:
    """Seconds since 1970 in RFC 3339, whole ones."""
    return time.strftime(_TIME, time.gmtime(seconds))


def parse_time(text: str) -> float:
    """The seconds since 1970 that `format_time` wrote; raises ValueError for anything else."""
    return float(calendar.timegm(time.strptime(text, _TIME)))


def build_condition(
    old: Sequence[Mapping[str, Any]],
    kind: str,
    status: str,
    reason: str,
    message: str,
    generation: int,
    now: float,
) -> dict[str, Any]:
    """A condition of an object whose conditions were `old`; one of equal status keeps the time of its last transition.

    `now` in seconds since 1970.
    """
    previous: Mapping[str, Any] = next((one for one in old if one["type"] == kind), {})
    since = previous["lastTransitionTime"] if previous.get("status") == status else format_time(now)
    about = {"type": kind, "status": status, "reason": reason, "message": message}
    return {**about, "observedGeneration": generation, "lastTransitionTime": since}


def describe_source(requested: CacheSpec, pinned: CacheSpec) -> dict[str, str]:
    """`source`, `revision` and `pin` as columns show them, those that there are: of what was asked for, and what that stood for."""
    revision, pin = get_revision(requested), get_revision(pinned)
    columns = {
        "source": display_name_without_revision(requested),
        "revision": revision,
        "pin": pin[:12] if pin != revision else "",
    }
    return {key: text[:256] for key, text in columns.items() if text}


def apply_status(
    server: ApiServer, kind: str, path: str, obj: Mapping[str, Any], status: Mapping[str, Any]
) -> None:
    """Apply the status of this very object, which is at `path`, as the replica that leads. Raises as `ApiServer.call`."""
    meta = {key: obj["metadata"][key] for key in ("name", "namespace", "uid") if key in obj["metadata"]}
    query = {"fieldManager": CONTROLLER_STATUS_MANAGER, "force": "true"}
    server.call(
        "PATCH", f"{path}/status", query, {**type_meta(kind), "metadata": meta, "status": status}, APPLY_PATCH
    )
