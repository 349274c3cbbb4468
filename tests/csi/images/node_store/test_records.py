"""What an image is, read while its fill ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from csi.images.node_store.records import ImagePaths, ImageState, read_record, write_facts

DIGEST = "a" * 64


def test_an_image_that_is_sealed_while_it_is_looked_at_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = ImagePaths(tmp_path / DIGEST)
    paths.folder.mkdir()
    write_facts(paths, DIGEST, 4096)
    paths.manifest.write_bytes(b"")
    paths.partial.write_bytes(b"\0" * 4096)
    exists = Path.exists

    def sealed_behind_the_back(path: Path) -> bool:
        found = exists(path)
        if path == paths.partial and found:
            path.rename(paths.image)
        return found

    monkeypatch.setattr(Path, "exists", sealed_behind_the_back)
    record = read_record(paths)
    assert record is not None
    assert (record.state, record.size) == (ImageState.SEALED, 4096)


def test_a_folder_without_a_manifest_is_no_image(tmp_path: Path) -> None:
    assert read_record(ImagePaths(tmp_path / DIGEST)) is None
