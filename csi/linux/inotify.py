"""Events of files and folders from the kernel (inotify), so that nothing has to poll."""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import TracebackType

from inotify_simple import Event, INotify, flags

from csi.errors import DataCacheError, UnsupportedByNode

_WATCH_MASK = flags.CREATE | flags.MOVED_TO | flags.DELETE | flags.MOVED_FROM | flags.MODIFY | flags.ONLYDIR


class FileEventKind(Enum):
    """Kind of an event.

    CREATED and DELETED (also by renames) concern an entry, WRITTEN a file. OVERFLOW means that events were
    dropped, so that everything has to be checked.
    """

    CREATED = "created"
    DELETED = "deleted"
    WRITTEN = "written"
    OVERFLOW = "overflow"


_KINDS = {
    flags.CREATE: FileEventKind.CREATED,
    flags.MOVED_TO: FileEventKind.CREATED,
    flags.DELETE: FileEventKind.DELETED,
    flags.MOVED_FROM: FileEventKind.DELETED,
    flags.MODIFY: FileEventKind.WRITTEN,
}


@dataclass(frozen=True)
class FileEvent:
    """Event of the entry `name` of the watched `folder`; both are empty for OVERFLOW."""

    kind: FileEventKind
    folder: Path = Path()
    name: str = ""

    @property
    def path(self) -> Path:
        """Path of the entry."""
        return self.folder / self.name


class FolderWatcher:
    """Watcher of any number of folders.

    One thread watches and waits; others may call `wake`.

    Raises UnsupportedByNode if the machine has no inotify instance left.
    """

    def __init__(self) -> None:
        try:
            self._inotify = INotify(nonblocking=True)
        except OSError as error:
            raise UnsupportedByNode(
                f"no inotify instance is left ({os.strerror(error.errno or 0)}); "
                "raise fs.inotify.max_user_instances"
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
        """Report events of `folder` from now on; return False if it does not exist.

        Watching a folder twice is allowed.

        Raises UnsupportedByNode if the machine has no inotify watch left.
        """
        try:
            number = self._inotify.add_watch(folder, _WATCH_MASK)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            # inotify_add_watch(2) reports the limit on watches as ENOSPC.
            if error.errno != errno.ENOSPC:
                raise
            raise UnsupportedByNode("no inotify watch is left; raise fs.inotify.max_user_watches") from error
        self._drop_stale_watch(folder, number)
        self._folders_by_number[number], self._watch_numbers[folder] = folder, number
        return True

    def _drop_stale_watch(self, folder: Path, new_number: int) -> None:
        """Forget the old watch of a folder that was removed and created again, which got a new number."""
        old = self._watch_numbers.get(folder)
        if old is not None and old != new_number:
            self._folders_by_number.pop(old, None)

    def unwatch(self, folder: Path) -> None:
        """Stop reporting events of `folder`; an unwatched folder is no error."""
        number = self._watch_numbers.pop(folder, None)
        if number is not None:
            self._folders_by_number.pop(number, None)
            with suppress(OSError):  # the kernel drops a watch with its folder
                self._inotify.rm_watch(number)

    def wait(self, timeout: float | None = None) -> list[FileEvent]:
        """Wait for events and return them; an empty list after `wake` or `timeout` (seconds)."""
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
        kind = next((kind for mask, kind in _KINDS.items() if raw.mask & mask), None)
        if folder is None or kind is None:
            return None
        return FileEvent(kind, folder, raw.name)

    def wake(self) -> None:
        """Make `wait` return."""
        os.eventfd_write(self._wakeup, 1)

    def close(self) -> None:
        """Release all watches; no thread may be waiting."""
        self._inotify.close()
        os.close(self._wakeup)


class ChangedFiles:
    """Names of the files in a folder that change: those between `prefix` and `suffix`, without the suffix.

    Files are expected to be replaced by renames, so that a write alone is no change. One thread waits; others
    may call `wake`.
    """

    def __init__(self, watcher: FolderWatcher, folder: Path, suffix: str, prefix: str) -> None:
        self._watcher, self._folder, self._suffix, self._prefix = watcher, folder, suffix, prefix
        self._known = self.list_names()

    def list_names(self) -> set[str]:
        """List the names of the files that exist now."""
        return {
            path.name.removesuffix(self._suffix)
            for path in self._folder.glob(f"{self._prefix}*{self._suffix}")
        }

    def wait(self) -> list[str]:
        """Wait for changes and return the names, sorted; none after `wake`.

        After lost events these are all files that existed before or exist now: any may have changed or gone.
        """
        names: set[str] = set()
        for event in self._watcher.wait():
            name = event.name.removesuffix(self._suffix)
            if event.kind is FileEventKind.OVERFLOW:
                present = self.list_names()
                names |= self._known | present
                self._known = present
            elif (
                event.kind is not FileEventKind.WRITTEN
                and event.name.endswith(self._suffix)
                and name.startswith(self._prefix)
            ):
                names.add(name)
                (self._known.discard if event.kind is FileEventKind.DELETED else self._known.add)(name)
        return sorted(names)

    def wake(self) -> None:
        """Make `wait` return."""
        self._watcher.wake()


@contextmanager
def watch_files(folder: Path, suffix: str, prefix: str = "") -> Iterator[ChangedFiles]:
    """Watch the files of `folder` during the block.

    Raises DataCacheError if the folder does not exist, UnsupportedByNode as `FolderWatcher`.
    """
    with FolderWatcher() as watcher:
        if not watcher.watch(folder):
            raise DataCacheError(f"the registry's folder {folder} is gone; restart the program")
        yield ChangedFiles(watcher, folder, suffix, prefix)
