"""The life of a volume on a node: staged, published, unpublished, unstaged, looked at.

Every call looks at what is (records, mount table) and moves it toward what is asked. Waiting for resolves and fills
happens outside the volume's lock, so that taking a volume away ends its waiting.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

from csi.concurrency.deadline import Deadline
from csi.concurrency.keyed_locks import KeyedLocks
from csi.concurrency.wait_limiter import WaitLimiter
from csi.destinations.allow_list import AllowList, as_untrusted
from csi.errors import (
    AlreadyExists,
    Busy,
    DataCacheError,
    FailedPrecondition,
    InvalidParameter,
    NoSpace,
    NotFound,
    VolumeNotFound,
)
from csi.images.node_store.records import ImageState
from csi.images.node_store.store import Store
from csi.linux.cgroups.pod_cgroups import find_pod_uid
from csi.linux.mounts import MountTable, find_mount, resolve_parent
from csi.parameters import access_modes
from csi.parameters.access_modes import AccessMode
from csi.parameters.cache_name import PATH, DataCacheReference, parse_data_cache_reference
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.volume_parameters import (
    VolumeParameters,
    parse_accepted_parameters,
    parse_volume_parameters,
)
from csi.performance.capacity import round_up_to_gib
from csi.performance.limits import Limits
from csi.worker.protocol import Resolution
from node_plugin.fills.fill_events import FillEvents
from node_plugin.fills.fills import UNRECOVERABLE, Fills
from node_plugin.throttle.throttle import LimitRequest, Throttle
from node_plugin.volumes.authorized_resolver import AuthorizedResolver
from node_plugin.volumes.data_cache_grants import DataCacheGrants
from node_plugin.volumes.image_mounts import ImageMounts
from node_plugin.volumes.limits import (
    PerformanceLookup,
    compute_volume_limits,
    describe_applied_limit,
    limit_class_name,
    read_ahead_bytes,
)
from node_plugin.volumes.mount_request import MountRequest, VolumeStats
from node_plugin.volumes.pins import NodePins
from node_plugin.volumes.records import NO_LIMITS, NodeVolume, VolumeRecords

log = logging.getLogger("datacache.volumes")

# Whoever changes a volume is done in milliseconds (what takes long holds no lock); kubelet would wait longer before it calls again.
_LOCK_TIMEOUT, _RENEW_LOCK_TIMEOUT = 1.0, 5.0
_PathKind = Literal["staged", "targets"]


class NodeVolumes:
    """The node's volumes. Thread-safe."""

    def __init__(
        self,
        records: VolumeRecords,
        store: Store,
        resolver: AuthorizedResolver,
        fills: Fills,
        images: ImageMounts,
        mounts: MountTable,
        wait_limiter: WaitLimiter,
        allow_list: AllowList,
        limits: PerformanceLookup,
        throttle: Throttle,
        pins: NodePins | None = None,
        events: FillEvents | None = None,
        grants: DataCacheGrants | None = None,
    ) -> None:
        self._records, self._store, self._resolver, self._fills = records, store, resolver, fills
        self._images, self._mounts, self._wait_limiter, self._allow_list = (
            images,
            mounts,
            wait_limiter,
            allow_list,
        )
        self._limits, self._throttle, self._pins, self._events = (
            limits,
            throttle,
            pins or NodePins(),
            events or FillEvents(),
        )
        self._grants = grants
        self._locks = KeyedLocks()

    def stage(self, request: MountRequest, deadline: Deadline) -> None:
        """Mount the volume's image and mark the staging path with it, filling it first where needed.

        Raises InvalidParameter, AlreadyExists (staged differently), Busy (in work, with progress), NoSpace,
        SourceChanged, UnsupportedByNode and the errors of a Source.
        """
        requested = self._parse_checked(request)
        if self._is_fulfilled(request, "staged"):
            return
        with self._events.record_failures(request.event_reference):
            self._prepare_and_show(request, requested, deadline, "staged")

    def publish(self, request: MountRequest, deadline: Deadline) -> None:
        """Show a staged volume, or an inline one from its source on, at the target path.

        Raises as `stage`; FailedPrecondition when the volume is not staged, or single-writer and published elsewhere.
        """
        if self._is_fulfilled(request, "targets"):
            return
        if request.is_inline:
            with self._events.record_failures(request.event_reference):
                self._publish_inline(request, deadline)
            return
        if not request.staging_path:
            raise InvalidParameter(
                "staging_target_path is missing; only inline volumes are published without it"
            )
        self._parse_checked(request)
        with self._locks.acquire(request.volume_id, _LOCK_TIMEOUT):
            self._publish_staged(request)

    def _publish_inline(self, request: MountRequest, deadline: Deadline) -> None:
        if name := parse_data_cache_reference(request.context):
            self._publish_data_cache(request, name, deadline)
            return
        requested = parse_volume_parameters(request.context, request.mount_flags)
        self._allow_list.check(requested)
        with self._pins.keep_on_success(request.volume_id):
            self._prepare_and_show(
                request, replace(requested, spec=as_untrusted(requested.spec)), deadline, "targets"
            )
        self._events.record_pin(request.event_reference, self._pins.get_pin(request.volume_id))

    def _publish_data_cache(
        self, request: MountRequest, name: DataCacheReference, deadline: Deadline
    ) -> None:
        """The cache's grant is the authorisation, and its own credential reads."""
        if self._grants is None:
            raise FailedPrecondition(
                f"{PATH} names a DataCache, and this node knows none; start the node plugin with --registry"
            )
        with self._wait_limiter.track(request.volume_id, deadline):
            self._images.check_node()
            granted = self._grants.authorize_pod(name.bucket, name.path, request.namespace)
            self._grants.ensure_manifest(request.volume_id, granted, deadline)
            is_trusted = self._grants.has_trusted_bytes(granted)
            content, capacity, context = granted.content, granted.capacity_bytes, request.volume_context
            volume = NodeVolume(
                request.volume_id,
                content.digest,
                context,
                capacity,
                content.content_bytes,
                True,
                performance=name.performance,
            )
            volume = replace(volume, limit_class=limit_class_name(volume))
            self._show_filled(
                request,
                content.digest,
                content.access,
                granted.secrets,
                deadline,
                "targets",
                lambda: volume,
                is_trusted,
            )

    def _prepare_and_show(
        self, request: MountRequest, requested: VolumeParameters, deadline: Deadline, kind: _PathKind
    ) -> None:
        """From the source to the path: authorised, filled, mounted, shown. Taking the volume away ends it at any point before that."""
        with self._wait_limiter.track(request.volume_id, deadline):
            self._images.check_node()
            resolution = self._resolve(request, requested, deadline)
            access = resolution.spec.to_context()
            self._show_filled(
                request,
                resolution.digest,
                access,
                request.secrets,
                deadline,
                kind,
                lambda: self._build_volume(request, requested, resolution),
            )

    def _show_filled(
        self,
        request: MountRequest,
        digest: str,
        access: Mapping[str, str],
        secrets: Mapping[str, str],
        deadline: Deadline,
        kind: _PathKind,
        build_volume: Callable[[], NodeVolume],
        is_trusted: bool = False,
    ) -> None:
        """Show the `build_volume` that is made then once its image is full, which `access` and `secrets` read; `is_trusted` as for `Fills.wait`."""
        _check_not_cancelled(deadline)
        with self._keep_image(digest):
            self._fills.wait(
                request.volume_id, digest, secrets, deadline, access, request.event_reference, is_trusted
            )
            with self._locks.acquire(request.volume_id, _LOCK_TIMEOUT):
                _check_not_cancelled(deadline)
                if not self._is_fulfilled(request, kind):
                    volume = self._volume_with_path(request, digest, kind, build_volume)
                    self._store.touch(volume.digest)
                    self._mount_and_show(request.path, volume, (volume.digest, volume.limit_class))
                    self._events.record_clamped_limits(request.event_reference, compute_volume_limits(volume))

    def _resolve(self, request: MountRequest, requested: VolumeParameters, deadline: Deadline) -> Resolution:
        """What the volume holds, once its own credential has read from the origin; for inline volumes of a namespace the same everywhere."""

        def resolve(spec: CacheSpec, digest: str | None) -> Resolution:
            # Where nothing is pinned yet this answer becomes the pin: it has to be what the source holds now.
            force_refresh = request.is_inline and digest is None and self._pins.shares_pins(request.namespace)
            return self._resolver.resolve(
                request.volume_id, spec, digest, request.secrets, deadline, force_refresh
            )

        if not request.is_inline:
            return resolve(requested.spec, requested.manifest_digest)
        return self._pins.resolve_with_pin(request.volume_id, request.namespace, requested.spec, resolve)

    def _volume_with_path(
        self, request: MountRequest, digest: str, kind: _PathKind, build_volume: Callable[[], NodeVolume]
    ) -> NodeVolume:
        """The volume as it is known already, or else as it is `build_volume` now, shown at one path more."""
        known = self._records.get(request.volume_id)
        volume = known if known and known.digest == digest else build_volume()
        path = str(request.path)
        return (
            volume.with_staging_path(path, request.exposure)
            if kind == "staged"
            else volume.with_target_path(path, request.exposure)
        )

    def _build_volume(
        self, request: MountRequest, requested: VolumeParameters, resolution: Resolution
    ) -> NodeVolume:
        capacity = requested.capacity_bytes or max(
            requested.size_bytes or 0, round_up_to_gib(resolution.content_bytes)
        )
        volume = NodeVolume(
            request.volume_id,
            resolution.digest,
            request.volume_context,
            capacity,
            resolution.content_bytes,
            request.is_inline,
        )
        volume = self._limits.with_current_performance(volume)
        return replace(
            volume, limit_class=limit_class_name(volume), pin=self._pins.encode_pin(request.volume_id)
        )

    def _publish_staged(self, request: MountRequest) -> None:
        volume = self._records.get(request.volume_id)
        if (
            volume is None
            or request.staging_path not in volume.staging_paths
            or not self._is_mounted(request.staging_path)
        ):
            raise FailedPrecondition(
                f"volume {request.volume_id} is not staged at {request.staging_path}; stage it first"
            )
        if self._is_fulfilled(request, "targets"):
            return
        others = [path for path in volume.target_paths if path != str(request.path)]
        if request.mode is AccessMode.SINGLE_NODE_SINGLE_WRITER and others:
            raise FailedPrecondition(
                f"volume {request.volume_id} has access mode ReadWriteOncePod and is published at {others[0]} already"
            )
        image = self._images.find_image(Path(request.staging_path)) or (volume.digest, volume.limit_class)
        self._mount_and_show(
            request.path,
            self._limits.with_current_performance(volume).with_target_path(
                str(request.path), request.exposure
            ),
            image,
        )

    def unpublish(self, volume_id: str, path: Path) -> None:
        """Take the volume away from the target path and remove it; what is not there is no error. Raises Busy while in use."""
        path = resolve_parent(path)
        self._wait_limiter.cancel(volume_id, "the volume is being unpublished")
        with self._locks.acquire(volume_id, _LOCK_TIMEOUT):
            self._remove_path(volume_id, path)
            if not (remaining := self._records.get(volume_id)) or not remaining.paths:
                self._pins.release(volume_id)
            _remove_target(path)

    def unstage(self, volume_id: str, path: Path) -> None:
        """Take the volume away from the staging path, which stays; what is not there is no error. Raises Busy while in use."""
        path = resolve_parent(path)
        self._wait_limiter.cancel(volume_id, "the volume is being unstaged")
        with self._locks.acquire(volume_id, _LOCK_TIMEOUT):
            self._remove_path(volume_id, path)

    def get_stats(self, volume_id: str, path: Path) -> VolumeStats:
        """The numbers and condition of a volume shown at `path`; raises VolumeNotFound where it is not."""
        volume = self._records.get(volume_id)
        path = resolve_parent(path) if path.is_absolute() else path
        if volume is None or str(path) not in volume.paths:
            raise VolumeNotFound(f"volume {volume_id[:200]!r} is not at {str(path)!r} on this node")
        if not self._is_mounted(str(path)):
            reason = f"nothing is mounted at {path} any more; delete the pod to mount it anew"
            return VolumeStats(volume.capacity_bytes, volume.content_bytes, 0, True, reason)
        message = f"image {volume.digest[:12]} mounted read-only, {self._describe_limits(volume, str(path))}"
        return VolumeStats(
            volume.capacity_bytes,
            volume.content_bytes,
            _count_inodes(self._images.find_content(path)),
            False,
            message,
        )

    def _describe_limits(self, volume: NodeVolume, path: str) -> str:
        if path in volume.target_paths:
            return describe_applied_limit(self._throttle.get_applied(path))
        try:
            return f"in each pod: {compute_volume_limits(volume) or 'no I/O limits'}"
        except InvalidParameter as error:
            return f"no limits can be had: {error}"

    def renew_limits(self, volume_id: str) -> None:
        """Put a volume's limits in force as the registry has them now, wherever it is shown. Raises InvalidParameter, Busy."""
        volume = self._records.get(volume_id)
        if volume is None:
            return
        with self._locks.acquire(volume_id, _RENEW_LOCK_TIMEOUT):
            volume = self._records.get(volume_id)
            known = volume and self._limits.with_current_performance(volume)
            if known is None or known == volume:
                return
            limits = compute_volume_limits(known)
            self._records.put(known)
            self._throttle.change_limits(volume_id, limits)
            if known.limit_class != NO_LIMITS:
                self._images.set_read_ahead(known.digest, known.limit_class, read_ahead_bytes(limits))

    def recover(self) -> None:
        """After a start: forget what is not mounted any more, release what no volume shows, go on with fills that need no secret."""
        self._store.sweep()
        limit_requests: list[LimitRequest] = []
        for volume in self._records.list_all():
            unmounted = [path for path in volume.paths if not self._is_mounted(path)]
            for path in set(unmounted) & set(volume.target_paths):
                with suppress(OSError):
                    Path(path).rmdir()
            remaining = self._limits.with_current_performance(volume.without_paths(*unmounted))
            self._records.put(remaining)
            self._restore_markers(remaining)
            self._pins.restore([remaining] if remaining.paths else [])
            limit_requests += self._rebuild_limit_requests(remaining) if remaining.paths else []
        self._throttle.resume(limit_requests)
        self._images.unmount_all_unused()
        for image in self._store.list_images():
            if image.state is ImageState.PARTIAL and image.paths.journal.exists():
                self._resume_fill(image.digest)

    def _restore_markers(self, volume: NodeVolume) -> None:
        for path in volume.staging_paths:
            try:
                self._images.cover_with_marker(
                    self._images.mount_path(volume.digest, volume.limit_class), Path(path)
                )
            except DataCacheError as error:
                log.warning(
                    "staging path not marked",
                    extra={"fields": {"volume": volume.id, "path": path, "reason": error}},
                )

    def _resume_fill(self, digest: str) -> None:
        log.info("going on with a fill", extra={"fields": {"image": digest}})
        try:
            self._fills.start(digest, {})
        except DataCacheError as error:
            log.warning("fill not begun", extra={"fields": {"image": digest, "reason": error}})

    def _parse_checked(self, request: MountRequest) -> VolumeParameters:
        requested = parse_accepted_parameters(request.context, request.mount_flags)
        access_modes.check_access_mode(request.mode, requested.downgrade_writers)
        return requested

    @contextmanager
    def _keep_image(self, digest: str) -> Iterator[None]:
        """Keep the image and its mount for the block; one that turned out wrong or too large goes when the last who held it lets go."""
        try:
            with ExitStack() as held:
                held.enter_context(self._images.keep_mounted(digest))
                try:
                    held.enter_context(self._store.prevent_eviction(digest))
                except NotFound as error:
                    raise Busy(
                        f"the image {digest[:12]} was evicted meanwhile; call again to fill it anew"
                    ) from error
                yield
        except (*UNRECOVERABLE, NoSpace):
            self._fills.discard(digest)
            raise

    def _is_fulfilled(self, request: MountRequest, kind: _PathKind) -> bool:
        """Whether `request` is fulfilled already; raises AlreadyExists where its path shows the volume in another way."""
        volume = self._records.get(request.volume_id)
        exposure = volume and (volume.staging_paths if kind == "staged" else volume.target_paths).get(
            str(request.path)
        )
        if volume is None or exposure is None or not self._is_mounted(str(request.path)):
            return False
        if exposure != request.exposure or volume.context != request.volume_context:
            raise AlreadyExists(
                f"volume {request.volume_id} is at {request.path} already with other arguments; take it away there first"
            )
        return True

    def _mount_and_show(self, path: Path, volume: NodeVolume, image: tuple[str, str]) -> None:
        """Mount the image (digest, limit class), unless it is, and show it at `path`."""
        digest, name = image
        ahead = read_ahead_bytes(compute_volume_limits(volume)) if name != NO_LIMITS else None
        self._show_at_path(
            self._images.mount(digest, self._store.paths(digest).image, name, ahead), path, volume
        )

    def _show_at_path(self, source: Path, path: Path, volume: NodeVolume) -> None:
        """Record that `volume` is shown at `path`, hold its limits there, then show it; a failure leaves none of it."""
        self._records.put(volume)
        try:
            if str(path) in volume.target_paths:
                self._throttle.apply(
                    self._build_limit_request(volume, str(path), source, compute_volume_limits(volume))
                )
            _create_target(path)
            show = self._mounts.bind_mount if str(path) in volume.target_paths else self._images.mount_marker
            show(source, path)
        except BaseException:
            self._mounts.unmount(path)
            self._throttle.release(str(path))
            self._records.put(volume.without_paths(str(path)))
            raise

    def _build_limit_request(
        self,
        volume: NodeVolume,
        target: str,
        source: Path,
        limits: Limits | None,
        keep_recorded: bool = False,
    ) -> LimitRequest:
        pod = find_pod_uid(Path(target), volume.target_paths[target].pod)
        return LimitRequest(
            volume.id, target, pod, self._images.find_device(source) or "", limits, keep_recorded
        )

    def _rebuild_limit_requests(self, volume: NodeVolume) -> list[LimitRequest]:
        """What a start of the plugin finds in force: limits that cannot be had any more stay as they are."""
        limits, keep_recorded = None, False
        try:
            limits = compute_volume_limits(volume)
        except InvalidParameter as error:
            keep_recorded = True
            log.warning("limits stay as they were", extra={"fields": {"volume": volume.id, "reason": error}})
        return [
            self._build_limit_request(volume, path, Path(path), limits, keep_recorded)
            for path in volume.target_paths
        ]

    def _remove_path(self, volume_id: str, path: Path) -> None:
        # The mount and the record may differ: a volume that was staged anew can have pods that still show what it held before.
        image_and_class = self._images.find_image(path)
        digests = {image_and_class[0]} if image_and_class else set()
        self._events.on_volume_removed(volume_id)
        while self._is_mounted(str(path)):
            self._mounts.unmount(path)
        self._throttle.release(str(path))
        volume = self._records.get(volume_id)
        if volume and str(path) in volume.paths:
            digests.add(volume.digest)
            self._records.put(volume.without_paths(str(path)))
        for digest in digests:
            with suppress(NotFound):
                self._store.touch(digest)
            self._images.unmount_unused(digest)

    def _is_mounted(self, path: str) -> bool:
        return find_mount(self._mounts.list_mounts(), path) is not None


def _check_not_cancelled(deadline: Deadline) -> None:
    if deadline.cancelled:
        raise Busy(deadline.cancelled)


def _create_target(path: Path) -> None:
    try:
        path.mkdir(mode=0o750, parents=True, exist_ok=True)
    except OSError as error:
        raise FailedPrecondition(
            f"{path} cannot be made a folder: {error.strerror}; remove what is there"
        ) from error


def _remove_target(path: Path) -> None:
    try:
        path.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        raise FailedPrecondition(
            f"{path} cannot be removed: {error.strerror}; it holds something this driver did not put there"
        ) from error


def _count_inodes(path: Path) -> int:
    # EROFS reports the largest number there is as its inodes, and what is left of that as free.
    status = os.statvfs(path)
    return status.f_files - status.f_ffree
