"""What a folder's watcher hears, on the real kernel."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi.errors import DataCacheError
from csi.linux.inotify import FileEvent, FileEventKind, FolderWatcher, watch_files


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


def test_changed_files_are_named_without_their_suffix_and_others_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "edc-old.json").touch()
    with watch_files(tmp_path, ".json", prefix="edc-") as files:
        assert files.list_names() == {"edc-old"}
        (tmp_path / "edc-new.tmp").write_text("{}")
        (tmp_path / "edc-new.tmp").rename(tmp_path / "edc-new.json")
        (tmp_path / "other.json").touch()
        (tmp_path / "edc-old.json").unlink()
        assert files.wait() == ["edc-new", "edc-old"]


def test_after_lost_events_files_that_are_gone_and_files_that_are_there_have_all_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone.json").touch()
    with watch_files(tmp_path, ".json") as files:
        (tmp_path / "gone.json").unlink()
        (tmp_path / "new.json").touch()
        monkeypatch.setattr(FolderWatcher, "wait", lambda self: [FileEvent(FileEventKind.OVERFLOW)])
        assert files.wait() == ["gone", "new"]
        # What was gone once is no news any more.
        assert files.wait() == ["new"]


def test_a_folder_that_is_gone_cannot_be_watched(tmp_path: Path) -> None:
    with (
        pytest.raises(DataCacheError, match="is gone; restart the program"),
        watch_files(tmp_path / "no", ""),
    ):
        pass
