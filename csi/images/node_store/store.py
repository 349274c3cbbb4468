"""The store: a node's images on disk, within a budget.

    root/format                what wrote this store
    root/lock                  held by the one process that owns it
    root/key                   32 random bytes, for keyed hashes
    root/images/<digest>/      manifest, image or image.partial and journal, facts.json, places.json, used
    root/tmp/                  what is on its way in or out; emptied at every start

What an image is follows from which of its files are there, so a process killed at any point leaves nothing to repair but
leftovers, and `sweep` removes those. An image goes by a rename into `tmp`, then its files are removed.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from csi.errors import Busy, DataCacheError, FailedPrecondition, NoSpace, NotFound
from csi.images.layout.layout import has_root_directory
from csi.images.node_store import provenance
from csi.images.node_store.eviction import ImageUsage, select_victims
from csi.images.node_store.records import (
    ImagePaths,
    ImageRecord,
    ImageState,
    is_digest,
    read_record,
    write_facts,
)
from csi.linux.durable_files import (
    TEMP_SUFFIX,
    fsync_file,
    fsync_folder,
    load_or_create_key,
    read_json,
    rename_and_sync,
    write_json,
)
from csi.manifest.manifest import Manifest
from csi.parameters import origin_scope
from csi.values import format_size

log = logging.getLogger("datacache.store")

STORE_FORMAT = 1
DEFAULT_BUDGET_SHARE = 0.85
"""The budget's share of the file system where none is given."""


