"""State of a pod: why it is not ready, and which containers have crashed."""

from __future__ import annotations

from collections.abc import Iterator

from datacache.cluster.reading import ClusterReader, KubeObject, format_count, has_condition, parse_seconds

_MAX_MESSAGE = 400
_RECENT_SECONDS = 3600.0
# Reasons that containers have while they wait for other containers or for volumes.
_UNINFORMATIVE_REASONS = ("ContainerCreating", "PodInitializing")


def explain_not_ready(reader: ClusterReader, pod: KubeObject) -> str:
    """Explain why a pod is not ready, from its status or else its newest Warning; "" if it is ready."""
    if has_condition(pod, "Ready"):
        return ""
    for container in _list_container_statuses(pod):
        if reason := _describe_waiting(container):
            return reason
    scheduled: KubeObject = next(
        (
            condition
            for condition in pod.get("status", {}).get("conditions") or ()
            if condition["type"] == "PodScheduled"
        ),
        {},
    )
    if scheduled.get("status") == "False":
        return f"{scheduled.get('reason')}: {scheduled.get('message', '')}"
    events = reader.list_warnings(pod, "Pod")
    return (
        events[0].summary
        if events
        else f"its phase is {pod.get('status', {}).get('phase', 'unknown')}, and it is not ready"
    )


def list_recent_crashes(pod: KubeObject, now: float) -> Iterator[str]:
    """Describe containers that restarted within an hour before `now`, and how they had ended.

    `now` is in seconds since 1970.
    """
    for container in _list_container_statuses(pod):
        last = container.get("lastState", {}).get("terminated") or {}
        if last.get("finishedAt") and now - parse_seconds(last["finishedAt"]) < _RECENT_SECONDS:
            yield (
                f"{container['name']} has restarted {format_count(container['restartCount'], 'time')}; "
                f"it ended with {_describe_termination(last)}"
            )


def _list_container_statuses(pod: KubeObject) -> Iterator[KubeObject]:
    status = pod.get("status", {})
    yield from status.get("initContainerStatuses") or ()
    yield from status.get("containerStatuses") or ()


def _describe_waiting(container: KubeObject) -> str:
    waiting = container.get("state", {}).get("waiting") or {}
    if not waiting.get("reason") or waiting["reason"] in _UNINFORMATIVE_REASONS:
        return ""
    last = container.get("lastState", {}).get("terminated")
    details = _describe_termination(last) if last else waiting.get("message", "")
    return f"{container['name']}: {waiting['reason']}{f': {details}' if details else ''}"


def _describe_termination(terminated: KubeObject) -> str:
    reason, message = terminated.get("reason", ""), (terminated.get("message") or "").strip()
    prefix = f"{reason}, " if reason and reason != "Error" else ""
    return f"{prefix}exit status {terminated['exitCode']}{f': {message[-_MAX_MESSAGE:]}' if message else ''}"
