"""The driver's topology: the nodes that run its node plugin, and among these the ones that can mount images.

Two segments that are "true" or absent, since kubelet takes no other value of a label that a node has already. A node that cannot mount
images has one all the same: external-provisioner makes no volume for a pod whose first choice is a node without any, while it tells the
scheduler with a volume's segments where that pod can go.
"""

from __future__ import annotations

from collections.abc import Mapping

_TRUE = "true"


def volume_segments(driver_name: str) -> dict[str, str]:
    """Where every volume can be had."""
    return {f"{driver_name}/mounts": _TRUE}


def node_segments(driver_name: str, can_mount: bool) -> dict[str, str]:
    """Where a node is that runs the plugin, and can mount images or not."""
    return {f"{driver_name}/plugin": _TRUE, **(volume_segments(driver_name) if can_mount else {})}


def can_mount_in(driver_name: str, segments: Mapping[str, str]) -> bool:
    """Whether a place of the topology has nodes that can mount images, as far as its segments tell."""
    required = node_segments(driver_name, can_mount=True)
    return any(key in segments for key in required) and all(
        segments.get(key, value) == value for key, value in required.items()
    )
