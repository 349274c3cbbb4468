"""What a pod says of itself: why it is not ready, and what has ended in it."""

from __future__ import annotations

from collections.abc import Iterator

from datacache.cluster.reading import ClusterReader, KubeObject, format_count, has_condition, parse_seconds

_MAX_MESSAGE = 400
_RECENT_SECONDS = 3600.0
# What a container says while others, or volumes, are waited for.
_UNINFORMATIVE_REASONS = ("ContainerCreating", "PodInitializing")


def explain_not_ready(reading: ClusterReader, pod: KubeObject) -> str:
    """What keeps a pod from being ready, in its own words or else in those of the newest Warning about it; "" where it is ready."""
    if has_condition(pod, "Ready"):
        return ""
    for container in _list_container_statuses(pod):
        if words := _describe_waiting(container):
            return words
    scheduled: KubeObject = next(
        (one for one in pod.get("status", {}).get("conditions") or () if one["type"] == "PodScheduled"), {}
    )
    if scheduled.get("status") == "False":
        return f"{scheduled.get('reason')}: {scheduled.get('message', '')}"
    events = reading.list_warnings(pod, "Pod")
    return (
        events[0].summary
        if events
        else f"its phase is {pod.get('status', {}).get('phase', 'unknown')}, and it is not ready"
    )


def list_recent_crashes(pod: KubeObject, now: float) -> Iterator[str]:
    """Containers of a pod that were started again within an hour before `now` (seconds since 1970), and how they had ended."""
    for container in _list_container_statuses(pod):
        last = container.get("lastState", {}).get("terminated") or {}
        if last.get("finishedAt") and now - parse_seconds(last["finishedAt"]) < _RECENT_SECONDS:
            yield f"{container['name']} has restarted {format_count(container['restartCount'], 'time')}; it ended with {_describe_termination(last)}"


def _list_container_statuses(pod: KubeObject) -> Iterator[KubeObject]:
    status = pod.get("status", {})
    yield from status.get("initContainerStatuses") or ()
    yield from status.get("containerStatuses") or ()


def _describe_waiting(container: KubeObject) -> str:
    waiting = container.get("state", {}).get("waiting") or {}
    if not waiting.get("reason") or waiting["reason"] in _UNINFORMATIVE_REASONS:
        return ""
    last = container.get("lastState", {}).get("terminated")
    words = _describe_termination(last) if last else waiting.get("message", "")
    return f"{container['name']}: {waiting['reason']}{f': {words}' if words else ''}"


def _describe_termination(terminated: KubeObject) -> str:
    why, message = terminated.get("reason", ""), (terminated.get("message") or "").strip()
    named = f"{why}, " if why and why != "Error" else ""
    return f"{named}exit status {terminated['exitCode']}{f': {message[-_MAX_MESSAGE:]}' if message else ''}"
