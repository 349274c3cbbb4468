"""Files that are whole or not there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csi.errors import DataCacheError
from csi.linux import durable_files

json_values = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=9)
    | st.lists(st.text(max_size=9), max_size=3)
)


@settings(max_examples=25)
@given(st.dictionaries(st.text(max_size=9), json_values, max_size=4))
def test_a_record_is_read_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, record: dict) -> None:
    path = tmp_path_factory.mktemp("records") / "record.json"
    durable_files.write_json(path, record)
    assert durable_files.read_json(path) == record


def test_a_file_is_for_its_owner_only_and_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"old")
    path.chmod(0o644)
    durable_files.write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "record"
    durable_files.write_bytes(path, b"old")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        durable_files.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["record"]


def test_the_bytes_are_synced_before_the_name_and_the_folder_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    sync, rename = os.fsync, Path.rename
    monkeypatch.setattr(
        os,
        "fsync",
        lambda fd: (steps.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "bytes"), sync(fd))[1],
    )
    monkeypatch.setattr(Path, "rename", lambda self, target: (steps.append("name"), rename(self, target))[1])
    durable_files.write_bytes(tmp_path / "record", b"x")
    assert steps == ["bytes", "name", "folder"]


def test_a_rename_between_folders_syncs_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a/x").touch()
    synced: list[Path] = []
    monkeypatch.setattr(durable_files, "fsync_folder", synced.append)
    durable_files.rename_and_sync(tmp_path / "a/x", tmp_path / "b/x")
    assert set(synced) == {tmp_path / "a", tmp_path / "b"}


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b"7", b'"x"', b"null", b'{"format": 1', b"\xff\xfe", b"\0" * 40]
)
def test_a_damaged_record_is_told_as_damaged(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "record"
    path.write_bytes(damage)
    with pytest.raises(DataCacheError, match=f"{path} is damaged.*remove it"):
        durable_files.read_json(path)


def test_a_record_of_another_format_is_refused_with_both_numbers(tmp_path: Path) -> None:
    durable_files.write_json(tmp_path / "record", {"format": 9})
    with pytest.raises(DataCacheError, match="format 9, this driver reads 1"):
        durable_files.read_json(tmp_path / "record", 1)


def test_a_missing_record_is_missing_and_not_damaged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        durable_files.read_json(tmp_path / "record")


def test_a_key_is_made_once_for_its_owner_only_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    key = durable_files.load_or_create_key(path)
    assert len(key) == 32
    assert durable_files.load_or_create_key(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_bytes(b"short")
    with pytest.raises(DataCacheError, match="damaged"):
        durable_files.load_or_create_key(path)
