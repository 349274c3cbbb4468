"""CreateVolume of content that was resolved before: 80 MB and 80 GB alike, from a hub next door and one
100 ms away."""

from __future__ import annotations

from tests.benchmarks.rounds import interleaved, seconds
from tests.benchmarks.table import Series, Table, at_most
from tests.benchmarks.volume import Setting, hub_parameters, plugins
from tests.origins.hub import Hub
from tests.origins.repositories import Declared
from tests.plugins import Plugins

SMALL, LARGE = "org/80-megabytes", "org/80-gigabytes"
FAR_SECONDS = 0.1
_NEAR_ROUNDS, _FAR_ROUNDS = 50, 10
_OURS = at_most(50, " ms")


def measure(setting: Setting) -> list[Table]:
    """Milliseconds of one call at a gRPC client.

    The large content is only listed: a CreateVolume moves no bytes of it.
    """
    with Hub() as hub, plugins(setting.folder, {"HF_ENDPOINT": hub.endpoint}) as running:
        hub.repo(SMALL, {"config.json": b"{}", "model.safetensors": Declared(80 * 10**6)})
        hub.repo(
            LARGE,
            {
                "config.json": b"{}",
                **{f"model-{n:02}-of-16.safetensors": Declared(5 * 10**9, f"{n:064x}") for n in range(16)},
            },
        )
        return [
            _table("CreateVolume of known content, hub on loopback", hub, running, _NEAR_ROUNDS, 0.0),
            _table(
                f"CreateVolume of known content, hub {FAR_SECONDS * 1000:.0f} ms away",
                hub,
                running,
                _FAR_ROUNDS,
                FAR_SECONDS,
            ),
        ]


def _table(title: str, hub: Hub, running: Plugins, rounds: int, latency: float) -> Table:
    pinned = {name: _create(running, name, {}) for name in (SMALL, LARGE)}
    hub.faults.latency = latency
    trips = {name: _round_trips(hub, lambda name=name: _create(running, name, {})) for name in (SMALL, LARGE)}
    measures = {
        name: lambda name=name: 1000 * seconds(lambda: _create(running, name, {})) for name in (SMALL, LARGE)
    }
    commits = {
        f"{name}@commit": lambda name=name: 1000 * seconds(lambda: _create(running, name, pinned[name]))
        for name in (SMALL, LARGE)
    }
    figures = interleaved(rounds, measures | commits)
    hub.faults.latency = 0.0
    table = Table(title, "ms", 1)
    for revision, suffix in (("main", ""), ("a commit, proven within the last ten minutes", "@commit")):
        small, large = figures[SMALL + suffix], figures[LARGE + suffix]
        far = trips[SMALL] * latency * 1000 if not suffix else 0
        table.row(f"80 MB at {revision}", small)
        table.compare(f"80 GB at {revision}", large, [("80 MB", small, None)])
        table.row("  of it the driver's own", Series(tuple(value - far for value in large.values)), _OURS)
    table.notes.append(
        f"round trips to the hub for `main`: {trips[SMALL]} (80 MB), {trips[LARGE]} (80 GB); none for a "
        "commit"
    )
    return table


_numbers = iter(range(10**9))


def _create(running: Plugins, repo: str, pin: dict[str, str]) -> dict[str, str]:
    """Make a volume of a new name and delete it; returns the parameters that pin its revision."""
    with running.client("controller") as controller:
        volume = controller.create(f"volume-{next(_numbers)}", hub_parameters(repo) | pin)
        return {"revision": volume.volume_context["revision"]}


def _round_trips(hub: Hub, work: object) -> int:
    hub.counters.reset()
    work()  # type: ignore[operator]
    return sum(hub.counters.requests.values())
