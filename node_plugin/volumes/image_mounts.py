"""Mounts of images: one loop device and EROFS mount per (image, limit class), shared by all its volumes.

Target paths are bind mounts of an image's mount. A staging path is not: kubelet does not unstage a volume
whose device is mounted elsewhere too. It gets a marker, an empty tmpfs whose source in the mount table names
the image's mount.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock

from csi.errors import Busy, FailedPrecondition
from csi.linux.loop_devices import LoopDevices
from csi.linux.mounts import Mount, MountTable, find_mount

log = logging.getLogger("datacache.images")

# Seconds to wait for the kernel to free a loop device, for the log only.
_FREE_TIMEOUT = 2.0
_MARKER_PREFIX = "datacache:"


class ImageMounts:
    """The image mounts of this node, at `folder`/<digest>/<limit class>. Thread-safe.

    `check_node` raises UnsupportedByNode if the node cannot mount images.
    """

    def __init__(
        self, folder: Path, mounts: MountTable, loops: LoopDevices, check_node: Callable[[], None]
    ) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder.resolve()
        self._mounts, self._loops = mounts, loops
        self._check_node = check_node
        # Order: _mount_lock before _users_lock.
        self._mount_lock = Lock()
        # Number of running `hold_mounts` blocks by digest.
        self._users: Counter[str] = Counter()
        self._users_lock = Lock()

    @contextmanager
    def hold_mounts(self, digest: str) -> Iterator[None]:
        """Hold the mounts of an image for the block, whether there are any yet or not.

        `unmount_unused` skips the image, and `list_in_use` lists it. If the block fails, a mount without
        volumes is removed.
        """
        with self._users_lock:
            self._users[digest] += 1
        try:
            yield
        except BaseException:
            self._remove_user(digest)
            self.unmount_unused(digest)
            raise
        self._remove_user(digest)

    def _remove_user(self, digest: str) -> None:
        with self._users_lock:
            self._users[digest] -= 1
            if not self._users[digest]:
                del self._users[digest]

    def list_in_use(self) -> set[str]:
        """List the digests of images that are mounted, marked or kept by `hold_mounts`."""
        table = self._mounts.list_mounts()
        mounted = {digest for digest, _, _ in self._list_image_mounts(table)} | {
            image.parent.name for image in map(self._parse_marker, table) if image
        }
        with self._users_lock:
            return mounted | set(self._users)

    def check_node(self) -> None:
        """Raise UnsupportedByNode if this node cannot mount images, before anything is fetched for it."""
        self._check_node()

    def mount(self, digest: str, image_file: Path, limit_class: str, read_ahead: int | None = None) -> Path:
        """Mount the image for a limit class, unless it is mounted already; return the mount point.

        `read_ahead` is the kernel's read-ahead in bytes, None for the loop devices' default. Raises
        FailedPrecondition if the image has neither a mount nor a file, UnsupportedByNode, DataCacheError.
        """
        target = self.mount_path(digest, limit_class)
        with self._mount_lock:
            mount = find_mount(self._mounts.list_mounts(), target)
            exists = image_file.exists()
            # Without a file, the mount is all that is left of the image, and is used. A mount of another
            # file stems from an earlier fill of the same digest, and is replaced.
            if mount and (not exists or self._loops.is_backed_by(mount.source, image_file)):
                return target
            if not exists:
                raise FailedPrecondition(
                    f"the image {digest[:12]} was removed from this node's store; "
                    "delete the volume's pods on this node, and it is staged again"
                )
            if mount:
                self._mounts.unmount(target)
            self._check_node()
            target.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._loops.attach(image_file, read_ahead) as device:
                self._mounts.mount_image(device, target)
            fields = {"image": digest, "device": device, "class": limit_class}
            log.info("image mounted", extra={"fields": fields})
            return target

    def mount_path(self, digest: str, limit_class: str) -> Path:
        """Return the mount point of the image for a limit class, whether it is mounted or not."""
        return self._folder / digest / limit_class

    def mount_marker(self, image_mount_point: Path, path: Path) -> None:
        """Mount a marker at `path`: the image at `image_mount_point` is in use. Raises DataCacheError."""
        self._mounts.mount_marker(f"{_MARKER_PREFIX}{image_mount_point}", path)

    def cover_with_marker(self, image_mount_point: Path, path: Path) -> None:
        """Mount a marker over a bind mount at `path`, by which earlier versions staged volumes.

        Raises DataCacheError.
        """
        mount = find_mount(self._mounts.list_mounts(), path)
        if mount and not self._parse_marker(mount):
            self.mount_marker(image_mount_point, path)

    def set_read_ahead(self, digest: str, limit_class: str, size: int | None) -> None:
        """Set the read-ahead of an image's mount to `size` bytes, None for the loop devices' default."""
        mount = find_mount(self._mounts.list_mounts(), self.mount_path(digest, limit_class))
        if mount:
            self._loops.set_read_ahead(mount.source, size)

    def find_device(self, path: Path) -> str | None:
        """Return "major:minor" of the device mounted at `path`, None if nothing is mounted there."""
        mount = find_mount(self._mounts.list_mounts(), path)
        return mount.device if mount else None

    def find_content(self, path: Path) -> Path:
        """Return the mount point of the image that `path` shows or marks; `path` itself if there is none."""
        image_and_class = self.find_digest_and_class(path)
        image_mount_point = self.mount_path(*image_and_class) if image_and_class else path
        return image_mount_point if self.find_device(image_mount_point) else path

    def find_digest_and_class(self, path: Path) -> tuple[str, str] | None:
        """Return digest and limit class of the image that is mounted or marked at `path`, None if none is."""
        table = self._mounts.list_mounts()
        mount = find_mount(table, path)
        if mount is None:
            return None
        if marked := self._parse_marker(mount):
            return marked.parent.name, marked.name
        for digest, limit_class, image in self._list_image_mounts(table):
            if image.device == mount.device:
                return digest, limit_class
        return None

    def unmount_unused(self, digest: str) -> None:
        """Unmount the image for each limit class without volumes; the kernel frees the loop devices."""
        with self._mount_lock:
            with self._users_lock:
                if digest in self._users:
                    return
            table = self._mounts.list_mounts()
            unused = [
                mount
                for mounted_digest, _, mount in self._list_image_mounts(table)
                if mounted_digest == digest and not self._is_mounted_elsewhere(mount, table)
            ]
            freed_devices = [mount.source for mount in unused if self._try_unmount(digest, mount)]
        for device in freed_devices:
            freed = self._loops.wait_until_free(device, _FREE_TIMEOUT)
            log.info("image unmounted", extra={"fields": {"image": digest, "device": device, "freed": freed}})

    def unmount_all_unused(self) -> None:
        """Unmount every image that no volume uses; a killed plugin may have left some."""
        for digest in {digest for digest, _, _ in self._list_image_mounts(self._mounts.list_mounts())}:
            self.unmount_unused(digest)
        for folder in self._folder.iterdir():
            self._remove_folders(folder)

    def _list_image_mounts(self, table: list[Mount]) -> list[tuple[str, str, Mount]]:
        found = []
        for mount in table:
            path = Path(mount.target)
            if path.parent.parent == self._folder:
                found.append((path.parent.name, path.name, mount))
        return found

    def _is_mounted_elsewhere(self, image_mount: Mount, table: list[Mount]) -> bool:
        return any(
            mount.target != image_mount.target
            and (mount.device == image_mount.device or self._parse_marker(mount) == Path(image_mount.target))
            for mount in table
        )

    def _parse_marker(self, mount: Mount) -> Path | None:
        """Return the image's mount point that a marker names; None for all other mounts."""
        if mount.fs_type != "tmpfs" or not mount.source.startswith(_MARKER_PREFIX):
            return None
        image_mount_point = Path(mount.source.removeprefix(_MARKER_PREFIX))
        return image_mount_point if image_mount_point.parent.parent == self._folder else None

    def _try_unmount(self, digest: str, mount: Mount) -> bool:
        try:
            self._mounts.unmount(Path(mount.target))
        except Busy:
            return False
        self._remove_folders(self._folder / digest)
        return True

    def _remove_folders(self, folder: Path) -> None:
        # rmdir fails with EBUSY for a folder that is still a mount point.
        for path in [*folder.iterdir(), folder]:
            with suppress(OSError):
                path.rmdir()
