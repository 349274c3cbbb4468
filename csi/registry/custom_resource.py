"""What the driver's custom resources have in common: group and version, how times are written, conditions, a status that is applied.

Source: Kubernetes API conventions, "Typical status properties"; RFC 3339 for times.
"""

from __future__ import annotations

import calendar
import time
from collections.abc import Mapping, Sequence
from typing import Any

from csi.cluster.api_server import APPLY, ApiServer
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.pinning import revision_of, without_revision

GROUP, VERSION = "datacache.csi.io", "v1alpha1"
STATUS_MANAGER = "datacache-controller-status"
_TIME = "%Y-%m-%dT%H:%M:%SZ"


def kind_of(kind: str) -> dict[str, str]:
    """What every object of a kind begins with."""
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": kind}


def written(seconds: float) -> str:
    """Seconds since 1970 in RFC 3339, whole ones."""
    return time.strftime(_TIME, time.gmtime(seconds))


def read(text: str) -> float:
    """The seconds since 1970 that `written` wrote; raises ValueError for anything else."""
    return float(calendar.timegm(time.strptime(text, _TIME)))


def condition(old: Sequence[Mapping[str, Any]], kind: str, status: str, reason: str, message: str, generation: int, now: float) -> dict[str, Any]:
    """A condition of an object whose conditions were `old`; one of equal status keeps the time of its last transition.

    `now` in seconds since 1970.
    """
    before: Mapping[str, Any] = next((one for one in old if one["type"] == kind), {})
    since = before["lastTransitionTime"] if before.get("status") == status else written(now)
    about = {"type": kind, "status": status, "reason": reason, "message": message}
    return {**about, "observedGeneration": generation, "lastTransitionTime": since}


def source_in_words(asked: CacheSpec, pinned: CacheSpec) -> dict[str, str]:
    """`source`, `revision` and `pin` as columns show them, those that there are: of what was asked for, and what that stood for."""
    revision, pin = revision_of(asked), revision_of(pinned)
    words = {"source": without_revision(asked), "revision": revision, "pin": pin[:12] if pin != revision else ""}
    return {key: text[:256] for key, text in words.items() if text}


def apply_status(server: ApiServer, kind: str, path: str, thing: Mapping[str, Any], said: Mapping[str, Any]) -> None:
    """Apply the status of this very object, which is at `path`, as the replica that leads. Raises as `ApiServer.call`."""
    meta = {key: thing["metadata"][key] for key in ("name", "namespace", "uid") if key in thing["metadata"]}
    query = {"fieldManager": STATUS_MANAGER, "force": "true"}
    server.call("PATCH", f"{path}/status", query, {**kind_of(kind), "metadata": meta, "status": said}, APPLY)
