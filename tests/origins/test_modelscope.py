"""The unmodified client of ModelScope downloads from the local hub, file for file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.origins.modelscope import ModelScopeHub

FILES = {
    "config.json": b'{"a": 1}',
    "README.md": b"# about",
    "deep/er/model.safetensors": bytes(range(256)) * 2000,
    "a b/%41#?&+.txt": b"a name to be quoted",
    "\u00fcber/\u65e5\u672c\u8a9e.txt": b"names in any script",
}
_MODELSCOPE = str(Path(sys.executable).parent / "modelscope")


def download(
    hub: ModelScopeHub, folder: Path, kind: str, name: str, token: str = ""
) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MODELSCOPE_")}
    environment |= {
        "MODELSCOPE_ENDPOINT": hub.endpoint,
        "MODELSCOPE_CACHE": str(folder / "cache"),
        "HOME": str(folder / "home"),
    }
    argv = [
        _MODELSCOPE,
        *(["--token", token] if token else []),
        "download",
        f"--{kind}",
        name,
        "--local_dir",
        str(folder / "files"),
    ]
    return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=120, cwd=folder)


def fetched(folder: Path) -> dict[str, bytes]:
    files = (path for path in (folder / "files").rglob("*") if path.is_file())
    found = {str(path.relative_to(folder / "files")): path.read_bytes() for path in files}
    return {name: data for name, data in found.items() if not name.startswith(".")}


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_the_real_client_downloads_every_file(tmp_path: Path, kind: str) -> None:
    with ModelScopeHub() as hub:
        hub.repo("org/name", FILES, kind=kind)
        done = download(hub, tmp_path, kind, "org/name")
        assert done.returncode == 0, done.stderr[-3000:]
        assert fetched(tmp_path) == FILES
        assert hub.counters.requests["store"] > 0


def test_the_real_client_gets_a_private_model_with_its_token_only(tmp_path: Path) -> None:
    with ModelScopeHub() as hub:
        hub.repo("org/secret", FILES, private=True, tokens={"ms_good"})
        assert download(hub, tmp_path, "model", "org/secret").returncode != 0
        assert fetched(tmp_path) == {}
        done = download(hub, tmp_path, "model", "org/secret", "ms_good")
        assert done.returncode == 0, done.stderr[-3000:]
        assert fetched(tmp_path) == FILES
