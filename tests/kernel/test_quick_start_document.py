"""docs/quick-start.md, typed into a shell as it stands: every block but those that say why they are not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents.blocks import NOT_RUN, STRICT_SHELL, Block, blocks
from tests.origins.ganesha import Export, Ganesha
from tests.origins.hub import Hub
from tests.plugins import LOOPBACK, loops_below, mounts_below, unmount_below

pytestmark = pytest.mark.kernel

PAGE = "quick-start.md"
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
FILES: dict[str, bytes] = {
    "config.json": b'{"hidden_size": 384}\n',
    "model.safetensors": os.urandom(3 << 20),
    "1_Pooling/config.json": b"{}",
}
_DONE = "block done:"
_LIMIT = 300.0


def script_of(run: list[Block]) -> str:
    """One script for one shell, which stops at the first command that fails and says which blocks it has
    come through."""
    return STRICT_SHELL + "".join(
        f"{block.text}echo '{_DONE}' {number} $SECONDS\n" for number, block in enumerate(run)
    )


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """A folder of a NAS."""
    folder = tmp_path / "export"
    folder.mkdir(mode=0o755)
    for path, content in FILES.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def typed(tmp_path: Path, hub: Hub, nas: Ganesha, export: Path) -> subprocess.CompletedProcess[str]:
    """Run the page with the reader's own values in place of the page's: where state goes, the hub and the
    NAS."""
    own = {
        "/var/tmp/datacache": str(tmp_path / "state"),
        "nas.example.com": nas.server,
        "/share/models": str(export),
        "options=nolock": f"options=nolock,port={nas.port},mountport={nas.mount_port}",
    }
    script = script_of([block for block in blocks(PAGE, "sh") if block.is_run])
    for word, value in own.items():
        assert word in script
        script = script.replace(word, value)
    environment = {
        **os.environ,
        **LOOPBACK,
        "HF_ENDPOINT": hub.endpoint,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    return subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=_LIMIT, cwd=tmp_path
    )


def test_every_shell_block_of_the_quick_start_works_and_nothing_is_left(
    tmp_path: Path, hub: Hub, export: Path
) -> None:
    hub.repo(MODEL, FILES)
    try:
        with Ganesha([Export(export)]) as nas:
            done = typed(tmp_path, hub, nas, export)
        assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        assert mounts_below(tmp_path) == []
        assert list(loops_below(tmp_path)) == []
        assert not (tmp_path / "state").exists()
    finally:
        unmount_below(tmp_path)
    run = [block for block in blocks(PAGE, "sh") if block.is_run]
    assert done.stdout.count(_DONE) == len(run)
    assert done.stdout.count("model.safetensors") >= 2


def test_blocks_of_the_quick_start_that_are_not_run_say_why() -> None:
    left = [block.title.removeprefix(NOT_RUN) for block in blocks(PAGE) if not block.is_run]
    assert [len(reason) > 20 for reason in left] == [True, True]
    assert {block.language for block in blocks(PAGE)} == {"sh"}
