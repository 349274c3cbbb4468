"""What a pod says of itself: why it is not ready, and what has ended in it."""

from __future__ import annotations

from collections.abc import Iterator

from datacache.cluster.reading import Reading, Thing, has_condition, plural, seconds

_LONGEST = 400
_RECENT_SECONDS = 3600.0
# What a container says while others, or volumes, are waited for.
_NOTHING_SAID = ("ContainerCreating", "PodInitializing")


def why_not_ready(reading: Reading, pod: Thing) -> str:
    """What keeps a pod from being ready, in its own words or else in those of the newest Warning about it; "" where it is ready."""
    if has_condition(pod, "Ready"):
        return ""
    for container in _containers(pod):
        if words := _waiting(container):
            return words
    scheduled: Thing = next((one for one in pod.get("status", {}).get("conditions") or () if one["type"] == "PodScheduled"), {})
    if scheduled.get("status") == "False":
        return f"{scheduled.get('reason')}: {scheduled.get('message', '')}"
    events = reading.warnings(pod, "Pod")
    return events[0].words if events else f"its phase is {pod.get('status', {}).get('phase', 'unknown')}, and it is not ready"


def ended(pod: Thing, now: float) -> Iterator[str]:
    """Containers of a pod that were started again within an hour before `now` (seconds since 1970), and how they had ended."""
    for container in _containers(pod):
        last = container.get("lastState", {}).get("terminated") or {}
        if last.get("finishedAt") and now - seconds(last["finishedAt"]) < _RECENT_SECONDS:
            yield f"{container['name']} has restarted {plural(container['restartCount'], 'time')}; it ended with {_end(last)}"


def _containers(pod: Thing) -> Iterator[Thing]:
    status = pod.get("status", {})
    yield from status.get("initContainerStatuses") or ()
    yield from status.get("containerStatuses") or ()


def _waiting(container: Thing) -> str:
    waiting = container.get("state", {}).get("waiting") or {}
    if not waiting.get("reason") or waiting["reason"] in _NOTHING_SAID:
        return ""
    last = container.get("lastState", {}).get("terminated")
    words = _end(last) if last else waiting.get("message", "")
    return f"{container['name']}: {waiting['reason']}{f': {words}' if words else ''}"


def _end(terminated: Thing) -> str:
    why, message = terminated.get("reason", ""), (terminated.get("message") or "").strip()
    named = f"{why}, " if why and why != "Error" else ""
    return f"{named}exit status {terminated['exitCode']}{f': {message[-_LONGEST:]}' if message else ''}"
