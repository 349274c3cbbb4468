"""Folders of guests that were killed go with the next one; those of guests that run stay."""

from __future__ import annotations

from pathlib import Path

from tests.guest.cache import alone, run_folder


def test_runs_side_by_side_keep_their_folders_and_remove_what_a_killed_one_left(tmp_path: Path) -> None:
    left = tmp_path / "run-killed"
    left.mkdir()
    (left / "payload.img").touch()
    with run_folder(tmp_path) as one, run_folder(tmp_path) as other:
        assert one != other
        assert one.exists()
        assert other.exists()
        assert not left.exists()
    assert list(tmp_path.iterdir()) == []


def test_what_was_half_built_is_removed_before_the_next_is_built(tmp_path: Path) -> None:
    (tmp_path / "root-1.partial/files").mkdir(parents=True)
    (tmp_path / "root-1").mkdir()
    with alone(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == ["root-1"]
