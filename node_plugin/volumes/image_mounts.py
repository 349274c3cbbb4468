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
from csi.linux.mounts import Mount, Mounts, at

log = logging.getLogger("datacache.images")

_FREE_SECONDS = 2.0
_LABEL = "datacache:"


class ImageMounts:
    """The image mounts below `folder` (`folder`/<digest>/<class>), the one place where this node mounts images. Thread-safe."""

    def __init__(self, folder: Path, mounts: Mounts, loops: LoopDevices, ready: Callable[[], None]) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder, self._mounts, self._loops, self._ready = folder.resolve(), mounts, loops, ready
        self._changing = Lock()
        self._held: Counter[str] = Counter()
        self._guard = Lock()

    @contextmanager
    def hold(self, digest: str) -> Iterator[None]:
        """Keep the image from being evicted or unmounted for the block, while a volume is on its way to it; a block that fails leaves no mount."""
        with self._guard:
            self._held[digest] += 1
        try:
            yield
        except BaseException:
            self._let_go(digest)
            self.release(digest)
            raise
        self._let_go(digest)

    def _let_go(self, digest: str) -> None:
        with self._guard:
            self._held[digest] -= 1
            if not self._held[digest]:
                del self._held[digest]

    def in_use(self) -> set[str]:
        """Digests of the images that are mounted, marked or held."""
        table = self._mounts.table()
        mounted = {digest for digest, _, _ in self._mounted(table)} | {image.parent.name for image in map(self._marked, table) if image}
        with self._guard:
            return mounted | set(self._held)

    def check_node(self) -> None:
        """Raise UnsupportedByNode where this node cannot mount images, before anything is fetched for it."""
        self._ready()

    def mount(self, digest: str, image: Path, limit_class: str, read_ahead: int | None = None) -> Path:
        """The folder where the image is mounted for a limit class, after mounting it where it is not.

        Raises FailedPrecondition when its file is gone as well, UnsupportedByNode, DataCacheError.

        `read_ahead` is how far the kernel reads ahead there, in bytes; None for the loop devices' default.
        """
        target = self.path(digest, limit_class)
        with self._changing:
            mount = at(self._mounts.table(), target)
            there = image.exists()
            if mount and (not there or self._loops.holds(mount.source, image)):
                return target
            if not there:
                raise FailedPrecondition(
                    f"the image {digest[:12]} was removed from this node's store; delete the volume's pods here, and it is staged anew"
                )
            if mount:
                self._mounts.unmount(target)
            self._ready()
            target.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._loops.attach(image, read_ahead) as device:
                self._mounts.mount_image(device, target)
            log.info("image mounted", extra={"fields": {"image": digest, "device": device, "class": limit_class}})
            return target

    def path(self, digest: str, limit_class: str) -> Path:
        """The folder where the image is mounted for a limit class, when it is."""
        return self._folder / digest / limit_class

    def mark(self, image: Path, path: Path) -> None:
        """Have `path` say that the image whose mount is at `image` is in use, and show nothing of it. Raises DataCacheError."""
        self._mounts.mount_marker(f"{_LABEL}{image}", path)

    def cover(self, image: Path, path: Path) -> None:
        """Put a marker over what is mounted at `path`, if that is none: earlier versions staged volumes by bind mounts. Raises DataCacheError."""
        mount = at(self._mounts.table(), path)
        if mount and not self._marked(mount):
            self.mark(image, path)

    def read_ahead(self, digest: str, limit_class: str, size: int | None) -> None:
        """Read ahead `size` bytes from now on where the image is mounted for a limit class; None for the loop devices' default."""
        mount = at(self._mounts.table(), self.path(digest, limit_class))
        if mount:
            self._loops.read_ahead(mount.source, size)

    def device_at(self, path: Path) -> str | None:
        """ "major:minor" of what is mounted at `path`, None where nothing is."""
        mount = at(self._mounts.table(), path)
        return mount.device if mount else None

    def content_at(self, path: Path) -> Path:
        """A folder with the content of the image that `path` shows or marks; `path` itself where the image is not mounted."""
        shown = self.shown_at(path)
        image = self.path(*shown) if shown else path
        return image if self.device_at(image) else path

    def shown_at(self, path: Path) -> tuple[str, str] | None:
        """Digest and limit class of the image that the mount at `path` shows or marks, None where there is none of them."""
        table = self._mounts.table()
        mount = at(table, path)
        if mount is None:
            return None
        if marked := self._marked(mount):
            return marked.parent.name, marked.name
        return next(((digest, name) for digest, name, image in self._mounted(table) if image.device == mount.device), None)

    def release(self, digest: str) -> None:
        """Unmount the image where no volume shows it any more; its loop device frees itself."""
        with self._changing:
            with self._guard:
                if digest in self._held:
                    return
            table = self._mounts.table()
            unused = [m for name, _, m in self._mounted(table) if name == digest and not self._shown_elsewhere(m, table)]
            gone = [mount.source for mount in unused if self._unmount(digest, mount)]
        for device in gone:
            freed = self._loops.wait_free(device, _FREE_SECONDS)
            log.info("image unmounted", extra={"fields": {"image": digest, "device": device, "freed": freed}})

    def sweep(self) -> None:
        """Release every image that no volume shows, as a killed plugin may have left one."""
        for digest in {digest for digest, _, _ in self._mounted(self._mounts.table())}:
            self.release(digest)
        for folder in self._folder.iterdir():
            self._remove_folders(folder)

    def _mounted(self, table: list[Mount]) -> list[tuple[str, str, Mount]]:
        found = []
        for mount in table:
            path = Path(mount.target)
            if path.parent.parent == self._folder:
                found.append((path.parent.name, path.name, mount))
        return found

    def _shown_elsewhere(self, image: Mount, table: list[Mount]) -> bool:
        return any(mount.target != image.target and (mount.device == image.device or self._marked(mount) == Path(image.target)) for mount in table)

    def _marked(self, mount: Mount) -> Path | None:
        """The image's mount below this folder that a marker names; None for all other mounts."""
        if mount.fs_type != "tmpfs" or not mount.source.startswith(_LABEL):
            return None
        image = Path(mount.source.removeprefix(_LABEL))
        return image if image.parent.parent == self._folder else None

    def _unmount(self, digest: str, mount: Mount) -> bool:
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
