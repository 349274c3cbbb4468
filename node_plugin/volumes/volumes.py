"""The life cycle of a volume on a node: stage, publish, unpublish, unstage.

Every call compares the actual state (records, mount table) with the requested one and changes it accordingly.
Waiting for resolves and fills happens outside the volume's lock, so that an unpublish or unstage can cancel
it.
"""

from __future__ import annotations

from pathlib import Path

from csi.concurrency.deadline import Deadline
from csi.concurrency.keyed_locks import KeyedLocks
from csi.concurrency.wait_limiter import WaitLimiter
from csi.errors import Busy, InvalidParameter
from csi.linux.mounts import resolve_parent
from csi.parameters import access_modes
from csi.parameters.cache_name import DataCacheReference, parse_data_cache_reference
from csi.parameters.volume_parameters import VolumeParameters, parse_accepted_parameters
from node_plugin.fills.fill_events import FillEvents
from node_plugin.volumes.exposures import PathKind, VolumeExposures, remove_target
from node_plugin.volumes.mount_request import MountRequest, VolumeStats
from node_plugin.volumes.preparation import ResolvedVolume, VolumePreparation

# Seconds. Locks are held for milliseconds, since nothing slow happens under one: a short wait is cheaper than
# an error, after which kubelet waits longer before it retries.
_LOCK_TIMEOUT, _RENEW_LOCK_TIMEOUT = 1.0, 5.0


class NodeVolumes:
    """The volumes of one node. Thread-safe."""

    def __init__(
        self,
        preparation: VolumePreparation,
        exposures: VolumeExposures,
        wait_limiter: WaitLimiter,
        events: FillEvents | None = None,
    ) -> None:
        self._preparation, self._exposures = preparation, exposures
        self._wait_limiter, self._events = wait_limiter, events or FillEvents()
        self._pins = preparation.pins
        self._locks = KeyedLocks()

    def stage(self, request: MountRequest, deadline: Deadline) -> None:
        """Mount the image, filled first if needed, and its marker at the staging path.

        Raises InvalidParameter, AlreadyExists (staged differently), Busy (in progress), NoSpace,
        SourceChanged, UnsupportedByNode and the errors of a Source.
        """
        parameters = _parse_accepted(request)
        if self._exposures.is_exposed(request, "staging"):
            return
        with (
            self._events.record_failures(request.event_reference),
            self._wait_limiter.track(request.volume_id, deadline),
        ):
            self._exposures.images.check_node()
            resolved = self._preparation.resolve_persistent(request, parameters, deadline)
            self._fill_and_expose(request, resolved, deadline, "staging")

    def publish(self, request: MountRequest, deadline: Deadline) -> None:
        """Mount a staged volume at the target path, or an inline one, which is resolved and filled first.

        Raises as `stage`; FailedPrecondition if the volume is not staged, or single-writer and published
        elsewhere.
        """
        if self._exposures.is_exposed(request, "target"):
            return
        if request.is_inline:
            with self._events.record_failures(request.event_reference):
                self._publish_inline(request, deadline)
            return
        if not request.staging_path:
            raise InvalidParameter(
                "staging_target_path is missing; only inline volumes are published without it"
            )
        _parse_accepted(request)
        with self._locks.acquire(request.volume_id, _LOCK_TIMEOUT):
            self._exposures.publish_staged(request)

    def _publish_inline(self, request: MountRequest, deadline: Deadline) -> None:
        if name := parse_data_cache_reference(request.context):
            self._publish_data_cache(request, name, deadline)
            return
        with (
            self._pins.keep_on_success(request.volume_id),
            self._wait_limiter.track(request.volume_id, deadline),
        ):
            self._exposures.images.check_node()
            resolved = self._preparation.resolve_inline(request, deadline)
            self._fill_and_expose(request, resolved, deadline, "target")
        self._events.record_pin(request.event_reference, self._pins.get_pin(request.volume_id))

    def _publish_data_cache(
        self, request: MountRequest, name: DataCacheReference, deadline: Deadline
    ) -> None:
        with self._wait_limiter.track(request.volume_id, deadline):
            self._exposures.images.check_node()
            resolved = self._preparation.resolve_data_cache(request, name, deadline)
            self._fill_and_expose(request, resolved, deadline, "target")

    def _fill_and_expose(
        self, request: MountRequest, resolved: ResolvedVolume, deadline: Deadline, kind: PathKind
    ) -> None:
        """Fill the image and expose it at the request's path, unless unpublish or unstage cancels it."""
        digest = resolved.content.digest
        _check_not_cancelled(deadline)
        # In this order: the hold on the image must end before its partial file can be discarded, since
        # `Fills.discard` does nothing for an image that is held.
        with self._preparation.discard_if_unusable(digest), self._exposures.keep_image(digest):
            self._preparation.fill_and_verify(request, resolved, deadline)
            with self._locks.acquire(request.volume_id, _LOCK_TIMEOUT):
                # Again under the lock: from here on an unpublish waits, and then finds the record.
                _check_not_cancelled(deadline)
                if not self._exposures.is_exposed(request, kind):
                    limits = self._exposures.expose(request, resolved.volume, kind)
                    self._events.record_clamped_limits(request.event_reference, limits)

    def unpublish(self, volume_id: str, path: Path) -> None:
        """Unmount the volume from the target path and remove the path; a missing path is no error.

        Raises Busy while the mount is in use.
        """
        path = resolve_parent(path)
        # Before taking the lock, so that a call that waits for a fill ends at once.
        self._wait_limiter.cancel(volume_id, "the volume is being unpublished")
        with self._locks.acquire(volume_id, _LOCK_TIMEOUT):
            self._remove_path(volume_id, path)
            remaining = self._exposures.records.get(volume_id)
            # With another target left, the volume still needs its pin.
            if remaining is None or not remaining.paths:
                self._pins.release(volume_id)
            remove_target(path)

    def unstage(self, volume_id: str, path: Path) -> None:
        """Unmount the volume from the staging path, which stays; a missing path is no error.

        Raises Busy while the mount is in use.
        """
        path = resolve_parent(path)
        self._wait_limiter.cancel(volume_id, "the volume is being unstaged")
        with self._locks.acquire(volume_id, _LOCK_TIMEOUT):
            self._remove_path(volume_id, path)

    def _remove_path(self, volume_id: str, path: Path) -> None:
        self._events.on_volume_removed(volume_id)
        self._exposures.remove(volume_id, path)

    def get_stats(self, volume_id: str, path: Path) -> VolumeStats:
        """Return the statistics of a volume at `path`; raises VolumeNotFound if it is not there."""
        return self._exposures.get_stats(volume_id, path)

    def renew_limits(self, volume_id: str) -> None:
        """Enforce the limits that the registry has for a volume now, in all its pods.

        Raises InvalidParameter, Busy.
        """
        if self._exposures.records.get(volume_id):
            with self._locks.acquire(volume_id, _RENEW_LOCK_TIMEOUT):
                self._exposures.renew_limits(volume_id)


def _parse_accepted(request: MountRequest) -> VolumeParameters:
    """Parse a volume context that was accepted before.

    Raises InvalidParameter for an access mode that writes.
    """
    parameters = parse_accepted_parameters(request.context, request.mount_flags)
    access_modes.check_access_mode(request.mode, parameters.downgrade_writers)
    return parameters


def _check_not_cancelled(deadline: Deadline) -> None:
    if deadline.cancelled:
        raise Busy(deadline.cancelled)
