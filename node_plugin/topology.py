"""What this node is to the scheduler, and word to people where it can mount no volumes."""

from __future__ import annotations

import logging
from collections.abc import Callable

from csi.errors import UnsupportedByNode
from csi.registry.events.recorder import EventRecorder, ObjectReference
from csi.topology import node_segments

log = logging.getLogger("datacache.topology")

CANNOT_MOUNT_REASON, REGISTRATION_REFUSED_REASON = "CannotMountVolumes", "RegistrationRefused"
"""The reasons of the Events of a Node."""


class NodeTopology:
    """The node `node`, for the driver of that name; `check_node` raises UnsupportedByNode where no image can be mounted."""

    def __init__(
        self, driver_name: str, node: str, check_node: Callable[[], None], recorder: EventRecorder
    ) -> None:
        self._driver, self._reference, self._check_node, self._recorder = (
            driver_name,
            ObjectReference.for_node(node),
            check_node,
            recorder,
        )

    def segments(self) -> dict[str, str]:
        """The node's segments, as kubelet makes them labels. Where it cannot mount images, log and an Event of the Node say why."""
        try:
            self._check_node()
            return node_segments(self._driver, can_mount=True)
        except UnsupportedByNode as error:
            log.error("this node can mount no volumes", extra={"fields": {"reason": error}})
            message = f"no volumes of {self._driver} here: {error}. Then delete this node's plugin pod: the next one looks anew"
            self._recorder.record(self._reference, CANNOT_MOUNT_REASON, message, warning=True)
            return node_segments(self._driver, can_mount=False)

    def report_refused_registration(self, reason: str) -> None:
        """Tell people that kubelet did not register the driver."""
        message = f"kubelet did not register {self._driver}, it tries again by itself: {reason}"
        self._recorder.record(self._reference, REGISTRATION_REFUSED_REASON, message, warning=True)
