"""A limit slows the pod that has it, and nobody else; and nothing that is in memory already."""

from __future__ import annotations

import statistics

import pytest

from tests.kernel.kubelet import Kubelet
from tests.kernel.reclaim import no_proactive_reclaim
from tests.kernel.throttle.volumes import IOPS, SLOW, Volumes, plain, reads
from tests.kernel.throttle.walkers import DISK, KINDS, disk_of_its_own, for_ever, once_cold

pytestmark = pytest.mark.kernel

# So slow that whoever has to wait for one of its pages notices.
CRAWL, ROUNDS = 50, 3
_AGAIN = """
import os, sys, time
file, buffer = os.open(sys.argv[1], os.O_RDONLY), bytearray(int(sys.argv[2]))
for _ in range(int(sys.argv[3]) + 1):
    began = time.monotonic()
    os.preadv(file, [buffer], 0)
    print(time.monotonic() - began)
"""


def test_an_unlimited_reader_keeps_its_speed_beside_limited_readers_of_the_same_cold_file(
    volumes: Volumes, kubelet: Kubelet
) -> None:
    free, crawling = kubelet.pod(), kubelet.pod()
    unlimited, limited = free.add_container(), crawling.add_container()
    ours, theirs = volumes.inline(free, {}), volumes.inline(crawling, plain(CRAWL))
    # As large as is read in about a second.
    mine, other = (one.files[1] if SLOW else one.file for one in (ours, theirs))
    alone: dict[str, list[float]] = {kind: [] for kind in KINDS}
    beside: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with no_proactive_reclaim(), disk_of_its_own(free, unlimited, ours.device):
        for _ in range(ROUNDS):
            for kind in KINDS:
                alone[kind].append(once_cold(unlimited, kind, ours.target, mine))
                readers = for_ever(limited, theirs.target, other)
                beside[kind].append(once_cold(unlimited, kind, ours.target, mine))
                assert [reader.poll() for reader in readers] == [None] * len(KINDS)
                limited.end()
    # Whatever else the machine does only adds to the time; having to wait would add to every single one.
    kept = {kind: min(alone[kind]) / min(beside[kind]) for kind in KINDS}
    print(f"\nspeed beside three readers limited to {CRAWL} IOPS over speed alone, on a disk of {DISK}:")
    for kind, share in kept.items():
        print(
            f"{kind:>10}: {share:.2f}, seconds alone {rounded(alone[kind])}, beside {rounded(beside[kind])}"
        )
    assert min(kept["buffered"], kept["mmap"]) >= 0.9
    # Three hundred folders are walked in so little time that it says less; waiting for the others would take tenfold.
    assert kept["find"] >= 0.5


def rounded(values: list[float]) -> list[float]:
    return [round(value, 3) for value in values]


def test_what_is_in_the_page_cache_is_read_at_the_speed_of_memory(volumes: Volumes, kubelet: Kubelet) -> None:
    pod, iops = kubelet.pod(), IOPS[0]
    container = pod.add_container()
    shown = volumes.inline(pod, plain(iops))
    rate = reads(iops).bytes_per_second or 0
    size = rate // 2
    first, *again = map(
        float, container.run(["python3", "-I", "-S", "-c", _AGAIN, str(shown.file), str(size), "20"]).split()
    )
    print(
        f"\nfirst {size / first / 2**20:.1f} MiB/s, again {size / statistics.median(again) / 2**20:.0f} MiB/s, limit {rate / 2**20:.1f} MiB/s"
    )
    assert size / first <= rate * 1.2
    assert size / statistics.median(again) >= 20 * rate
