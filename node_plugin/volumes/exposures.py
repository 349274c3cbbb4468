"""The paths of volumes on this node: staging markers, bind mounts, and the limits of their pods.

A record is written before its mount and removed after it: a plugin that is killed in between leaves a record
without a mount, which the next start removes, and never a mount without a record.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

from csi.errors import AlreadyExists, Busy, FailedPrecondition, InvalidParameter, NotFound, VolumeNotFound
from csi.images.node_store.store import Store
from csi.linux.cgroups.pod_cgroups import find_pod_uid
from csi.linux.mounts import MountTable, find_mount, resolve_parent
from csi.parameters.access_modes import AccessMode
from csi.performance.limits import Limits
from node_plugin.throttle.throttle import LimitRequest, Throttle
from node_plugin.volumes.image_mounts import ImageMounts
from node_plugin.volumes.limits import (
    PerformanceLookup,
    compute_volume_limits,
    describe_limit_status,
    limit_class_name,
    read_ahead_bytes,
)
from node_plugin.volumes.mount_request import MountRequest, VolumeStats
from node_plugin.volumes.records import NO_LIMITS, NodeVolume, VolumeRecords

log = logging.getLogger("datacache.volumes")

PathKind = Literal["staging", "target"]


class VolumeExposures:
    """The paths at which volumes are staged and published. The caller serializes calls for one volume."""

    def __init__(
        self,
        records: VolumeRecords,
        store: Store,
        images: ImageMounts,
        mounts: MountTable,
        throttle: Throttle,
        performance: PerformanceLookup,
    ) -> None:
        self.records, self.images = records, images
        self._store, self._mounts = store, mounts
        self._throttle, self._performance = throttle, performance

    def is_exposed(self, request: MountRequest, kind: PathKind) -> bool:
        """Return whether the volume is at the request's path already.

        Raises AlreadyExists if it is there with another access mode, other flags or another context.
        """
        volume = self.records.get(request.volume_id)
        if volume is None:
            return False
        paths = volume.staging_paths if kind == "staging" else volume.target_paths
        exposure = paths.get(str(request.path))
        if exposure is None or not self.is_mounted(str(request.path)):
            return False
        if exposure != request.exposure or volume.context != request.volume_context:
            raise AlreadyExists(
                f"volume {request.volume_id} is at {request.path} already with other arguments; "
                "unpublish or unstage it there first"
            )
        return True

    def is_mounted(self, path: str) -> bool:
        """Return whether anything is mounted at a path."""
        return find_mount(self._mounts.list_mounts(), path) is not None

    @contextmanager
    def keep_image(self, digest: str) -> Iterator[None]:
        """Keep the image and its mount for the block; raises Busy if it has just been evicted."""
        # Two holds: the first keeps a concurrent removal from unmounting the image; the second makes sure
        # that the image exists, and that no fill evicts it.
        with ExitStack() as exit_stack:
            exit_stack.enter_context(self.images.hold_mounts(digest))
            try:
                exit_stack.enter_context(self._store.prevent_eviction(digest))
            except NotFound as error:
                message = f"the image {digest[:12]} was evicted meanwhile; call again to fill it"
                raise Busy(message) from error
            yield

    def expose(self, request: MountRequest, new: NodeVolume, kind: PathKind) -> Limits | None:
        """Mount the image and expose it at the request's path; return the volume's limits.

        A volume that has a record with the same digest keeps it; otherwise `new` becomes the record.
        """
        known = self.records.get(request.volume_id)
        if known and known.digest == new.digest:
            volume = known
            limits = compute_volume_limits(volume)
        else:
            volume = self._performance.with_current_performance(new)
            limits = compute_volume_limits(volume)
            volume = replace(volume, limit_class=limit_class_name(volume, limits))
        path = str(request.path)
        if kind == "staging":
            volume = volume.with_staging_path(path, request.exposure)
        else:
            volume = volume.with_target_path(path, request.exposure)
        # Eviction removes the least recently used image first.
        self._store.touch(volume.digest)
        self._mount_image_and_path(request.path, volume, limits, (volume.digest, volume.limit_class))
        return limits

    def publish_staged(self, request: MountRequest) -> None:
        """Publish a staged volume at one more target.

        Raises FailedPrecondition if it is not staged, or has access mode ReadWriteOncePod and another target.
        """
        volume = self.records.get(request.volume_id)
        is_staged = volume is not None and request.staging_path in volume.staging_paths
        if volume is None or not is_staged or not self.is_mounted(request.staging_path):
            raise FailedPrecondition(
                f"volume {request.volume_id} is not staged at {request.staging_path}; stage it first"
            )
        if self.is_exposed(request, "target"):
            return
        path = str(request.path)
        others = [target for target in volume.target_paths if target != path]
        if request.mode is AccessMode.SINGLE_NODE_SINGLE_WRITER and others:
            raise FailedPrecondition(
                f"volume {request.volume_id} has access mode ReadWriteOncePod "
                f"and is published at {others[0]} already"
            )
        image_and_class = self.images.find_digest_and_class(Path(request.staging_path)) or (
            volume.digest,
            volume.limit_class,
        )
        current = self._performance.with_current_performance(volume)
        limits = compute_volume_limits(current)
        exposed = current.with_target_path(path, request.exposure)
        self._mount_image_and_path(request.path, exposed, limits, image_and_class)

    def _mount_image_and_path(
        self, path: Path, volume: NodeVolume, limits: Limits | None, image_and_class: tuple[str, str]
    ) -> None:
        """Mount the image of a limit class, if it is not mounted yet, then the path."""
        digest, limit_class = image_and_class
        read_ahead = read_ahead_bytes(limits) if limit_class != NO_LIMITS else None
        image_mount_point = self.images.mount(
            digest, self._store.get_paths(digest).image, limit_class, read_ahead
        )
        self._mount_path(image_mount_point, path, volume, limits)

    def _mount_path(
        self, image_mount_point: Path, path: Path, volume: NodeVolume, limits: Limits | None
    ) -> None:
        """Record the path, enforce the limits, then mount it; undo all of it on failure."""
        is_target = str(path) in volume.target_paths
        self.records.put(volume)
        try:
            # Limits come before the mount, so that the pod cannot read without them.
            if is_target:
                self._throttle.apply(self.build_limit_request(volume, str(path), image_mount_point, limits))
            _create_target(path)
            if is_target:
                self._mounts.bind_mount(image_mount_point, path)
            else:
                self.images.mount_marker(image_mount_point, path)
        except BaseException:
            self._mounts.unmount(path)
            self._throttle.release(str(path))
            self.records.put(volume.without_paths(str(path)))
            raise

    def build_limit_request(
        self,
        volume: NodeVolume,
        target: str,
        source: Path,
        limits: Limits | None,
        keep_recorded: bool = False,
    ) -> LimitRequest:
        """Build the request to enforce `limits` at `target`, for reads from the mount at `source`."""
        pod = find_pod_uid(Path(target), volume.target_paths[target].pod)
        device = self.images.find_device(source) or ""
        return LimitRequest(volume.id, target, pod, device, limits, keep_recorded)

    def remove(self, volume_id: str, path: Path) -> None:
        """Unmount the volume from `path` and release its limits; a path without a mount is no error."""
        # The mount and the record may differ: a volume that was staged again can have pods that still show
        # its former image.
        image_and_class = self.images.find_digest_and_class(path)
        digests = {image_and_class[0]} if image_and_class else set()
        # Mounts may be stacked, as a marker over a bind mount of an earlier version is.
        while self.is_mounted(str(path)):
            self._mounts.unmount(path)
        self._throttle.release(str(path))
        volume = self.records.get(volume_id)
        if volume and str(path) in volume.paths:
            digests.add(volume.digest)
            self.records.put(volume.without_paths(str(path)))
        for digest in digests:
            with suppress(NotFound):
                self._store.touch(digest)
            self.images.unmount_unused(digest)

    def renew_limits(self, volume_id: str) -> None:
        """Enforce the limits that the registry has for a volume now, in all its pods.

        Raises InvalidParameter.
        """
        volume = self.records.get(volume_id)
        current = volume and self._performance.with_current_performance(volume)
        if current is None or current == volume:
            return
        limits = compute_volume_limits(current)
        self.records.put(current)
        self._throttle.change_limits(volume_id, limits)
        if current.limit_class != NO_LIMITS:
            self.images.set_read_ahead(current.digest, current.limit_class, read_ahead_bytes(limits))

    def get_stats(self, volume_id: str, path: Path) -> VolumeStats:
        """Return the statistics of a volume at `path`; raises VolumeNotFound if it is not there."""
        volume = self.records.get(volume_id)
        path = resolve_parent(path) if path.is_absolute() else path
        if volume is None or str(path) not in volume.paths:
            raise VolumeNotFound(f"volume {volume_id[:200]!r} is not at {str(path)!r} on this node")
        if not self.is_mounted(str(path)):
            reason = f"nothing is mounted at {path} any more; delete the pod, its successor mounts it again"
            return VolumeStats(volume.capacity_bytes, volume.content_bytes, 0, True, reason)
        limits = self._describe_limits(volume, str(path))
        message = f"image {volume.digest[:12]} mounted read-only, {limits}"
        inodes = _count_inodes(self.images.find_content(path))
        return VolumeStats(volume.capacity_bytes, volume.content_bytes, inodes, False, message)

    def _describe_limits(self, volume: NodeVolume, path: str) -> str:
        if path in volume.target_paths:
            return describe_limit_status(self._throttle.get_limit_status(path))
        try:
            return f"in each pod: {compute_volume_limits(volume) or 'no I/O limits'}"
        except InvalidParameter as error:
            return f"no limits can be enforced: {error}"


def remove_target(path: Path) -> None:
    """Remove the folder of a target path; raises FailedPrecondition if it is not empty."""
    try:
        path.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        raise FailedPrecondition(
            f"{path} cannot be removed: {error.strerror}; remove its content, which is not this driver's"
        ) from error


def _create_target(path: Path) -> None:
    try:
        path.mkdir(mode=0o750, parents=True, exist_ok=True)
    except OSError as error:
        raise FailedPrecondition(
            f"{path} cannot be created as a folder: {error.strerror}; remove the file that is there"
        ) from error


def _count_inodes(path: Path) -> int:
    # EROFS reports the largest possible number of inodes as the total, and the rest as free.
    status = os.statvfs(path)
    return status.f_files - status.f_ffree
