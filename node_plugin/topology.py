"""Topology segments of this node, and Events of the Node if it cannot mount volumes."""

from __future__ import annotations

import logging
from collections.abc import Callable

from csi.errors import UnsupportedByNode
from csi.registry.events.recorder import EventRecorder, ObjectReference
from csi.topology import node_segments

log = logging.getLogger("datacache.topology")

# Reasons of the Events of a Node.
CANNOT_MOUNT_REASON = "CannotMountVolumes"
REGISTRATION_REFUSED_REASON = "RegistrationRefused"


class NodeTopology:
    """Topology of the node `node`; `check_node` raises UnsupportedByNode if it cannot mount images."""

    def __init__(
        self, driver_name: str, node: str, check_node: Callable[[], None], recorder: EventRecorder
    ) -> None:
        self._driver = driver_name
        self._reference = ObjectReference.for_node(node)
        self._check_node, self._recorder = check_node, recorder

    def segments(self) -> dict[str, str]:
        """Return the node's segments, which kubelet turns into labels.

        If the node cannot mount images, logs the reason and records it as an Event of the Node.
        """
        try:
            self._check_node()
            return node_segments(self._driver, can_mount=True)
        except UnsupportedByNode as error:
            log.error("node cannot mount volumes", extra={"fields": {"reason": error}})
            message = (
                f"this node cannot mount volumes of {self._driver}: {error}. "
                "Then delete the plugin's pod on this node; the next one checks again"
            )
            self._recorder.record(self._reference, CANNOT_MOUNT_REASON, message, warning=True)
            return node_segments(self._driver, can_mount=False)

    def report_refused_registration(self, reason: str) -> None:
        """Record an Event of the Node: kubelet refused to register the driver."""
        message = f"kubelet did not register {self._driver}: {reason}; it retries by itself"
        self._recorder.record(self._reference, REGISTRATION_REFUSED_REASON, message, warning=True)
