"""Common parts of the driver's custom resources: group and version, times, conditions, applying a status.

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
    """Return `apiVersion` and `kind` of an object."""
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": kind}


def format_time(seconds: float) -> str:
    """Format seconds since 1970 as RFC 3339, in whole seconds."""
    return time.strftime(_TIME, time.gmtime(seconds))


def parse_time(text: str) -> float:
    """Parse a time that `format_time` wrote into seconds since 1970; raises ValueError for anything else."""
    return float(calendar.timegm(time.strptime(text, _TIME)))


def build_condition(
    previous_conditions: Sequence[Mapping[str, Any]],
    condition_type: str,
    status: str,
    reason: str,
    message: str,
    generation: int,
    now: float,
) -> dict[str, Any]:
    """Build a condition for an object whose conditions were `previous_conditions`.

    A condition whose status did not change keeps the time of its last transition. `now` is in seconds since
    1970.
    """
    previous: Mapping[str, Any] = next(
        (condition for condition in previous_conditions if condition["type"] == condition_type), {}
    )
    since = previous["lastTransitionTime"] if previous.get("status") == status else format_time(now)
    condition_fields = {"type": condition_type, "status": status, "reason": reason, "message": message}
    return {**condition_fields, "observedGeneration": generation, "lastTransitionTime": since}


def describe_source(requested: CacheSpec, pinned: CacheSpec) -> dict[str, str]:
    """Return the columns `source`, `revision` and `pin` of an object, without empty ones.

    They show the requested source, and what it was resolved to.
    """
    revision, pin = get_revision(requested), get_revision(pinned)
    columns = {
        "source": display_name_without_revision(requested),
        "revision": revision,
        "pin": pin[:12] if pin != revision else "",
    }
    # 256 characters are the CRDs' limit for these columns.
    return {key: text[:256] for key, text in columns.items() if text}


def apply_status(
    server: ApiServer,
    kind: str,
    path: str,
    obj: Mapping[str, Any],
    status: Mapping[str, Any],
) -> None:
    """Apply the status of the object `obj`, which is at `path`, as the leading controller.

    The uid in it makes the server reject another object of the same name. Raises as `ApiServer.call`.
    """
    meta = {key: obj["metadata"][key] for key in ("name", "namespace", "uid") if key in obj["metadata"]}
    query = {"fieldManager": CONTROLLER_STATUS_MANAGER, "force": "true"}
    server.call(
        "PATCH", f"{path}/status", query, {**type_meta(kind), "metadata": meta, "status": status}, APPLY_PATCH
    )
