"""What a node remembers of its volumes, whatever their ids are and whatever happened to the files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from csi.registry.volumes.record import WatchedVolumes
from node_plugin.volumes.records import Exposure, NodeVolume, VolumeRecords

SHOWN = Exposure("MULTI_NODE_READER_ONLY", False, ("ro", "vers=3"))
VOLUME = (
    NodeVolume("vol-1", "a" * 64, {"repoId": "org/name"}, 7, 5)
    .with_staging_path("/s", SHOWN)
    .with_target_path("/t", Exposure("X"))
)
IDS = [
    "csi-" + "0" * 64,
    "../../etc/x",
    "/abs",
    "a/b",
    "",
    ".",
    ".hidden",
    "x" * 300,
    "ü",
    "a\0b",
    "a\nb",
    "hashed-",
    "hashed-" + "0" * 64,
    "-rf",
    "a.json",
]


@pytest.fixture
def records(tmp_path: Path) -> VolumeRecords:
    return VolumeRecords(tmp_path / "volumes")


def test_a_volume_is_found_as_it_was_put_also_by_the_next_start(
    tmp_path: Path, records: VolumeRecords
) -> None:
    inline = NodeVolume("csi-1", "b" * 64, {}, 1, 1, is_inline=True).with_target_path("/u", SHOWN)
    for volume in (VOLUME, inline):
        records.put(volume)
    for again in (records, VolumeRecords(tmp_path / "volumes")):
        assert again.get("vol-1") == VOLUME
        assert again.get("csi-1") == inline
        assert list(again.load_all_and_delete_unreadable()) == [inline, VOLUME]


def test_the_volumes_that_the_controller_made_are_named_while_they_are_shown(tmp_path: Path) -> None:
    """They are those whose changes a node wants to be told of; inline volumes are known to nobody else."""
    shown = WatchedVolumes()
    records = VolumeRecords(tmp_path / "volumes", shown)
    records.put(NodeVolume("csi-1", "b" * 64, {}, 1, 1, is_inline=True).with_target_path("/u", SHOWN))
    records.put(VOLUME)
    assert shown.ids() == {"vol-1"}
    records.put(VOLUME.without_paths("/t"))
    assert shown.ids() == {"vol-1"}
    records.put(VOLUME.without_paths("/t", "/s"))
    assert shown.ids() == set()


def test_a_volume_that_is_shown_nowhere_is_forgotten(tmp_path: Path, records: VolumeRecords) -> None:
    records.put(VOLUME)
    records.put(VOLUME.without_paths("/t"))
    assert records.get("vol-1") == VOLUME.without_paths("/t")
    for _ in range(2):
        records.put(VOLUME.without_paths("/t", "/s"))
    assert records.get("vol-1") is None
    assert os.listdir(tmp_path / "volumes") == []


@pytest.mark.parametrize("volume_id", IDS)
def test_any_id_is_kept_within_the_folder(tmp_path: Path, records: VolumeRecords, volume_id: str) -> None:
    volume = NodeVolume(volume_id, "a" * 64, {}, 1, 1).with_target_path("/t", SHOWN)
    records.put(volume)
    assert records.get(volume_id) == volume
    assert list(records.load_all_and_delete_unreadable()) == [volume]
    (path,) = (tmp_path / "volumes").iterdir()
    assert path.is_file()
    assert path.suffix == ".json"


@given(st.text(), st.text())
@example("a/b", "hashed-" + hashlib.sha256(b"a/b").hexdigest())
def test_two_ids_never_share_a_record(one: str, other: str) -> None:
    paths = VolumeRecords(Path("/tmp"))
    assert (paths._path(one) == paths._path(other)) == (one == other)


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[]",
        "5",
        '"x"',
        "null",
        "{}",
        '{"format": 1}',
        '{"format": 2}',
        '{"format": 1, "staged": 5, "targets": {}}',
    ],
)
def test_a_damaged_record_is_none_and_goes_with_the_next_start(
    tmp_path: Path, records: VolumeRecords, damage: str
) -> None:
    records.put(VOLUME)
    (tmp_path / "volumes/vol-1.json").write_text(damage)
    assert records.get("vol-1") is None
    assert list(records.load_all_and_delete_unreadable()) == []
    assert os.listdir(tmp_path / "volumes") == []


def test_what_a_killed_plugin_left_half_written_goes_with_the_next_start(
    tmp_path: Path, records: VolumeRecords
) -> None:
    records.put(VOLUME)
    (tmp_path / "volumes/.0123.tmp").write_text("{")
    assert list(records.load_all_and_delete_unreadable()) == [VOLUME]
    assert os.listdir(tmp_path / "volumes") == ["vol-1.json"]


def test_only_root_looks_into_the_records(tmp_path: Path, records: VolumeRecords) -> None:
    assert (tmp_path / "volumes").stat().st_mode & 0o077 == 0
