"""A path may not go through a symlink: who may name one folder of an export must not reach the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from csi.errors import InvalidParameter, SourceNotFound
from tests.csi.sources.nfs.origin import resolved
from tests.origins.ganesha import Export, Ganesha


@pytest.fixture
def teams(folder: Path) -> Path:
    (folder / "team-b").mkdir()
    (folder / "team-b" / "secret").write_text("b")
    (folder / "team-a" / "models").mkdir(parents=True)
    (folder / "team-a" / "models" / "weights").write_text("a")
    (folder / "team-a" / "link").symlink_to("../team-b")
    return folder


@pytest.mark.parametrize("below", ["", "/.hidden"])
def test_a_path_that_ends_in_or_goes_through_a_symlink_is_refused(
    nas: Ganesha, teams: Path, version: str, below: str
) -> None:
    (teams / "team-b" / ".hidden").mkdir()
    with pytest.raises((InvalidParameter, SourceNotFound)) as refused:
        resolved(nas.spec(f"{teams}/team-a/link{below}", version))
    if version != "3":
        assert "team-a/link' on the server is a symlink" in str(refused.value)


def test_a_path_of_real_folders_is_read(nas: Ganesha, teams: Path, version: str) -> None:
    assert [entry.path for entry in resolved(nas.spec(teams / "team-a" / "models", version)).files] == [
        "weights"
    ]


def test_an_export_that_is_the_highest_folder_the_server_shows_is_read(tmp_path: Path) -> None:
    (tmp_path / "share").mkdir()
    (tmp_path / "share" / "weights").write_text("a")
    with Ganesha([Export(tmp_path / "share")]) as server:
        assert [entry.path for entry in resolved(server.spec(tmp_path / "share")).files] == ["weights"]
