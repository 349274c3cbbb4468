"""NodePublish of what is on the node already: idle, and while a fill runs at full speed."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping

from datacache.client import PluginClient
from tests.benchmarks.origins import hub_site
from tests.benchmarks.rounds import say, seconds
from tests.benchmarks.table import Series, Table, at_most
from tests.benchmarks.volume import Setting, Staged, hub_parameters, plugins, staged
from tests.plugins import Plugins

PUBLISHES = 500
_SETTLE_SECONDS = 0.3
_INLINE = {"csi.storage.k8s.io/ephemeral": "true"}
_GOAL_MS, _GOAL_RATIO = at_most(15, " ms"), at_most(1.2)
_SMALL, _LARGE, _COPY = "org/small", "org/large", "org/large-copy"
_repos, _numbers = itertools.cycle((_LARGE, _COPY)), itertools.count()

Publish = Callable[[PluginClient], float]
Measures = Mapping[str, Publish]
Figures = dict[tuple[str, str], list[float]]


def measure(setting: Setting) -> list[Table]:
    """Milliseconds of one call.

    Pods' volumes are unpublished outside of that. nginx runs at the lowest priority: an origin is elsewhere.
    """
    with hub_site(meek=True) as site:
        site.add_copy(_COPY, site.add(_LARGE, "one", setting.total))
        site.add(_SMALL, "one", 2**20)
        size = ["--store-size", str(setting.total * 3 // 2)]
        with (
            plugins(setting.folder, {"HF_ENDPOINT": site.hub.endpoint}, size) as running,
            staged(running, "small", hub_parameters(_SMALL)) as volume,
        ):
            measures = {"staged": _staged_publish(running, volume), "inline": _inline_publish(running)}
            figures = _figures(running, measures)
    return [_table(kind, figures) for kind in measures]


def _figures(running: Plugins, measures: Measures) -> Figures:
    """Milliseconds by kind and state ("idle", "filling"), in turns, until there are enough of each."""
    found: Figures = {(kind, state): [] for kind in measures for state in ("idle", "filling")}
    with running.client("node") as node:
        while min(map(len, found.values())) < PUBLISHES:
            for kind, publish in measures.items():
                found[kind, "idle"] += [publish(node) for _ in range(PUBLISHES // 5)]
            _during_a_fill(running, node, measures, found)
            say(", ".join(f"{kind} {state}: {len(values)} calls" for (kind, state), values in found.items()))
    return found


def _during_a_fill(running: Plugins, node: PluginClient, measures: Measures, found: Figures) -> None:
    """Fill a large image that is not there (the one before is evicted for it) and publish as long as that
    goes on."""
    repo = next(_repos)
    thread = threading.Thread(target=_fill_once, args=(running, repo))
    thread.start()
    # The eviction is over when bytes come; its discards get a moment to reach the disk.
    while thread.is_alive() and not any((running.store / "images").glob("*/progress*")):
        time.sleep(0.02)
    time.sleep(_SETTLE_SECONDS)
    while thread.is_alive():
        for kind, publish in measures.items():
            taken = publish(node)
            if thread.is_alive():
                found[kind, "filling"].append(taken)
    thread.join()


def _fill_once(running: Plugins, repo: str) -> None:
    with staged(running, "large", hub_parameters(repo)):
        pass


def _staged_publish(running: Plugins, volume: Staged) -> Publish:
    def publish(node: PluginClient) -> float:
        target = str(running.folder / f"pod-{next(_numbers)}" / "mount")
        taken = seconds(lambda: node.publish(volume.id, target, volume.context, str(volume.path)))
        node.unpublish(volume.id, target)
        return 1000 * taken

    return publish


def _inline_publish(running: Plugins) -> Publish:
    def publish(node: PluginClient) -> float:
        name = f"csi-{next(_numbers)}"
        target = str(running.folder / name / "mount")
        taken = seconds(lambda: node.publish(name, target, {**hub_parameters(_SMALL), **_INLINE}))
        node.unpublish(name, target)
        return 1000 * taken

    return publish


def _table(kind: str, figures: Figures) -> Table:
    idle, filling = (Series(tuple(figures[kind, state])) for state in ("idle", "filling"))
    table = Table(
        f"NodePublish, {kind}: {len(idle.values)} calls idle, {len(filling.values)} while a fill runs at "
        "full speed",
        "ms",
        1,
    )
    for label, share in (("p50", 0.5), ("p99", 0.99)):
        alone, beside = (Series((series.percentile(share),)) for series in (idle, filling))
        table.row(f"{label} idle", alone, _GOAL_MS if share > 0.9 else None)
        table.compare(f"{label} while a fill runs", beside, [("idle", alone, _GOAL_RATIO)])
        table.row("", beside, _GOAL_MS if share > 0.9 else None)
    return table
