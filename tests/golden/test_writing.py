"""What today's code writes is byte by byte what version 0.1.0 wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden.writers import DATA, FORMATS, fixed


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder, by their paths in it."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_written_as_before(name: str, tmp_path: Path) -> None:
    with fixed():
        FORMATS[name](tmp_path / name)
    now, before = contents(tmp_path / name), contents(DATA / name)
    assert sorted(now) == sorted(before)
    for path, content in now.items():
        assert content == before[path], path


def test_every_golden_folder_has_a_writer() -> None:
    assert {path.name for path in DATA.iterdir()} == {*FORMATS, "cluster-input"}
