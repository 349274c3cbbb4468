"""A fill from a hub 100 ms away: each request costs a round trip, whatever the bandwidth."""

from __future__ import annotations

from tests.benchmarks.contents import make
from tests.benchmarks.fill_from_hub import fill_of, hf
from tests.benchmarks.origins import in_memory
from tests.benchmarks.rounds import interleaved, say
from tests.benchmarks.table import Series, Table
from tests.benchmarks.volume import Setting
from tests.origins.hub import Hub

FAR_SECONDS = 0.1


def measure(setting: Setting) -> list[Table]:
    """MB/s (10**6 bytes of content) from the call until the files can be read."""
    with in_memory("far") as root, Hub() as hub:
        say(f"making {setting.gib:g} GiB")
        files = make(root, "one", setting.total)
        hub.repo("org/far", files, digests=root / ".hub-digests")
        hub.faults.latency = FAR_SECONDS
        return [_compare(setting, hub, setting.total / 1e6)]


def _compare(setting: Setting, hub: Hub, size: float) -> Table:
    alone: list[float] = []
    few: list[float] = []
    measures = {
        "fill": lambda: fill_of(setting, hub, "org/far", size, alone),
        "fill, 4 connections": lambda: fill_of(
            setting, hub, "org/far", size, few, ["--fill-connections", "4"]
        ),
        "hf": lambda: size / hf(setting, hub, "org/far", {}, []),
    }
    figures = interleaved(setting.rounds, measures)
    table = Table(
        f"Verified fill, {size / 1e3:.1f} GB, hub {FAR_SECONDS * 1000:.0f} ms away (a wait before each "
        "answer)",
        "MB/s",
    )
    table.row("hf download", figures["hf"])
    table.compare(
        "NodeStage with 4 connections at most",
        figures["fill, 4 connections"],
        [("hf download", figures["hf"], None)],
    )
    baselines = [
        ("hf download", figures["hf"], None),
        ("4 connections", figures["fill, 4 connections"], None),
    ]
    table.compare("NodeStage, as it comes", figures["fill"], baselines)
    table.compare(
        "  its worker alone, to the seal", Series(tuple(alone)), [("hf download", figures["hf"], None)]
    )
    table.notes.append(
        "hf download has one stream, which waits once; a real far network holds a single stream back, this "
        "one does not"
    )
    return table
