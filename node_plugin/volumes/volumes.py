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

from csi.concurrency.deadline import Patience
from csi.concurrency.keyed_locks import KeyedLocks
from csi.concurrency.wait_limiter import WaitingRoom
from csi.destinations.allow_list import AllowList, named_by_user
from csi.errors import AlreadyExists, Busy, DataCacheError, FailedPrecondition, InvalidParameter, NoSpace, NotFound, VolumeNotFound
from csi.images.node_store.records import State
from csi.images.node_store.store import Store
from csi.linux.cgroups.pod_cgroups import pod_uid
from csi.linux.mounts import Mounts, at, real
from csi.parameters import access_modes
from csi.parameters.access_modes import AccessMode
from csi.parameters.cache_name import PATH, CacheName, cache_name
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.volume_parameters import VolumeParameters, parse, parse_kept
from csi.performance.capacity import whole_gib
from csi.performance.limits import Limits
from csi.worker.protocol import Resolution
from node_plugin.fills.fill_events import FillEvents
from node_plugin.fills.fills import HOPELESS, Fills
from node_plugin.throttle.throttle import Throttle, Wanted
from node_plugin.volumes.authorized_resolver import Proving
from node_plugin.volumes.data_cache_grants import GrantedCaches
from node_plugin.volumes.image_mounts import ImageMounts
from node_plugin.volumes.limits import VolumeLimits, in_words, limit_class, limits_of, read_ahead
from node_plugin.volumes.mount_request import MountRequest, Stats
from node_plugin.volumes.pins import NodePins
from node_plugin.volumes.records import NO_LIMITS, NodeVolume, VolumeRecords

log = logging.getLogger("datacache.volumes")

# Whoever changes a volume is done in milliseconds (what takes long holds no lock); kubelet would wait longer before it calls again.
_LOCK_SECONDS, _RENEW_SECONDS = 1.0, 5.0
_How = Literal["staged", "targets"]


