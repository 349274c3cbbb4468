"""The images in a store, as the command shows them; the store may belong to a running plugin."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from click.testing import CliRunner

from csi.images.node_store.records import ImagePaths, ImageState
from csi.images.node_store.store import Store
from csi.images.progress import FillProgress, read_progress
from datacache.__main__ import cli
from datacache.images import list_images
from tests.csi.images.node_store.test_store import put

MIB = 2**20


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store that is open, with one sealed image and one that is being filled."""
    return tmp_path / "store"


def test_each_image_is_a_row_with_state_size_progress_and_age(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    with Store(root, 100 * MIB) as store:
        sealed = put(store, "a", 3 * MIB, 0.0)
        partial = put(store, "b", 2 * MIB, 0.0, ImageState.PARTIAL)
        os.utime(store.get_paths(sealed).manifest, (now - 90,) * 2)
        for digest in (sealed, partial):
            store.get_paths(digest).last_used_mark.unlink()
        store.get_paths(partial).progress.write_text(
            json.dumps(asdict(FillProgress(MIB, 2 * MIB, MIB, 1.0 * MIB, 1.0)))
        )
        rows = {row[0]: row[1:] for row in list_images(root)}
        assert rows[sealed[:12]][:3] == ("sealed", "3.0 MiB", "")
        assert rows[partial[:12]][:3] == ("partial", "2.0 MiB", "1 of 2 MiB, 1.0 MiB/s, about 1 s left")
        assert float(rows[sealed[:12]][3].split(" ")[0]) == 90
        shown = CliRunner().invoke(cli, ["images", str(root)]).output
        assert sealed[:12] in shown
        assert "sealed" in shown
        assert "1 of 2 MiB" in shown


def test_a_sealed_image_has_no_progress_whatever_file_was_left(root: Path) -> None:
    with Store(root, 100 * MIB) as store:
        sealed = put(store, "a", MIB, 0.0)
        store.get_paths(sealed).progress.write_text("{}")
        assert list_images(root)[0][3] == ""


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"other": 1}', "5"])
def test_progress_that_cannot_be_read_is_none(tmp_path: Path, damage: str) -> None:
    paths = ImagePaths(tmp_path)
    assert read_progress(paths.progress) is None
    paths.progress.write_text(damage)
    assert read_progress(paths.progress) is None


def test_what_is_no_image_is_not_shown(root: Path) -> None:
    (root / "images" / "not-a-digest").mkdir(parents=True)
    (root / "images" / ("0" * 64)).mkdir()
    assert list_images(root) == []
    assert list_images(root / "missing") == []


def test_a_store_that_does_not_exist_is_told(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["images", str(tmp_path / "missing")])
    assert done.exit_code == 2
    assert "does not exist" in done.output
