"""Status of a CachePrewarm: a bounded list of one entry per node, and their sums and conditions.

Source: Kubernetes API conventions, "Typical status properties". Each node writes the status with the version
it has read, so that sums and conditions always match the entries. A new generation starts without entries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

from csi.registry.custom_resource import build_condition
from csi.registry.prewarms.prewarms import NodePrewarmState, PrewarmRequest, PrewarmState

MAX_REPORTED_NODES = 200
"""Maximum number of nodes shown; further ones fill without being shown."""
_MAX_MESSAGE = 512


def patch_with_node(
    prewarm: PrewarmRequest, status: Mapping[str, Any], node: str, state: NodePrewarmState | None, now: float
) -> dict[str, Any] | None:
    """Build the merge patch of `status` that shows the state of `node`; None if nothing changes.

    `now` is in seconds since 1970.
    """
    nodes = _entries_of_others(prewarm, status, {node})
    if state and len(nodes) < MAX_REPORTED_NODES:
        nodes.append(_encode_entry(node, state))
    return _build_patch(prewarm, status, nodes, now)


def patch_without_nodes(
    prewarm: PrewarmRequest, status: Mapping[str, Any], gone: Set[str], now: float
) -> dict[str, Any] | None:
    """Build the merge patch of `status` that removes the nodes `gone`; None if nothing changes."""
    return _build_patch(prewarm, status, _entries_of_others(prewarm, status, gone), now)


def _entries_of_others(
    prewarm: PrewarmRequest, status: Mapping[str, Any], excluded: Set[str]
) -> list[dict[str, Any]]:
    return [entry for entry in _current_entries(prewarm, status) if entry["node"] not in excluded]


def _current_entries(prewarm: PrewarmRequest, status: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the entries of the current generation."""
    return list(status.get("nodes") or []) if status.get("observedGeneration") == prewarm.generation else []


def _build_patch(
    prewarm: PrewarmRequest, status: Mapping[str, Any], nodes: list[dict[str, Any]], now: float
) -> dict[str, Any] | None:
    nodes = sorted(nodes, key=lambda entry: str(entry["node"]))
    if status.get("observedGeneration") == prewarm.generation and nodes == _current_entries(prewarm, status):
        return None
    ready = sum(entry["state"] == PrewarmState.READY for entry in nodes)
    return {
        "observedGeneration": prewarm.generation,
        "caches": len(prewarm.caches),
        "nodes": nodes or None,
        "ready": f"{ready}/{len(nodes)}",
        "progress": f"{sum(entry['percent'] for entry in nodes) // len(nodes)}%" if nodes else None,
        "conditions": _build_conditions(status.get("conditions") or [], nodes, prewarm.generation, now),
    }


def _encode_entry(node: str, state: NodePrewarmState) -> dict[str, Any]:
    entry = {"node": node, "state": state.state.value, "percent": state.percent}
    return {**entry, "message": state.message[:_MAX_MESSAGE]} if state.message else entry


def _build_conditions(
    old: Sequence[Mapping[str, Any]], nodes: Sequence[Mapping[str, Any]], generation: int, now: float
) -> list[dict[str, Any]]:
    by_state = {state: [entry for entry in nodes if entry["state"] == state] for state in PrewarmState}
    working, failed = (
        [*by_state[PrewarmState.FILLING], *by_state[PrewarmState.STORING], *by_state[PrewarmState.PENDING]],
        by_state[PrewarmState.FAILED],
    )
    ready = bool(nodes) and len(by_state[PrewarmState.READY]) == len(nodes)
    summary = f"{len(by_state[PrewarmState.READY])} of {len(nodes)} nodes have all caches"
    failing = (
        f"{len(failed)} of {len(nodes)} nodes; {failed[0]['node']}: {failed[0].get('message', '')}"
        if failed
        else "no node fails"
    )
    conditions = [
        ("Ready", ready, "AllNodesReady" if ready else "NodesNotReady" if nodes else "NoNodes", summary),
        (
            "Progressing",
            bool(working),
            "Filling" if working else "AtRest",
            f"{len(working)} of {len(nodes)} nodes are at it",
        ),
        ("Failed", bool(failed), "NodesFail" if failed else "NoNodeFails", failing),
    ]
    return [
        build_condition(old, kind, "True" if true else "False", reason, message, generation, now)
        for kind, true, reason, message in conditions
    ]
