"""Who asked the API server for what, by its audit log."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Call:
    """A request to the API server. Of a resource: its API group, with `subresource` or not; `namespace` and `name` are empty where it has none."""

    user: str
    verb: str
    group: str
    resource: str
    subresource: str
    namespace: str
    name: str
    code: int


def calls(log: Path) -> list[Call]:
    """The requests for resources that were answered so far, in the order of the answers (Event of audit.k8s.io/v1, a line each)."""
    whole = [line for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
    events = [event for event in map(json.loads, whole) if "objectRef" in event and "responseStatus" in event]
    return [_call(event["user"]["username"], event["verb"], event["objectRef"], event["responseStatus"].get("code", 0)) for event in events]


def _call(user: str, verb: str, thing: dict[str, str], code: int) -> Call:
    group, resource, subresource, namespace, name = (thing.get(key, "") for key in ("apiGroup", "resource", "subresource", "namespace", "name"))
    return Call(user, verb, group, resource, subresource, namespace, name, code)
