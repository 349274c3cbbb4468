"""Kills that cannot miss: the node plugin, and the worker alone, in every state of a volume's life, again and
again.

After every kill the plugin is started again (where it died) and the call repeated, as kubelet does. At the
end the bytes are right, the origin has sent no more again than the kills may cost, and nothing is left.
KILLS_MIB sets the size of the repository; `make kills` takes 4 GiB and kills five times in each state, `make
test` a smaller one and twice, and there what shows and takes away an image, which knows nothing of files, is
killed with one of the two repositories only.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from csi.errors import DataCacheError
from datacache.client import PluginClient
from tests.kernel.knife import read_orders, write_orders
from tests.origins.hub import Hub
from tests.plugins import Plugins

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(1800)]

MIB = 2**20
SIZE = int(os.environ.get("KILLS_MIB", "768")) * MIB
THOROUGH = SIZE >= 4096 * MIB
RATE = 200e6
KILLS = 5 if THOROUGH else 2
# Buffers that may hold bytes read but not yet written, and what may be written but not yet in the journal.
IN_FLIGHT = 16 * 4 * MIB
AT_RISK = 64 * MIB

AT_THE_START = ("allocate begins", "allocate done", "metadata done")
IN_THE_MIDDLE = ("chunk begins", "chunk done", "sync done", "journal done")
SEALING = ("seal sync begins", "seal sync done", "seal rename done", "seal done")
ADOPTING = ("adopt begins", "adopt done")
SHOWING = (
    "loop begins",
    "loop done",
    "mount done",
    "record begins",
    "record done",
    "mount(2) done",
    "marker begins",
    "marker done",
)
UNPUBLISHING = (
    "unmount begins",
    "unmount done",
    "record begins",
    "record done",
    "target removal begins",
    "target removal done",
)
UNSTAGING = ("unmount begins", "unmount done", "record begins", "record done")


PUBLISHING = ("record begins", "record done", "mount(2) done", "bind begins", "bind done")
FILL_STATES = {
    f"{victim} at {point}"
    for victim in ("worker", "plugin")
    for point in (*AT_THE_START, *IN_THE_MIDDLE, *SEALING)
} | {f"plugin at {point}" for point in ADOPTING}
SHOWN_STATES = {f"plugin at {point}" for point in (*SHOWING, *PUBLISHING, *UNPUBLISHING, *UNSTAGING)}


@dataclass
class Life:
    """One volume, its plugins under the knife, and what the kills were."""

    plugins: Plugins
    folder: Path
    volume_id: str = ""
    context: dict[str, str] = field(default_factory=dict)

    @property
    def staging(self) -> str:
        return str(self.folder / "staging")

    @property
    def target(self) -> str:
        return str(self.folder / "pod" / "mount")

    def stage(self) -> None:
        with self.client() as node:
            node.stage(self.volume_id, self.staging, self.context)

    def publish(self) -> None:
        with self.client() as node:
            node.publish(self.volume_id, self.target, self.context, self.staging)

    def unpublish(self) -> None:
        with self.client() as node:
            node.unpublish(self.volume_id, self.target)

    def unstage(self) -> None:
        with self.client() as node:
            node.unstage(self.volume_id, self.staging)

    def client(self) -> PluginClient:
        return self.plugins.client("node", 120)

    def under_the_knife(self, work: Callable[[], None], *orders: dict[str, Any]) -> None:
        """Repeat `work`, starting the plugin wherever it died, until every order is carried out."""
        write_orders(self.folder, list(orders))
        end = time.monotonic() + 600
        while read_orders(self.folder):
            assert time.monotonic() < end, f"not reached: {read_orders(self.folder)[:1]}"
            self.revive()
            with suppress(DataCacheError):
                work()

    def revive(self) -> None:
        """Start the plugin until it lives: while orders are open, it may die before it answers."""
        process = self.plugins.node.process
        while process is None or process.poll() is not None:
            with suppress(AssertionError):
                self.plugins.node.start()
            process = self.plugins.node.process

    def bury(self) -> None:
        """The plugin was killed and stays dead for now; its workers end by themselves."""
        self.plugins.node.process.wait(10)

    def until_done(self, work: Callable[[], None]) -> None:
        """Repeat `work`, as kubelet does, until it succeeds."""
        end = time.monotonic() + 600
        while True:
            self.revive()
            try:
                return work()
            except DataCacheError:
                assert time.monotonic() < end
                time.sleep(0.05)


def big_and_small(folder: Path, many: bool) -> dict[str, Path]:
    """A repository of SIZE bytes on disk: one file, or one of half the size and many from 1 byte to 32
    MiB."""
    folder.mkdir()
    sizes = [SIZE // 2, *_mixed(SIZE // 2)] if many else [SIZE]
    files = {}
    for number, size in enumerate(sizes):
        files[f"part-{number:05d}.bin"] = path = folder / str(number)
        _write(path, size)
    return files


def _mixed(total: int) -> Iterator[int]:
    step = 0
    while total > 0:
        size = min(total, (1, 4095, 4097, 70_000, 1_000_000, 9_999_999, 32 * MIB)[step % 7])
        total, step = total - size, step + 1
        yield size


def _write(path: Path, size: int) -> None:
    block = os.urandom(MIB)
    with path.open("wb") as stream:
        for at in range(0, size, MIB):
            stream.write(at.to_bytes(8, "little") + block[8 : min(MIB, max(8, size - at))])
        stream.truncate(size)


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(8 * MIB):
            digest.update(chunk)
    return digest.hexdigest()


@pytest.mark.parametrize("many", [False, True], ids=["one file", "many files"])
def test_kills_in_every_state_lose_no_byte_and_leave_nothing(tmp_path: Path, many: bool) -> None:
    files = big_and_small(tmp_path / "origin", many)
    wanted = {name: sha256_of(path) for name, path in files.items()}
    started = time.monotonic()
    with Hub() as hub:
        hub.repo("org/big", files)
        hub.faults.rate = RATE
        plugins = Plugins(tmp_path, {"HF_ENDPOINT": hub.endpoint, "PYTHONPATH": os.getcwd()})
        plugins.node.command[0:1] = [sys.executable, "-m", "tests.kernel.knife", str(tmp_path), "node"]
        with plugins:
            life = Life(plugins, tmp_path)
            with plugins.client("controller") as controller:
                volume = controller.create("kills", {"repoId": "org/big"})
            life.volume_id, life.context = volume.volume_id, dict(volume.volume_context)
            hub.counters.reset()
            shown = THOROUGH or not many
            fill(life)
            if shown:
                show(life)
            life.until_done(life.stage)
            life.until_done(life.publish)
            assert {name: sha256_of(Path(life.target) / name) for name in wanted} == wanted
            take_away(life) if shown else life.until_done(life.unpublish)
            life.until_done(life.unstage)
            assert plugins.leftovers() == []
        sent = sum(hub.counters.bytes_sent.values())
    kills = Counter((tmp_path / "hits").read_text().splitlines())
    report(kills, sent, time.monotonic() - started)
    in_fill = sum(
        count
        for state, count in kills.items()
        if state.partition(" at ")[2] in (*AT_THE_START, *IN_THE_MIDDLE)
    )
    assert sent - SIZE <= in_fill * (IN_FLIGHT + AT_RISK)
    assert set(kills) == FILL_STATES | (SHOWN_STATES if shown else set())
    assert min(kills.values()) >= KILLS
    assert still_running(tmp_path) == []


def kill(point: str, victim: str = "plugin", *, skip: int = 0, times: int = KILLS) -> dict[str, Any]:
    """An order for the knife: kill `victim` at `point`, passing it `skip` times in each process first."""
    return {"point": point, "victim": victim, "skip": skip, "times": times}


def fill(life: Life) -> None:
    """Kill in every state from the resolve to the sealed image."""
    for point in ADOPTING:
        for _ in range(KILLS):
            life.under_the_knife(life.stage, kill(point, times=1))
            life.bury()
            forget_image(life)
    orders = [kill(point, victim) for victim in ("worker", "plugin") for point in AT_THE_START]
    skip = 3 if THOROUGH else 0
    orders += [kill(point, victim, skip=skip) for victim in ("worker", "plugin") for point in IN_THE_MIDDLE]
    orders += [kill(point, victim) for victim in ("worker", "plugin") for point in SEALING[:2]]
    life.under_the_knife(life.stage, *orders)
    life.bury()
    journal = next((life.plugins.store / "images").glob("*/journal")).read_bytes()
    for victim in ("worker", "plugin"):
        for point in SEALING[2:]:
            for _ in range(KILLS):
                life.under_the_knife(life.stage, kill(point, victim, times=1))
                unseal(life, journal)


def show(life: Life) -> None:
    """Kill in every state from the sealed image to the published volume."""
    for point in SHOWING:
        for _ in range(KILLS):
            life.under_the_knife(life.stage, kill(point, times=1))
            life.until_done(life.unstage)
    life.until_done(life.stage)
    for point in PUBLISHING:
        for _ in range(KILLS):
            life.under_the_knife(life.publish, kill(point, times=1))
            life.until_done(life.unpublish)


def take_away(life: Life) -> None:
    """Kill in every state of the undoing."""
    for point in UNPUBLISHING:
        for _ in range(KILLS):
            life.until_done(life.publish)
            life.under_the_knife(life.unpublish, kill(point, times=1))
    life.until_done(life.unpublish)
    for point in UNSTAGING:
        for skip in (0, 1) if "unmount" in point else (0,):  # the second unmount is the image's own
            for _ in range(KILLS):
                life.until_done(life.stage)
                life.under_the_knife(life.unstage, kill(point, skip=skip, times=1))


def forget_image(life: Life) -> None:
    """As if the kill had come before anything of the image was there, so that adopting can be killed
    again."""
    shutil.rmtree(life.plugins.store / "images")
    for proof in (life.plugins.store / "proofs").glob("?" * 64):
        proof.unlink()


def unseal(life: Life, journal: bytes) -> None:
    """Put a sealed image back to where a filled one is, so that sealing can be killed again."""
    life.until_done(life.stage)
    life.until_done(life.unstage)
    life.plugins.node.stop()
    for image in (life.plugins.store / "images").glob("*/image"):
        image.chmod(0o600)
        image.rename(image.with_name("image.partial"))
        image.with_name("journal").write_bytes(journal)


def report(kills: Counter[str], sent: int, seconds: float) -> None:
    print(
        f"\n{kills.total()} kills in {seconds:.0f} s; the origin sent {sent / MIB:.0f} MiB for "
        f"{SIZE / MIB:.0f} MiB"
    )
    for state, count in sorted(kills.items()):
        print(f"  {count:3d} x {state}")


def still_running(folder: Path) -> list[str]:
    """Processes that were under the knife and have not ended."""
    pids = set((folder / "pids").read_text().split())
    return [
        pid
        for pid in pids
        if Path(f"/proc/{pid}").exists() and "knife" in Path(f"/proc/{pid}/cmdline").read_text()
    ]
