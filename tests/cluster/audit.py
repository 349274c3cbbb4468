"""Who asked the API server for what, by its audit log."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Call:
    """A request to the API server. Of a resource: its API group, with `subresource` or not; `namespace` and
    `name` are empty where it has none.

    `agent` is the program that asked, by its own word, `code` the status of the answer, `forbidden` whether
    it had no right to ask.
    """

    user: str
    verb: str
    group: str
    resource: str
    subresource: str
    namespace: str
    name: str
    code: int
    agent: str = ""
    forbidden: bool = False


def calls(log: Path) -> list[Call]:
    """The requests for resources that were answered so far, in the order of the answers (Event of
    audit.k8s.io/v1, a line each)."""
    return [_call(event) for event in _events(log) if "objectRef" in event and "responseStatus" in event]


def _events(log: Path) -> Iterator[dict[str, Any]]:
    with log.open() as lines:
        yield from (json.loads(line) for line in lines if line.endswith("\n"))


def _call(event: dict[str, Any]) -> Call:
    thing = event["objectRef"]
    group, resource, subresource, namespace, name = (
        thing.get(key, "") for key in ("apiGroup", "resource", "subresource", "namespace", "name")
    )
    code, agent = event["responseStatus"].get("code", 0), event.get("userAgent", "")
    # 403 is also what a namespace on its way out answers to who may write there.
    forbidden = event.get("annotations", {}).get("authorization.k8s.io/decision") == "forbid"
    return Call(
        event["user"]["username"],
        event["verb"],
        group,
        resource,
        subresource,
        namespace,
        name,
        code,
        agent,
        forbidden,
    )
