"""Word from the kernel of what is made, removed and written in folders, so that nobody has to poll for it (inotify)."""

from __future__ import annotations

import errno
import os
import select
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import TracebackType

from inotify_simple import Event, INotify, flags

from csi.errors import UnsupportedByNode

_MASKS = {
    flags.CREATE: "made",
    flags.MOVED_TO: "made",
    flags.DELETE: "gone",
    flags.MOVED_FROM: "gone",
    flags.MODIFY: "written",
}
_WATCH_MASK = flags.CREATE | flags.MOVED_TO | flags.DELETE | flags.MOVED_FROM | flags.MODIFY | flags.ONLYDIR


class FileEventKind(Enum):
    """What happened: MADE and GONE to an entry (also by renames), WRITTEN to a file; LOST says that events were dropped, so look at everything."""

    CREATED = "made"
    DELETED = "gone"
    WRITTEN = "written"
    OVERFLOW = "lost"


@dataclass(frozen=True)
class FileEvent:
    """`kind` happened to the entry `name` of the watched `folder`; both are empty for LOST."""

    kind: FileEventKind
    folder: Path = Path()
    name: str = ""

    @property
    def path(self) -> Path:
        """The entry's path."""
        return self.folder / self.name


class FolderWatcher:
    """The events of any number of folders. One thread watches and waits; `wake` may be called from others.

    Raises UnsupportedByNode where the machine has no inotify instance left.
    """

    def __init__(self) -> None:
        try:
            self._inotify = INotify(nonblocking=True)
        except OSError as error:
            raise UnsupportedByNode(
                f"no inotify instance could be had ({os.strerror(error.errno or 0)}); raise fs.inotify.max_user_instances"
            ) from error
        self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._folders_by_number: dict[int, Path] = {}
        self._watch_numbers: dict[Path, int] = {}
        self._poll = select.poll()
        for descriptor in (self._inotify.fileno(), self._wakeup):
            self._poll.register(descriptor, select.POLLIN)

    def __enter__(self) -> FolderWatcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def watch(self, folder: Path) -> bool:
        """From now on report what happens in `folder`; False where it is not there. A folder that is watched already may be asked again.

        Raises UnsupportedByNode where the machine has no inotify watch left.
        """
        try:
            number = self._inotify.add_watch(folder, _WATCH_MASK)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise UnsupportedByNode(
                "no inotify watch could be had; raise fs.inotify.max_user_watches"
            ) from error
        self._drop_stale_watch(folder, number)
        self._folders_by_number[number], self._watch_numbers[folder] = folder, number
        return True

    def _drop_stale_watch(self, folder: Path, new_number: int) -> None:
        """A folder that went and came again has another number."""
        old = self._watch_numbers.get(folder)
        if old is not None and old != new_number:
            self._folders_by_number.pop(old, None)

    def unwatch(self, folder: Path) -> None:
        """Report nothing more of `folder`; one that is not watched is no error."""
        number = self._watch_numbers.pop(folder, None)
        if number is not None:
            self._folders_by_number.pop(number, None)
            with suppress(OSError):  # the kernel drops a watch with its folder
                self._inotify.rm_watch(number)

    def wait(self, timeout: float | None = None) -> list[FileEvent]:
        """What happened, once something did; an empty list after `wake` or `timeout`."""
        ready = {
            descriptor
            for descriptor, _ in self._poll.poll(None if timeout is None else max(0, timeout) * 1000)
        }
        if self._wakeup in ready:
            os.eventfd_read(self._wakeup)
        if self._inotify.fileno() not in ready:
            return []
        return [event for raw in self._inotify.read(timeout=0) if (event := self._decode_event(raw))]

    def _decode_event(self, raw: Event) -> FileEvent | None:
        if raw.mask & flags.Q_OVERFLOW:
            return FileEvent(FileEventKind.OVERFLOW)
        folder = self._folders_by_number.get(raw.wd)
        kind = next((kind for mask, kind in _MASKS.items() if raw.mask & mask), None)
        if folder is None or kind is None:
            return None
        return FileEvent(FileEventKind(kind), folder, raw.name)

    def wake(self) -> None:
        """Let `wait` return."""
        os.eventfd_write(self._wakeup, 1)

    def close(self) -> None:
        """Forget everything; nobody may be waiting."""
        self._inotify.close()
        os.close(self._wakeup)
