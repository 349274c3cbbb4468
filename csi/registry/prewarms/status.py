"""The status of a CachePrewarm: an entry for each node, bounded, and all of them in numbers and conditions.

Source: Kubernetes API conventions, "Typical status properties". Each node writes it with the version that it has read, so that numbers
and conditions are always those of the entries. A new generation begins without entries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

from csi.registry.custom_resource import condition
from csi.registry.prewarms.prewarms import NodeState, Prewarm, State

MOST_NODES = 200
"""Nodes beyond these fill without being shown."""
_LONGEST_MESSAGE = 512


def reported(prewarm: Prewarm, status: Mapping[str, Any], node: str, said: NodeState | None, now: float) -> dict[str, Any] | None:
    """What a merge patch changes in `status` so that it shows what `node` has said; None for nothing. `now` in seconds since 1970."""
    nodes = _others(prewarm, status, {node})
    if said and len(nodes) < MOST_NODES:
        nodes.append(_entry(node, said))
    return _with(prewarm, status, nodes, now)


def forgotten(prewarm: Prewarm, status: Mapping[str, Any], gone: Set[str], now: float) -> dict[str, Any] | None:
    """As `reported`, so that it shows none of the nodes `gone`."""
    return _with(prewarm, status, _others(prewarm, status, gone), now)


def _others(prewarm: Prewarm, status: Mapping[str, Any], left_out: Set[str]) -> list[dict[str, Any]]:
    return [entry for entry in _shown(prewarm, status) if entry["node"] not in left_out]


def _shown(prewarm: Prewarm, status: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The entries that are of this generation."""
    return list(status.get("nodes") or []) if status.get("observedGeneration") == prewarm.generation else []


def _with(prewarm: Prewarm, status: Mapping[str, Any], nodes: list[dict[str, Any]], now: float) -> dict[str, Any] | None:
    nodes = sorted(nodes, key=lambda entry: str(entry["node"]))
    if status.get("observedGeneration") == prewarm.generation and nodes == _shown(prewarm, status):
        return None
    ready = sum(entry["state"] == State.READY for entry in nodes)
    return {
        "observedGeneration": prewarm.generation,
        "caches": len(prewarm.caches),
        "nodes": nodes or None,
        "ready": f"{ready}/{len(nodes)}",
        "progress": f"{sum(entry['percent'] for entry in nodes) // len(nodes)}%" if nodes else None,
        "conditions": _conditions(status.get("conditions") or [], nodes, prewarm.generation, now),
    }


def _entry(node: str, said: NodeState) -> dict[str, Any]:
    entry = {"node": node, "state": said.state.value, "percent": said.percent}
    return {**entry, "message": said.message[:_LONGEST_MESSAGE]} if said.message else entry


def _conditions(old: Sequence[Mapping[str, Any]], nodes: Sequence[Mapping[str, Any]], generation: int, now: float) -> list[dict[str, Any]]:
    having = {state: [entry for entry in nodes if entry["state"] == state] for state in State}
    at_it, failed = [*having[State.FILLING], *having[State.STORING], *having[State.PENDING]], having[State.FAILED]
    ready = bool(nodes) and len(having[State.READY]) == len(nodes)
    counted = f"{len(having[State.READY])} of {len(nodes)} nodes have all caches"
    failing = f"{len(failed)} of {len(nodes)} nodes; {failed[0]['node']}: {failed[0].get('message', '')}" if failed else "no node fails"
    said = [
        ("Ready", ready, "AllNodesReady" if ready else "NodesNotReady" if nodes else "NoNodes", counted),
        ("Progressing", bool(at_it), "Filling" if at_it else "AtRest", f"{len(at_it)} of {len(nodes)} nodes are at it"),
        ("Failed", bool(failed), "NodesFail" if failed else "NoNodeFails", failing),
    ]
    return [condition(old, kind, "True" if true else "False", reason, message, generation, now) for kind, true, reason, message in said]