class Store:
    """The store at `root`, made when it is not there; at most `budget_bytes` of images (default: 85 % of its file system).

    One process owns a store: a second gets FailedPrecondition. All methods may be called by many threads, raise
    NoSpace when the file system is full and DataCacheError for its other faults.
    """

    def __init__(self, root: Path, budget_bytes: int | None = None) -> None:
        self.root = root
        self._images, self._temp = root / "images", root / "tmp"
        self._mutex = threading.RLock()
        self._reserved_bytes: dict[str, int] = {}
        self._eviction_holds: Counter[str] = Counter()
        with self._translate_errors():
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock_fd = _acquire_lock(root)
            try:
                self._create_folders()
                self.budget_bytes = (
                    int(self._get_disk_space()[0] * DEFAULT_BUDGET_SHARE)
                    if budget_bytes is None
                    else budget_bytes
                )
            except BaseException:
                os.close(self._lock_fd)
                raise

    def close(self) -> None:
        """Give up the ownership; a second time changes nothing."""
        lock, self._lock_fd = self._lock_fd, -1
        if lock >= 0:
            os.close(lock)

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def key(self) -> bytes:
        """The store's secret of 32 bytes, made on first use."""
        with self._mutex, self._translate_errors():
            return load_or_create_key(self.root / "key")

    def new_temp_path(self) -> Path:
        """A new name in the store's file system, for what `adopt_manifest` takes; gone after the next start."""
        return self._temp / f"{uuid.uuid4().hex}{TEMP_SUFFIX}"

    def paths(self, digest: str) -> ImagePaths:
        """Where the image's files are, or would be."""
        if not is_digest(digest):
            raise DataCacheError(f"{digest[:80]!r} is not the digest of a manifest")
        return ImagePaths(self._images / digest)

    def adopt_manifest(self, digest: str, temp: Path, image_bytes: int) -> ImageRecord:
        """Move the manifest at `temp` (same file system) into the store, durably: from now on there is a partial image.

        `image_bytes` is the size of its layout. An image that is known already stays as it is, and `temp` is removed.
        """
        paths = self.paths(digest)
        with self._mutex, self._translate_errors():
            record = read_record(paths)
            if record is None:
                self._discard(paths)
                paths.folder.mkdir(mode=0o700)
                write_facts(paths, digest, image_bytes)
                fsync_file(temp)
                rename_and_sync(temp, paths.manifest)
                fsync_folder(self._images)
                record = self._get_record(digest)
            temp.unlink(missing_ok=True)
            return record

    def read_manifest(self, digest: str) -> Manifest:
        """The manifest of an image in the store; raises NotFound, and DataCacheError when it is damaged."""
        path = self._get_record(digest).paths.manifest
        try:
            with path.open("rb") as stream:
                return Manifest.read(stream)
        except FileNotFoundError as error:
            raise NotFound(
                f"the manifest {path} is missing; remove the image so that it is resolved again"
            ) from error

    def read_access(self, digest: str) -> dict[str, str]:
        """The pinned spec that the image's manifest came from, as flat parameters; raises as `read_manifest`."""
        path = self._get_record(digest).paths.manifest
        with self._translate_errors(), path.open("rb") as stream:
            return Manifest.read_access(stream)

    def compute_origin_scope(self, access: Mapping[str, str], secrets: Mapping[str, str]) -> str:
        """The place that a pinned spec, as flat parameters, reads from with this credential; raises InvalidParameter."""
        return origin_scope.compute_origin_scope(access, self.key(), secrets)

    def get_provenance(self, digest: str) -> tuple[str, ...]:
        """The places (`csi.images.node_store.provenance`) known to hold the bytes of a sealed image; none when there is no such image."""
        with self._translate_errors():
            return provenance.read_provenance(self.paths(digest)) if self.find_sealed(digest) else ()

    def mark_filling_from(self, digest: str, origin_scope: str) -> None:
        """A fill of the image is going to read from `origin_scope`; to be said before it does."""
        with self._mutex, self._translate_errors():
            provenance.mark_filling_from(self._get_record(digest).paths, origin_scope)

    def mark_verified(self, digest: str, origin_scope: str) -> None:
        """The bytes of `origin_scope` were found to be those of the sealed image; raises NotFound when it is gone."""
        with self._mutex, self._translate_errors():
            provenance.mark_verified(self._get_record(digest).paths, origin_scope)

    def find_sealed(self, digest: str) -> ImageRecord | None:
        """The image, if it can be mounted."""
        return self._find_in_state(digest, ImageState.SEALED)

    def find_partial(self, digest: str) -> ImageRecord | None:
        """The image, if it has to be filled first."""
        return self._find_in_state(digest, ImageState.PARTIAL)

    def list_images(self) -> list[ImageRecord]:
        """All images, ordered by digest."""
        with self._translate_errors():
            folders = sorted(path for path in self._images.iterdir() if is_digest(path.name))
            return [record for folder in folders if (record := read_record(ImagePaths(folder))) is not None]

    def touch(self, digest: str) -> None:
        """The image is being used now; raises NotFound."""
        with self._translate_errors():
            self._get_record(digest).paths.last_used_mark.touch(mode=0o600)

    @contextmanager
    def reserve(self, digest: str, in_use: Callable[[], Container[str]] = frozenset) -> Iterator[ImageRecord]:
        """Hold room for the whole image while it is filled and sealed.

        Images that are neither `in_use` (mounted; the caller knows) nor held nor being filled go, least recently used first,
        as far as the budget and the file system need it. `in_use` is asked while no hold can begin or end: who holds an
        image until it is mounted never loses it. Raises NoSpace, and evicts nothing, when that would not do; Busy
        when the image is being filled; NotFound when its manifest was not adopted.
        """
        with self._mutex, self._translate_errors():
            record = self._get_record(digest)
            if digest in self._reserved_bytes:
                raise Busy(f"the image {digest[:12]} is being filled")
            for victim in self._select_victims(record, in_use()):
                self._discard(self.paths(victim))
            self._reserved_bytes[digest] = record.size
        try:
            yield record
        finally:
            with self._mutex:
                del self._reserved_bytes[digest]

    @contextmanager
    def prevent_eviction(self, digest: str) -> Iterator[ImageRecord]:
        """Keep the image where it is, such as between looking it up and having it mounted; raises NotFound when it is gone."""
        with self._mutex, self._translate_errors():
            record = self._get_record(digest)
            self._eviction_holds[digest] += 1
        try:
            yield record
        finally:
            with self._mutex:
                self._eviction_holds[digest] -= 1

    def remove(self, digest: str) -> None:
        """Remove the image, whatever its state; nothing happens when there is none. Raises Busy while it is being filled or held."""
        with self._mutex, self._translate_errors():
            if digest in self._reserved_bytes or self._eviction_holds[digest]:
                raise Busy(
                    f"the image {digest[:12]} is being filled or mounted; it can be removed after that"
                )
            self._discard(self.paths(digest))

    def sweep(self) -> None:
        """Remove what a killed process left: everything in `tmp`, folders without an image, files of a finished fill.

        A sealed image that cannot be mounted goes too, so that it is resolved and filled anew.
        """
        with self._mutex, self._translate_errors():
            for path in [*self._temp.iterdir(), *self.root.glob(f"*{TEMP_SUFFIX}")]:
                _delete(path)
            for folder in [path for path in self._images.iterdir() if is_digest(path.name)]:
                self._sweep_image(ImagePaths(folder))

    def _sweep_image(self, paths: ImagePaths) -> None:
        if paths.folder.name in self._reserved_bytes:
            return
        # A manifest without a byte of its image is of a volume that was taken away before the fill; resolving gives it again.
        if read_record(paths) is None or not (paths.image.exists() or paths.partial.exists()):
            self._discard(paths)
            return
        if paths.image.exists() and not has_root_directory(paths.image):
            log.warning(
                "an image that no kernel mounts is removed", extra={"fields": {"image": paths.folder.name}}
            )
            self._discard(paths)
            return
        for leftover in paths.folder.glob(f"*{TEMP_SUFFIX}"):
            leftover.unlink()
        paths.progress.unlink(missing_ok=True)
        if paths.image.exists():
            paths.journal.unlink(missing_ok=True)
            paths.partial.unlink(missing_ok=True)

    def _select_victims(self, record: ImageRecord, in_use: Container[str]) -> list[str]:
        others = [
            self._get_usage(other, in_use) for other in self.list_images() if other.digest != record.digest
        ]
        requested = ImageUsage(record.digest, record.size, record.allocated)
        return select_victims(requested, others, self.budget_bytes, self._get_disk_space()[1])

    def _get_usage(self, record: ImageRecord, in_use: Container[str]) -> ImageUsage:
        is_filling = record.digest in self._reserved_bytes
        # A partial image that nobody fills takes what it has, not what it would need.
        size = self._reserved_bytes[record.digest] if is_filling else record.allocated
        is_in_use = is_filling or self._eviction_holds[record.digest] > 0 or record.digest in in_use
        return ImageUsage(record.digest, size, record.allocated, record.last_used, is_in_use)

    def _get_record(self, digest: str) -> ImageRecord:
        record = read_record(self.paths(digest))
        if record is None:
            raise NotFound(f"the store {self.root} has no image {digest[:12]}; it has to be resolved first")
        return record

    def _find_in_state(self, digest: str, state: ImageState) -> ImageRecord | None:
        with self._translate_errors():
            record = read_record(self.paths(digest))
        return record if record is not None and record.state is state else None

    def _discard(self, paths: ImagePaths) -> None:
        if paths.folder.exists():
            doomed = self._temp / f"{paths.folder.name}.{uuid.uuid4().hex}"
            rename_and_sync(paths.folder, doomed)
            _delete(doomed)

    def _create_folders(self) -> None:
        stamp = self.root / "format"
        if not stamp.exists():
            write_json(stamp, {"format": STORE_FORMAT})
        read_json(stamp, STORE_FORMAT)
        for folder in (self._images, self._temp):
            folder.mkdir(mode=0o700, exist_ok=True)
        fsync_folder(self.root)

    def _get_disk_space(self) -> tuple[int, int]:
        """Bytes of the file system: all, and free for this process."""
        status = os.statvfs(self.root)
        return status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                left = format_size(self._get_disk_space()[1])
                raise NoSpace(
                    f"the file system of the store {self.root} is full: {left} left; add or free space on the node"
                ) from error
            raise DataCacheError(
                f"the store {self.root} cannot be used: {error.strerror} ({error.filename}); look at the node's disk"
            ) from error


def _acquire_lock(root: Path) -> int:
    fd = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise FailedPrecondition(
            f"the store {root} belongs to another running process; stop it or give this one another --store"
        ) from error
    return fd


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
