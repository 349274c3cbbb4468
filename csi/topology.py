"""The driver's topology: the nodes that run its node plugin, and the subset that can mount images.

Both segments are "true" or absent, because kubelet never overwrites a topology label that a node already has.
A node that cannot mount images has a segment too: external-provisioner creates no volume for a pod whose
first candidate node has none, while a volume's own segments tell the scheduler where the pod can run.
"""

from __future__ import annotations

from collections.abc import Mapping

_TRUE = "true"


def volume_segments(driver_name: str) -> dict[str, str]:
    """Return the segments from which every volume is accessible."""
    return {f"{driver_name}/mounts": _TRUE}


def node_segments(driver_name: str, can_mount: bool) -> dict[str, str]:
    """Return the segments of a node that runs the plugin; `can_mount` says if it can mount images."""
    return {f"{driver_name}/plugin": _TRUE, **(volume_segments(driver_name) if can_mount else {})}


def can_mount_in(driver_name: str, segments: Mapping[str, str]) -> bool:
    """Return whether a topology term may select nodes that can mount images, as far as its segments tell."""
    required = node_segments(driver_name, can_mount=True)
    return any(key in segments for key in required) and all(
        segments.get(key, value) == value for key, value in required.items()
    )
