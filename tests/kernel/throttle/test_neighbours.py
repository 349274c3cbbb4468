"""A limit slows the pod that has it, and nobody else; and nothing that is in memory already.

By how much: `make bench` (throttle_neighbours).
"""

from __future__ import annotations

import pytest

from csi.performance.limits import Rate
from tests.kernel.kubelet import Kubelet
from tests.kernel.reclaim import no_proactive_reclaim
from tests.kernel.throttle.volumes import IOPS, SLOW, Volumes, plain, reads
from tests.kernel.throttle.walkers import KINDS, disk_of_its_own, for_ever, once_cold

pytestmark = pytest.mark.kernel

# So slow that a file takes minutes: whoever had to wait for its readers would be no earlier than they.
CRAWL, ROUNDS = 50, 3
_AGAIN = """
import os, sys
file, buffer = os.open(sys.argv[1], os.O_RDONLY), bytearray(int(sys.argv[2]))
for _ in range(int(sys.argv[3])):
    os.preadv(file, [buffer], 0)
"""


def test_an_unlimited_reader_is_through_while_limited_readers_of_the_same_cold_file_have_hardly_begun(
    volumes: Volumes, kubelet: Kubelet
) -> None:
    free, crawling = kubelet.pod(), kubelet.pod()
    unlimited, limited = free.add_container(), crawling.add_container()
    ours, theirs = volumes.inline(free, {}), volumes.inline(crawling, plain(CRAWL))
    mine, other = (one.files[1] if SLOW else one.file for one in (ours, theirs))
    size = other.stat().st_size
    assert (unlimited.limit(ours.device), limited.limit(theirs.device)) == (Rate(), reads(CRAWL))
    with no_proactive_reclaim(), disk_of_its_own(free, unlimited, ours.device):
        for _ in range(ROUNDS):
            for kind in KINDS:
                before = limited.served(theirs.device), unlimited.served(ours.device)
                readers = for_ever(limited, theirs.target, other)
                once_cold(unlimited, kind, ours.target, mine)
                assert [reader.poll() for reader in readers] == [None] * len(KINDS)
                assert limited.served(theirs.device).since(before[0]).bytes < size / 2
                if kind != "find":
                    assert unlimited.served(ours.device).since(before[1]).bytes >= mine.stat().st_size
                limited.end()


def test_what_is_in_the_page_cache_is_not_read_again(volumes: Volumes, kubelet: Kubelet) -> None:
    pod, iops = kubelet.pod(), IOPS[0]
    container = pod.add_container()
    shown = volumes.inline(pod, plain(iops))
    size = (reads(iops).bytes_per_second or 0) // 2
    with no_proactive_reclaim():
        container.run(["python3", "-I", "-S", "-c", _AGAIN, str(shown.file), str(size), "1"])
        first = container.served(shown.device)
        container.run(["python3", "-I", "-S", "-c", _AGAIN, str(shown.file), str(size), "20"])
    assert first.bytes >= size
    # What is read ahead of the first time may still come.
    assert container.served(shown.device).since(first).bytes < size
