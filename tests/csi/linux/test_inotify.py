"""What a folder's watcher hears, on the real kernel."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi.linux.inotify import FileEvent, FileEventKind, FolderWatcher


@pytest.fixture
def events() -> Iterator[FolderWatcher]:
    with FolderWatcher() as made:
        yield made


def test_what_is_made_written_renamed_and_removed_is_heard(events: FolderWatcher, tmp_path: Path) -> None:
    assert events.watch(tmp_path)
    (tmp_path / "a").write_text("1")
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "b").unlink()
    heard = [(event.kind, event.name) for event in events.wait(5)]
    assert heard == [
        (FileEventKind.CREATED, "a"),
        (FileEventKind.WRITTEN, "a"),
        (FileEventKind.DELETED, "a"),
        (FileEventKind.CREATED, "b"),
        (FileEventKind.DELETED, "b"),
    ]


def test_each_event_names_its_folder(events: FolderWatcher, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        events.watch(tmp_path / name)
    (tmp_path / "two" / "x").mkdir()
    assert events.wait(5) == [FileEvent(FileEventKind.CREATED, tmp_path / "two", "x")]


def test_a_folder_that_is_not_there_cannot_be_watched(events: FolderWatcher, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert not events.watch(tmp_path / "absent")
    assert not events.watch(tmp_path / "file")


def test_a_forgotten_folder_is_silent_and_may_be_watched_again(events: FolderWatcher, tmp_path: Path) -> None:
    events.watch(tmp_path)
    events.unwatch(tmp_path)
    events.unwatch(tmp_path)
    (tmp_path / "a").mkdir()
    assert events.wait(0) == []
    events.watch(tmp_path)
    (tmp_path / "b").mkdir()
    assert [event.path for event in events.wait(5)] == [tmp_path / "b"]


def test_a_folder_that_was_removed_and_made_again_may_be_watched_again(
    events: FolderWatcher, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    for _ in range(2):
        folder.mkdir()
        assert events.watch(folder)
        (folder / "x").mkdir()
        assert [event.path for event in events.wait(5)] == [folder / "x"]
        (folder / "x").rmdir()
        folder.rmdir()
        events.unwatch(folder)


def test_wake_ends_the_wait_of_another_thread(events: FolderWatcher) -> None:
    threading.Timer(0.05, events.wake).start()
    assert events.wait() == []
    assert events.wait(0) == []


def test_lost_events_are_said(events: FolderWatcher, tmp_path: Path) -> None:
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    events.watch(tmp_path)
    for number in range(most // 2 + 2):
        (tmp_path / f"{number % 2}").mkdir()
        (tmp_path / f"{number % 2}").rmdir()
    assert FileEvent(FileEventKind.OVERFLOW) in events.wait(5)
