"""docs/eci.md, "On one machine": operator and node plugin on a folder, ECI's SDKs, and a pod's path, typed
into a shell as it stands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents.blocks import STRICT_SHELL, blocks
from tests.origins.hub import Hub
from tests.origins.onc_rpc import free_port
from tests.plugins import LOOPBACK, mounts_below, unmount_below

pytestmark = pytest.mark.kernel

WEIGHTS = os.urandom(1 << 20)


def test_both_sdks_make_one_cache_that_is_mounted_by_its_path(tmp_path: Path, hub: Hub) -> None:
    hub.repo("example-org/by-sdk", {"config.json": b"{}", "model.safetensors": WEIGHTS})
    started, mounted = (block.text for block in blocks("eci.md", "sh"))
    older, _, newer = (block.text for block in blocks("eci.md", "python"))
    programs = "".join(f"python - <<'PROGRAM'\n{program}PROGRAM\n" for program in (newer, older))
    script = (
        STRICT_SHELL
        + started
        + "until curl -sf -o /dev/null 127.0.0.1:8080/healthz; do sleep 0.2; done\n"
        + programs
        + mounted
    )
    script = script.replace("127.0.0.1:8080", f"127.0.0.1:{free_port()}").replace(
        "/var/tmp/datacache-eci", str(tmp_path / "state")
    )
    environment = {
        **os.environ,
        **LOOPBACK,
        "HF_ENDPOINT": hub.endpoint,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    try:
        done = subprocess.run(
            ["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=300
        )
        logs = "\n".join(path.read_text()[-2000:] for path in sorted((tmp_path / "state").glob("*.log")))
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{logs}"
        assert mounts_below(tmp_path) == []
    finally:
        unmount_below(tmp_path)
    made = [line.split() for line in done.stdout.splitlines() if "edc-" in line]
    assert [words[1:] for words in made] == [["Available", "100%"]] * 2
    assert len({words[0] for words in made}) == 1
    assert f" {len(WEIGHTS)} " in done.stdout