class Volumes:
    """The node's volumes. Thread-safe."""

    def __init__(
        self,
        records: VolumeRecords,
        store: Store,
        proving: Proving,
        fills: Fills,
        images: ImageMounts,
        mounts: Mounts,
        room: WaitingRoom,
        allowed: AllowList,
        limits: VolumeLimits,
        throttle: Throttle,
        pins: NodePins | None = None,
        events: FillEvents | None = None,
        granted: GrantedCaches | None = None,
    ) -> None:
        self._records, self._store, self._proving, self._fills = records, store, proving, fills
        self._images, self._mounts, self._room, self._allowed = images, mounts, room, allowed
        self._limits, self._throttle, self._pins, self._events = limits, throttle, pins or NodePins(), events or FillEvents()
        self._granted = granted
        self._locks = KeyedLocks()

    def stage(self, request: MountRequest, patience: Patience) -> None:
        """Mount the volume's image and mark the staging path with it, filling it first where needed.

        Raises InvalidParameter, AlreadyExists (staged differently), Busy (in work, with progress), NoSpace,
        SourceChanged, UnsupportedByNode and the errors of a Source.
        """
        asked = self._checked(request)
        if self._is_shown(request, "staged"):
            return
        with self._events.failures(request.subject):
            self._bring(request, asked, patience, "staged")

    def publish(self, request: MountRequest, patience: Patience) -> None:
        """Show a staged volume, or an inline one from its source on, at the target path.

        Raises as `stage`; FailedPrecondition when the volume is not staged, or single-writer and published elsewhere.
        """
        if self._is_shown(request, "targets"):
            return
        if request.inline:
            with self._events.failures(request.subject):
                self._publish_inline(request, patience)
            return
        if not request.staging:
            raise InvalidParameter("staging_target_path is missing; only inline volumes are published without it")
        self._checked(request)
        with self._locks.hold(request.volume_id, _LOCK_SECONDS):
            self._publish_staged(request)

    def _publish_inline(self, request: MountRequest, patience: Patience) -> None:
        if name := cache_name(request.context):
            self._publish_data_cache(request, name, patience)
            return
        asked = parse(request.context, request.flags)
        self._allowed.check(asked)
        with self._pins.using(request.volume_id):
            self._bring(request, replace(asked, spec=named_by_user(asked.spec)), patience, "targets")
        self._events.pinned(request.subject, self._pins.pin_of(request.volume_id))

    def _publish_data_cache(self, request: MountRequest, name: CacheName, patience: Patience) -> None:
        """The cache's grant is the authorisation, and its own credential reads."""
        if self._granted is None:
            raise FailedPrecondition(f"{PATH} names a DataCache, and this node knows none; start the node plugin with --registry")
        with self._room.present(request.volume_id, patience):
            self._images.check_node()
            granted = self._granted.at(name.bucket, name.path, request.namespace)
            self._granted.bring_manifest(request.volume_id, granted, patience)
            known = self._granted.is_known(granted)
            content, capacity, own = granted.content, granted.capacity_bytes, request.own_context
            volume = NodeVolume(request.volume_id, content.digest, own, capacity, content.content_bytes, True, performance=name.performance)
            volume = replace(volume, limit_class=limit_class(volume))
            self._show_filled(request, content.digest, content.access, granted.secrets, patience, "targets", lambda: volume, known)

    def _bring(self, request: MountRequest, asked: VolumeParameters, patience: Patience, kind: _How) -> None:
        """From the source to the path: authorised, filled, mounted, shown. Taking the volume away ends it at any point before that."""
        with self._room.present(request.volume_id, patience):
            self._images.check_node()
            found = self._found(request, asked, patience)
            access = found.spec.to_context()
            self._show_filled(request, found.digest, access, request.secrets, patience, kind, lambda: self._volume(request, asked, found))

    def _show_filled(
        self,
        request: MountRequest,
        digest: str,
        access: Mapping[str, str],
        secrets: Mapping[str, str],
        patience: Patience,
        kind: _How,
        volume: Callable[[], NodeVolume],
        known: bool = False,
    ) -> None:
        """Show the `volume` that is made then once its image is full, which `access` and `secrets` read; `known` as for `Fills.wait`."""
        _still_wanted(patience)
        with self._holding(digest):
            self._fills.wait(request.volume_id, digest, secrets, patience, access, request.subject, known)
            with self._locks.hold(request.volume_id, _LOCK_SECONDS):
                _still_wanted(patience)
                if not self._is_shown(request, kind):
                    shown = self._shown_volume(request, digest, kind, volume)
                    self._store.touch(shown.digest)
                    self._show_image(request.path, shown, (shown.digest, shown.limit_class))
                    self._events.clamped(request.subject, limits_of(shown))

    def _found(self, request: MountRequest, asked: VolumeParameters, patience: Patience) -> Resolution:
        """What the volume holds, once its own credential has read from the origin; for inline volumes of a namespace the same everywhere."""

        def resolve(spec: CacheSpec, digest: str | None) -> Resolution:
            # Where nothing is pinned yet this answer becomes the pin: it has to be what the source holds now.
            anew = request.inline and digest is None and self._pins.shared(request.namespace)
            return self._proving.proven(request.volume_id, spec, digest, request.secrets, patience, anew)

        if not request.inline:
            return resolve(asked.spec, asked.manifest_digest)
        return self._pins.resolved(request.volume_id, request.namespace, asked.spec, resolve)

    def _shown_volume(self, request: MountRequest, digest: str, kind: _How, made: Callable[[], NodeVolume]) -> NodeVolume:
        """The volume as it is known already, or else as it is `made` now, shown at one path more."""
        known = self._records.get(request.volume_id)
        volume = known if known and known.digest == digest else made()
        path = str(request.path)
        return volume.with_staged(path, request.shown) if kind == "staged" else volume.with_target(path, request.shown)

    def _volume(self, request: MountRequest, asked: VolumeParameters, found: Resolution) -> NodeVolume:
        capacity = asked.capacity_bytes or max(asked.size_bytes or 0, whole_gib(found.content_bytes))
        volume = NodeVolume(request.volume_id, found.digest, request.own_context, capacity, found.content_bytes, request.inline)
        volume = self._limits.known(volume)
        return replace(volume, limit_class=limit_class(volume), pin=self._pins.of(request.volume_id))

    def _publish_staged(self, request: MountRequest) -> None:
        volume = self._records.get(request.volume_id)
        if volume is None or request.staging not in volume.staged or not self._is_mounted(request.staging):
            raise FailedPrecondition(f"volume {request.volume_id} is not staged at {request.staging}; stage it first")
        if self._is_shown(request, "targets"):
            return
        others = [path for path in volume.targets if path != str(request.path)]
        if request.mode is AccessMode.SINGLE_NODE_SINGLE_WRITER and others:
            raise FailedPrecondition(f"volume {request.volume_id} has access mode ReadWriteOncePod and is published at {others[0]} already")
        image = self._images.shown_at(Path(request.staging)) or (volume.digest, volume.limit_class)
        self._show_image(request.path, self._limits.known(volume).with_target(str(request.path), request.shown), image)

    def unpublish(self, volume_id: str, path: Path) -> None:
        """Take the volume away from the target path and remove it; what is not there is no error. Raises Busy while in use."""
        path = real(path)
        self._room.cancel(volume_id, "the volume is being unpublished")
        with self._locks.hold(volume_id, _LOCK_SECONDS):
            self._take_away(volume_id, path)
            if not (left := self._records.get(volume_id)) or not left.paths:
                self._pins.let_go(volume_id)
            _remove_target(path)

    def unstage(self, volume_id: str, path: Path) -> None:
        """Take the volume away from the staging path, which stays; what is not there is no error. Raises Busy while in use."""
        path = real(path)
        self._room.cancel(volume_id, "the volume is being unstaged")
        with self._locks.hold(volume_id, _LOCK_SECONDS):
            self._take_away(volume_id, path)

    def stats(self, volume_id: str, path: Path) -> Stats:
        """The numbers and condition of a volume shown at `path`; raises VolumeNotFound where it is not."""
        volume = self._records.get(volume_id)
        path = real(path) if path.is_absolute() else path
        if volume is None or str(path) not in volume.paths:
            raise VolumeNotFound(f"volume {volume_id[:200]!r} is not at {str(path)!r} on this node")
        if not self._is_mounted(str(path)):
            lost = f"nothing is mounted at {path} any more; delete the pod to mount it anew"
            return Stats(volume.capacity_bytes, volume.content_bytes, 0, True, lost)
        message = f"image {volume.digest[:12]} mounted read-only, {self._limits_in_words(volume, str(path))}"
        return Stats(volume.capacity_bytes, volume.content_bytes, _inodes(self._images.content_at(path)), False, message)

    def _limits_in_words(self, volume: NodeVolume, path: str) -> str:
        if path in volume.targets:
            return in_words(self._throttle.held(path))
        try:
            return f"in each pod: {limits_of(volume) or 'no I/O limits'}"
        except InvalidParameter as error:
            return f"no limits can be had: {error}"

    def renew_limits(self, volume_id: str) -> None:
        """Put a volume's limits in force as the registry has them now, wherever it is shown. Raises InvalidParameter, Busy."""
        volume = self._records.get(volume_id)
        if volume is None:
            return
        with self._locks.hold(volume_id, _RENEW_SECONDS):
            volume = self._records.get(volume_id)
            known = volume and self._limits.known(volume)
            if known is None or known == volume:
                return
            limits = limits_of(known)
            self._records.put(known)
            self._throttle.renew(volume_id, limits)
            if known.limit_class != NO_LIMITS:
                self._images.read_ahead(known.digest, known.limit_class, read_ahead(limits))

    def recover(self) -> None:
        """After a start: forget what is not mounted any more, release what no volume shows, go on with fills that need no secret."""
        self._store.sweep()
        wanted: list[Wanted] = []
        for volume in self._records.all():
            gone = [path for path in volume.paths if not self._is_mounted(path)]
            for path in set(gone) & set(volume.targets):
                with suppress(OSError):
                    Path(path).rmdir()
            left = self._limits.known(volume.without(*gone))
            self._records.put(left)
            self._cover(left)
            self._pins.adopt([left] if left.paths else [])
            wanted += self._still_wanted(left) if left.paths else []
        self._throttle.resume(wanted)
        self._images.sweep()
        for image in self._store.images():
            if image.state is State.PARTIAL and image.paths.journal.exists():
                self._go_on(image.digest)

    def _cover(self, volume: NodeVolume) -> None:
        for path in volume.staged:
            try:
                self._images.cover(self._images.path(volume.digest, volume.limit_class), Path(path))
            except DataCacheError as error:
                log.warning("staging path not marked", extra={"fields": {"volume": volume.id, "path": path, "reason": error}})

    def _go_on(self, digest: str) -> None:
        log.info("going on with a fill", extra={"fields": {"image": digest}})
        try:
            self._fills.begin(digest, {})
        except DataCacheError as error:
            log.warning("fill not begun", extra={"fields": {"image": digest, "reason": error}})

    def _checked(self, request: MountRequest) -> VolumeParameters:
        asked = parse_kept(request.context, request.flags)
        access_modes.check(request.mode, asked.downgrade_writers)
        return asked

    @contextmanager
    def _holding(self, digest: str) -> Iterator[None]:
        """Keep the image and its mount for the block; one that turned out wrong or too large goes when the last who held it lets go."""
        try:
            with ExitStack() as held:
                held.enter_context(self._images.hold(digest))
                try:
                    held.enter_context(self._store.hold(digest))
                except NotFound as error:
                    raise Busy(f"the image {digest[:12]} was evicted meanwhile; call again to fill it anew") from error
                yield
        except (*HOPELESS, NoSpace):
            self._fills.discard(digest)
            raise

    def _is_shown(self, request: MountRequest, kind: _How) -> bool:
        """Whether `request` is fulfilled already; raises AlreadyExists where its path shows the volume in another way."""
        volume = self._records.get(request.volume_id)
        shown = volume and (volume.staged if kind == "staged" else volume.targets).get(str(request.path))
        if volume is None or shown is None or not self._is_mounted(str(request.path)):
            return False
        if shown != request.shown or volume.context != request.own_context:
            raise AlreadyExists(f"volume {request.volume_id} is at {request.path} already with other arguments; take it away there first")
        return True

    def _show_image(self, path: Path, volume: NodeVolume, image: tuple[str, str]) -> None:
        """Mount the image (digest, limit class), unless it is, and show it at `path`."""
        digest, name = image
        ahead = read_ahead(limits_of(volume)) if name != NO_LIMITS else None
        self._show(self._images.mount(digest, self._store.paths(digest).image, name, ahead), path, volume)

    def _show(self, source: Path, path: Path, volume: NodeVolume) -> None:
        """Record that `volume` is shown at `path`, hold its limits there, then show it; a failure leaves none of it."""
        self._records.put(volume)
        try:
            if str(path) in volume.targets:
                self._throttle.hold(self._wanted(volume, str(path), source, limits_of(volume)))
            _make_target(path)
            show = self._mounts.bind if str(path) in volume.targets else self._images.mark
            show(source, path)
        except BaseException:
            self._mounts.unmount(path)
            self._throttle.release(str(path))
            self._records.put(volume.without(str(path)))
            raise

    def _wanted(self, volume: NodeVolume, target: str, source: Path, limits: Limits | None, unknown: bool = False) -> Wanted:
        pod = pod_uid(Path(target), volume.targets[target].pod)
        return Wanted(volume.id, target, pod, self._images.device_at(source) or "", limits, unknown)

    def _still_wanted(self, volume: NodeVolume) -> list[Wanted]:
        """What a start of the plugin finds in force: limits that cannot be had any more stay as they are."""
        limits, unknown = None, False
        try:
            limits = limits_of(volume)
        except InvalidParameter as error:
            unknown = True
            log.warning("limits stay as they were", extra={"fields": {"volume": volume.id, "reason": error}})
        return [self._wanted(volume, path, Path(path), limits, unknown) for path in volume.targets]

    def _take_away(self, volume_id: str, path: Path) -> None:
        # The mount and the record may differ: a volume that was staged anew can have pods that still show what it held before.
        shown = self._images.shown_at(path)
        digests = {shown[0]} if shown else set()
        self._events.left(volume_id)
        while self._is_mounted(str(path)):
            self._mounts.unmount(path)
        self._throttle.release(str(path))
        volume = self._records.get(volume_id)
        if volume and str(path) in volume.paths:
            digests.add(volume.digest)
            self._records.put(volume.without(str(path)))
        for digest in digests:
            with suppress(NotFound):
                self._store.touch(digest)
            self._images.release(digest)

    def _is_mounted(self, path: str) -> bool:
        return at(self._mounts.table(), path) is not None


def _still_wanted(patience: Patience) -> None:
    if patience.cancelled:
        raise Busy(patience.cancelled)


def _make_target(path: Path) -> None:
    try:
        path.mkdir(mode=0o750, parents=True, exist_ok=True)
    except OSError as error:
        raise FailedPrecondition(f"{path} cannot be made a folder: {error.strerror}; remove what is there") from error


def _remove_target(path: Path) -> None:
    try:
        path.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        raise FailedPrecondition(f"{path} cannot be removed: {error.strerror}; it holds something this driver did not put there") from error


def _inodes(path: Path) -> int:
    # EROFS reports the largest number there is as its inodes, and what is left of that as free.
    status = os.statvfs(path)
    return status.f_files - status.f_ffree
