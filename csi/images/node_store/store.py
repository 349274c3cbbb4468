"""The store: a node's images on disk, within a budget.

    root/format                format of the store
    root/lock                  locked by the one process that owns the store
    root/key                   32 random bytes, for keyed hashes
    root/images/<digest>/      manifest, image or image.partial and journal, facts.json, places.json, used
    root/tmp/                  files being added or removed; emptied at every start

The state of an image follows from which of its files exist, so a process killed at any point leaves nothing
to repair but leftovers, which `sweep` removes. An image is removed by a rename into `tmp`, then file by file.
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
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import replace
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
from csi.parameters.content_ref import ContentRef
from csi.values import format_size

log = logging.getLogger("datacache.store")

STORE_FORMAT = 1
DEFAULT_BUDGET_SHARE = 0.85
"""Default budget as a share of the file system."""


class Store:
    """The store at `root`, created if missing, with at most `budget_bytes` of images.

    The default budget is 85 % of its file system. One process owns a store: a second gets FailedPrecondition.
    All methods are thread-safe; they raise NoSpace if the file system is full and DataCacheError for its
    other errors.
    """

    def __init__(self, root: Path, budget_bytes: int | None = None) -> None:
        self.root = root
        self._images, self._temp = root / "images", root / "tmp"
        # Guards reservations and eviction holds, and every change of the files below `images`. Reentrant
        # since public methods call each other.
        self._lock = threading.RLock()
        # Sizes of images being filled, and the number of holds on others. Only in memory: both end with the
        # process.
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
        """Give up the ownership; idempotent."""
        lock, self._lock_fd = self._lock_fd, -1
        if lock >= 0:
            os.close(lock)

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def load_key(self) -> bytes:
        """Return the store's secret of 32 bytes, created on first use."""
        with self._lock, self._translate_errors():
            return load_or_create_key(self.root / "key")

    def new_temp_path(self) -> Path:
        """Return a new path in the store's file system, for `adopt_manifest`.

        Its file is removed at the next start.
        """
        return self._temp / f"{uuid.uuid4().hex}{TEMP_SUFFIX}"

    def get_paths(self, digest: str) -> ImagePaths:
        """Return the paths of the image's files, whether they exist or not."""
        if not is_digest(digest):
            raise DataCacheError(f"{digest[:80]!r} is not the digest of a manifest")
        return ImagePaths(self._images / digest)

    def adopt_manifest(self, digest: str, temp: Path, image_bytes: int) -> ImageRecord:
        """Move the manifest at `temp` (same file system) into the store, durably.

        This creates a partial image; `image_bytes` is the size of its layout. A known image stays as it is,
        and `temp` is removed.
        """
        paths = self.get_paths(digest)
        with self._lock, self._translate_errors():
            # Files are created before the manifest, whose rename makes the image exist.
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

    def has_manifest(self, digest: str) -> bool:
        """Return whether the manifest of a sealed or partial image is stored."""
        return bool(self.find_sealed(digest) or self.find_partial(digest))

    def read_manifest(self, digest: str) -> Manifest:
        """Read the manifest of an image; raises NotFound, and DataCacheError if it is damaged."""
        path = self._get_record(digest).paths.manifest
        try:
            with path.open("rb") as stream:
                return Manifest.read(stream)
        except FileNotFoundError as error:
            raise NotFound(
                f"the manifest {path} is missing; remove the image so that it is resolved again"
            ) from error

    def read_access(self, digest: str) -> dict[str, str]:
        """Return the pinned spec in the image's manifest as flat parameters; raises as `read_manifest`."""
        path = self._get_record(digest).paths.manifest
        with self._translate_errors(), path.open("rb") as stream:
            return Manifest.read_access(stream)

    def with_source(self, content: ContentRef) -> ContentRef:
        """Return the content with the source that its manifest names, if it has none of its own.

        Raises as `read_manifest`.
        """
        return content if content.source else replace(content, source=self.read_access(content.digest))

    def compute_origin_scope(self, content: ContentRef) -> str:
        """Return the scope of the content's own origin, wherever an image's bytes come from.

        Raises InvalidParameter, and as `read_manifest`.
        """
        content = self.with_source(content)
        return origin_scope.compute_origin_scope(content.source, self.load_key(), content.secrets.values)

    def get_provenance(self, digest: str) -> tuple[str, ...]:
        """Return the scopes known to have a sealed image's bytes, as `read_provenance`.

        Empty without such an image.
        """
        with self._translate_errors():
            return provenance.read_provenance(self.get_paths(digest)) if self.find_sealed(digest) else ()

    def mark_filling_from(self, digest: str, origin_scope: str) -> None:
        """Record that a fill of the image will read from `origin_scope`; must be called before it does."""
        with self._lock, self._translate_errors():
            provenance.mark_filling_from(self._get_record(digest).paths, origin_scope)

    def mark_verified(self, digest: str, origin_scope: str) -> None:
        """Record that `origin_scope` has the bytes of the sealed image.

        Raises NotFound if the image is gone.
        """
        with self._lock, self._translate_errors():
            provenance.mark_verified(self._get_record(digest).paths, origin_scope)

    def find_sealed(self, digest: str) -> ImageRecord | None:
        """Return the image if it can be mounted, else None."""
        return self._find_in_state(digest, ImageState.SEALED)

    def find_partial(self, digest: str) -> ImageRecord | None:
        """Return the image if it still has to be filled, else None."""
        return self._find_in_state(digest, ImageState.PARTIAL)

    def list_images(self) -> list[ImageRecord]:
        """Return all images, ordered by digest."""
        with self._translate_errors():
            folders = sorted(path for path in self._images.iterdir() if is_digest(path.name))
            return [record for folder in folders if (record := read_record(ImagePaths(folder))) is not None]

    def touch(self, digest: str) -> None:
        """Record that the image is being used now; raises NotFound."""
        with self._translate_errors():
            self._get_record(digest).paths.last_used_mark.touch(mode=0o600)

    @contextmanager
    def reserve(self, digest: str, in_use: Callable[[], Container[str]] = frozenset) -> Iterator[ImageRecord]:
        """Reserve space for the whole image while it is filled and sealed.

        Images are evicted, least recently used first, as far as the budget and the file system need it,
        unless they are `in_use` (mounted; the caller knows), held or being filled. `in_use` is called while
        no hold can begin or end, so an image held until it is mounted is never lost. Raises NoSpace, and
        evicts nothing, if eviction would not be enough; Busy if the image is being filled; NotFound if its
        manifest was not adopted.
        """
        with self._lock, self._translate_errors():
            record = self._get_record(digest)
            if digest in self._reserved_bytes:
                raise Busy(f"the image {digest[:12]} is being filled")
            for victim in self._select_victims(record, in_use()):
                self._discard(self.get_paths(victim))
            self._reserved_bytes[digest] = record.size
        try:
            yield record
        finally:
            with self._lock:
                del self._reserved_bytes[digest]

    @contextmanager
    def prevent_eviction(self, digest: str) -> Iterator[ImageRecord]:
        """Hold the image, for example between looking it up and mounting it.

        Raises NotFound if it is gone.
        """
        with self._lock, self._translate_errors():
            record = self._get_record(digest)
            self._eviction_holds[digest] += 1
        try:
            yield record
        finally:
            with self._lock:
                self._eviction_holds[digest] -= 1

    def remove(self, digest: str) -> None:
        """Remove the image in any state; does nothing if there is none.

        Raises Busy while it is filled or held.
        """
        with self._lock, self._translate_errors():
            if digest in self._reserved_bytes or self._eviction_holds[digest]:
                raise Busy(
                    f"the image {digest[:12]} is being filled or mounted; it can be removed after that"
                )
            self._discard(self.get_paths(digest))

    def sweep(self) -> None:
        """Remove leftovers of killed processes.

        These are the contents of `tmp`, folders without an image, and files of finished fills. A sealed image
        that cannot be mounted is removed too, so that it is resolved and filled again.
        """
        with self._lock, self._translate_errors():
            for path in [*self._temp.iterdir(), *self.root.glob(f"*{TEMP_SUFFIX}")]:
                _delete(path)
            for folder in [path for path in self._images.iterdir() if is_digest(path.name)]:
                self._sweep_image(ImagePaths(folder))

    def _sweep_image(self, paths: ImagePaths) -> None:
        if paths.folder.name in self._reserved_bytes:
            return
        # A manifest without any image file belongs to a volume that was deleted before its fill; resolving it
        # again restores it.
        if read_record(paths) is None or not (paths.image.exists() or paths.partial.exists()):
            self._discard(paths)
            return
        if paths.image.exists() and not has_root_directory(paths.image):
            log.warning(
                "removing image without root directory", extra={"fields": {"image": paths.folder.name}}
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
        # A partial image without a running fill counts what it uses, not what it would need.
        size = self._reserved_bytes[record.digest] if is_filling else record.allocated
        is_in_use = is_filling or self._eviction_holds[record.digest] > 0 or record.digest in in_use
        return ImageUsage(record.digest, size, record.allocated, record.last_used, is_in_use)

    def _get_record(self, digest: str) -> ImageRecord:
        record = read_record(self.get_paths(digest))
        if record is None:
            raise NotFound(f"the store {self.root} has no image {digest[:12]}; it has to be resolved first")
        return record

    def _find_in_state(self, digest: str, state: ImageState) -> ImageRecord | None:
        with self._translate_errors():
            record = read_record(self.get_paths(digest))
        return record if record is not None and record.state is state else None

    def _discard(self, paths: ImagePaths) -> None:
        if paths.folder.exists():
            # After the rename the image is gone at once, however long the deletion takes and whenever it is
            # killed.
            trash_path = self._temp / f"{paths.folder.name}.{uuid.uuid4().hex}"
            rename_and_sync(paths.folder, trash_path)
            _delete(trash_path)

    def _create_folders(self) -> None:
        format_file = self.root / "format"
        if not format_file.exists():
            write_json(format_file, {"format": STORE_FORMAT})
        read_json(format_file, STORE_FORMAT)
        for folder in (self._images, self._temp):
            folder.mkdir(mode=0o700, exist_ok=True)
        fsync_folder(self.root)

    def _get_disk_space(self) -> tuple[int, int]:
        """Return the bytes of the file system: total, and free for this process."""
        status = os.statvfs(self.root)
        return status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                free_text = format_size(self._get_disk_space()[1])
                raise NoSpace(
                    f"the file system of the store {self.root} is full: {free_text} left; "
                    "add or free space on the node"
                ) from error
            raise DataCacheError(
                f"the store {self.root} cannot be used: {error.strerror} ({error.filename}); "
                "look at the node's disk"
            ) from error


def _acquire_lock(root: Path) -> int:
    # flock(2) is released by the kernel when the process ends, however it ends.
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
