"""One loop device and one EROFS super block for each (image, limit class), shared by every volume of both.

Pods' targets are bind mounts of an image's mount. A staging path is not: kubelet unstages nothing whose super block is
mounted elsewhere too. It gets a marker, an empty file system of its own whose source in the mount table names the image's mount.
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

_FREE_TIMEOUT = 2.0
_MARKER_PREFIX = "datacache:"


class ImageMounts:
    """The image mounts below `folder` (`folder`/<digest>/<class>), the one place where this node mounts images. Thread-safe."""

    def __init__(
        self, folder: Path, mounts: MountTable, loops: LoopDevices, check_node: Callable[[], None]
    ) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder, self._mounts, self._loops, self._check_node = (
            folder.resolve(),
            mounts,
            loops,
            check_node,
        )
        self._mount_lock = Lock()
        self._users: Counter[str] = Counter()
        self._users_lock = Lock()

    @contextmanager
    def keep_mounted(self, digest: str) -> Iterator[None]:
        """Keep the image from being evicted or unmounted for the block, while a volume is on its way to it; a block that fails leaves no mount."""
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
        """Digests of the images that are mounted, marked or held."""
        table = self._mounts.list_mounts()
        mounted = {digest for digest, _, _ in self._list_image_mounts(table)} | {
            image.parent.name for image in map(self._parse_marker, table) if image
        }
        with self._users_lock:
            return mounted | set(self._users)

    def check_node(self) -> None:
        """Raise UnsupportedByNode where this node cannot mount images, before anything is fetched for it."""
        self._check_node()

    def mount(self, digest: str, image: Path, limit_class: str, read_ahead: int | None = None) -> Path:
        """The folder where the image is mounted for a limit class, after mounting it where it is not.

        Raises FailedPrecondition when its file is gone as well, UnsupportedByNode, DataCacheError.

        `read_ahead` is how far the kernel reads ahead there, in bytes; None for the loop devices' default.
        """
        target = self.mount_path(digest, limit_class)
        with self._mount_lock:
            mount = find_mount(self._mounts.list_mounts(), target)
            exists = image.exists()
            if mount and (not exists or self._loops.is_backed_by(mount.source, image)):
                return target
            if not exists:
                raise FailedPrecondition(
                    f"the image {digest[:12]} was removed from this node's store; delete the volume's pods here, and it is staged anew"
                )
            if mount:
                self._mounts.unmount(target)
            self._check_node()
            target.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._loops.attach(image, read_ahead) as device:
                self._mounts.mount_image(device, target)
            log.info(
                "image mounted", extra={"fields": {"image": digest, "device": device, "class": limit_class}}
            )
            return target

    def mount_path(self, digest: str, limit_class: str) -> Path:
        """The folder where the image is mounted for a limit class, when it is."""
        return self._folder / digest / limit_class

    def mount_marker(self, image: Path, path: Path) -> None:
        """Have `path` say that the image whose mount is at `image` is in use, and show nothing of it. Raises DataCacheError."""
        self._mounts.mount_marker(f"{_MARKER_PREFIX}{image}", path)

    def cover_with_marker(self, image: Path, path: Path) -> None:
        """Put a marker over what is mounted at `path`, if that is none: earlier versions staged volumes by bind mounts. Raises DataCacheError."""
        mount = find_mount(self._mounts.list_mounts(), path)
        if mount and not self._parse_marker(mount):
            self.mount_marker(image, path)

    def set_read_ahead(self, digest: str, limit_class: str, size: int | None) -> None:
        """Read ahead `size` bytes from now on where the image is mounted for a limit class; None for the loop devices' default."""
        mount = find_mount(self._mounts.list_mounts(), self.mount_path(digest, limit_class))
        if mount:
            self._loops.set_read_ahead(mount.source, size)

    def find_device(self, path: Path) -> str | None:
        """ "major:minor" of what is mounted at `path`, None where nothing is."""
        mount = find_mount(self._mounts.list_mounts(), path)
        return mount.device if mount else None

    def find_content(self, path: Path) -> Path:
        """A folder with the content of the image that `path` shows or marks; `path` itself where the image is not mounted."""
        image_and_class = self.find_image(path)
        image = self.mount_path(*image_and_class) if image_and_class else path
        return image if self.find_device(image) else path

    def find_image(self, path: Path) -> tuple[str, str] | None:
        """Digest and limit class of the image that the mount at `path` shows or marks, None where there is none of them."""
        table = self._mounts.list_mounts()
        mount = find_mount(table, path)
        if mount is None:
            return None
        if marked := self._parse_marker(mount):
            return marked.parent.name, marked.name
        return next(
            (
                (digest, name)
                for digest, name, image in self._list_image_mounts(table)
                if image.device == mount.device
            ),
            None,
        )

    def unmount_unused(self, digest: str) -> None:
        """Unmount the image where no volume shows it any more; its loop device frees itself."""
        with self._mount_lock:
            with self._users_lock:
                if digest in self._users:
                    return
            table = self._mounts.list_mounts()
            unused = [
                m
                for name, _, m in self._list_image_mounts(table)
                if name == digest and not self._is_mounted_elsewhere(m, table)
            ]
            freed_devices = [mount.source for mount in unused if self._try_unmount(digest, mount)]
        for device in freed_devices:
            freed = self._loops.wait_until_free(device, _FREE_TIMEOUT)
            log.info("image unmounted", extra={"fields": {"image": digest, "device": device, "freed": freed}})

    def unmount_all_unused(self) -> None:
        """Release every image that no volume shows, as a killed plugin may have left one."""
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

    def _is_mounted_elsewhere(self, image: Mount, table: list[Mount]) -> bool:
        return any(
            mount.target != image.target
            and (mount.device == image.device or self._parse_marker(mount) == Path(image.target))
            for mount in table
        )

    def _parse_marker(self, mount: Mount) -> Path | None:
        """The image's mount below this folder that a marker names; None for all other mounts."""
        if mount.fs_type != "tmpfs" or not mount.source.startswith(_MARKER_PREFIX):
            return None
        image = Path(mount.source.removeprefix(_MARKER_PREFIX))
        return image if image.parent.parent == self._folder else None

    def _try_unmount(self, digest: str, mount: Mount) -> bool:
        try:
            self._mounts.unmount(Path(mount.target))
        except Busy:
            return False
        self._remove_folders(self._folder / digest)
        return True

    def _remove_folders(self, folder: Path) -> None:
        # Only empty ones go: a folder that is still a mount point says EBUSY.
        for path in [*folder.iterdir(), folder]:
            with suppress(OSError):
                path.rmdir()
