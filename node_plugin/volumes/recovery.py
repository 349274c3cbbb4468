"""Recovery at the start of the node plugin: records, mounts, limits and fills of the earlier process."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

from csi.errors import DataCacheError, InvalidParameter
from csi.images.node_store.records import ImageState
from csi.images.node_store.store import Store
from csi.parameters.content_ref import ContentRef
from node_plugin.fills.fills import Fills
from node_plugin.throttle.throttle import LimitRequest, Throttle
from node_plugin.volumes.exposures import VolumeExposures
from node_plugin.volumes.limits import PerformanceLookup, compute_volume_limits
from node_plugin.volumes.pins import NodePins
from node_plugin.volumes.records import NodeVolume

log = logging.getLogger("datacache.volumes")


class NodeRecovery:
    """Recovery of a node's state, once, before any call is answered."""

    def __init__(
        self,
        exposures: VolumeExposures,
        store: Store,
        fills: Fills,
        throttle: Throttle,
        performance: PerformanceLookup,
        pins: NodePins,
    ) -> None:
        self._exposures, self._store, self._fills = exposures, store, fills
        self._throttle, self._performance, self._pins = throttle, performance, pins

    def recover(self) -> None:
        """Drop unmounted paths, enforce limits, unmount unused images, and resume fills."""
        self._store.sweep()
        limit_requests: list[LimitRequest] = []
        for volume in self._exposures.records.load_all_and_delete_unreadable():
            remaining = self._refresh_record(volume)
            self._cover_bind_mounts_of_earlier_versions(remaining)
            if remaining.paths:
                self._pins.restore([remaining])
                limit_requests += self._rebuild_limit_requests(remaining)
        # All at once, since the limit of a pod is the sum over its volumes.
        self._throttle.resume(limit_requests)
        self._exposures.images.unmount_all_unused()
        # Without a credential: a fill that requires one fails, and resumes with the next call for its volume.
        for image in self._store.list_images():
            if image.state is ImageState.PARTIAL and image.paths.journal.exists():
                self._resume_fill(image.digest)

    def _refresh_record(self, volume: NodeVolume) -> NodeVolume:
        """Store the volume without its unmounted paths and with its current performance, and return it.

        The folders of unmounted targets are removed.
        """
        unmounted = [path for path in volume.paths if not self._exposures.is_mounted(path)]
        for path in set(unmounted) & set(volume.target_paths):
            with suppress(OSError):
                Path(path).rmdir()
        remaining = self._performance.with_current_performance(volume.without_paths(*unmounted))
        self._exposures.records.put(remaining)
        return remaining

    def _cover_bind_mounts_of_earlier_versions(self, volume: NodeVolume) -> None:
        images = self._exposures.images
        for path in volume.staging_paths:
            try:
                images.cover_with_marker(images.mount_path(volume.digest, volume.limit_class), Path(path))
            except DataCacheError as error:
                fields = {"volume": volume.id, "path": path, "reason": error}
                log.warning("staging path not marked", extra={"fields": fields})

    def _rebuild_limit_requests(self, volume: NodeVolume) -> list[LimitRequest]:
        """Build the requests for all target paths; limits that have become invalid stay as recorded."""
        limits = None
        keep_recorded = False
        try:
            limits = compute_volume_limits(volume)
        except InvalidParameter as error:
            keep_recorded = True
            fields = {"volume": volume.id, "reason": error}
            log.warning("limits invalid, keeping recorded ones", extra={"fields": fields})
        return [
            self._exposures.build_limit_request(volume, path, Path(path), limits, keep_recorded)
            for path in volume.target_paths
        ]

    def _resume_fill(self, digest: str) -> None:
        log.info("resuming fill", extra={"fields": {"image": digest}})
        try:
            self._fills.start(ContentRef(digest))
        except DataCacheError as error:
            log.warning("fill not resumed", extra={"fields": {"image": digest, "reason": error}})
