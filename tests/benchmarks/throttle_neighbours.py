"""Two pods with limits of their own on one image.

And a pod without one beside pods that crawl through the same cold files.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.benchmarks.rounds import say
from tests.benchmarks.table import Series, Table, at_least
from tests.benchmarks.throttled import Site, cgroups, hub_of, parts, site, within
from tests.benchmarks.volume import Setting
from tests.kernel import fio
from tests.kernel.fio import DIRECT_4K
from tests.kernel.reclaim import no_proactive_reclaim
from tests.kernel.throttle.volumes import plain
from tests.kernel.throttle.walkers import DISK, KINDS, disk_of_its_own, for_ever, once, once_cold

PAIR, CRAWL = (500, 5_000), 50
SECONDS = 20.0


def measure(setting: Setting) -> Iterator[Table]:
    """Everything at the same time on one image."""
    with hub_of(setting.folder, min(setting.total, 2**30)) as hub, site(setting.folder, hub) as running:
        yield _two(running)
        with no_proactive_reclaim():
            yield _beside(running, setting.rounds * 3)
        yield _warm(running, setting.rounds)


def _two(running: Site) -> Table:
    pods = [running.kubelet.pod() for _ in PAIR]
    containers = [pod.add_container() for pod in pods]
    shown = [running.volumes.inline(pod, plain(iops)) for pod, iops in zip(pods, PAIR, strict=True)]
    started = [
        fio.Fio(container, parts(one)[0], DIRECT_4K, SECONDS)
        for container, one in zip(containers, shown, strict=True)
    ]
    table = Table(f"Two pods on one image at once, direct 4k, {SECONDS:.0f} s, {cgroups()}", "IOPS")
    for iops, result in zip(PAIR, [one.wait() for one in started], strict=True):
        within(table, f"limited to {iops}", result.iops, iops, 0.03)
    return table


def _beside(running: Site, rounds: int) -> Table:
    free, crawling = running.kubelet.pod(), running.kubelet.pod()
    unlimited, limited = free.add_container(), crawling.add_container()
    ours, theirs = running.volumes.inline(free, {}), running.volumes.inline(crawling, plain(CRAWL))
    mine, other = parts(ours)[0], parts(theirs)[0]
    figures: dict[tuple[str, str], list[float]] = {
        (kind, state): [] for kind in KINDS for state in ("alone", "beside")
    }
    with disk_of_its_own(free, unlimited, ours.device):
        for number in range(rounds):
            for kind, state in figures:
                if state == "beside":
                    for_ever(limited, theirs.target, other)
                figures[kind, state].append(1 / once_cold(unlimited, kind, ours.target, mine))
                limited.end()
            say(f"round {number + 1} of {rounds}")
    table = Table(
        f"A reader without a limit, beside three (buffered, mmap, find) at {CRAWL} IOPS on the same cold "
        "image",
        "a second",
        2,
    )
    for kind in KINDS:
        alone, beside = (Series(tuple(figures[kind, state])) for state in ("alone", "beside"))
        table.row(f"{kind}, alone", alone)
        table.compare(f"{kind}, beside them", beside, [("alone", alone, at_least(0.9))])
    table.notes.append(
        f"on a disk of {DISK}: faster than that, the host's cache and everybody else's work would be measured"
    )
    table.notes.append("passes a second: through one file, or through the tree of the model")
    return table


def _warm(running: Site, rounds: int) -> Table:
    pod = running.kubelet.pod()
    container, shown = pod.add_container(), running.volumes.inline(pod, plain(PAIR[1]))
    file = parts(shown)[0]
    size = file.stat().st_size / 2**20
    first = size / once(container, "buffered", shown.target, file)
    again = Series(tuple(size / once(container, "buffered", shown.target, file) for _ in range(rounds)))
    table = Table(f"Buffered reads of a pod limited to {PAIR[1]} IOPS", "MiB/s")
    table.row("cold", Series((first,)))
    table.compare("from the page cache", again, [("cold", Series((first,) * rounds), at_least(10))])
    return table
