"""What a pod has bought beside what a program in its container reads, in a real cluster."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.benchmarks.pods_of_a_node import installed_driver
from tests.benchmarks.rounds import say
from tests.benchmarks.table import Table
from tests.benchmarks.throttled import within
from tests.benchmarks.volume import Setting
from tests.cluster import direct_reads, programs
from tests.cluster.lab import Lab, running
from tests.cluster.pods import applied
from tests.cluster.test_performance import BOUGHT, GIB, MIB, MODEL, PERFORMANCE, THREADS, measuring
from tests.cluster.volumes import claim, claim_volume, inline_volume, storage_class
from tests.kernel.fio import Result
from tests.origins.hub import Hub

# What the kernel saved up for a reader that has not read for a moment, up to a fifth of a second's worth, is
# gone after the first second.
WARM_SECONDS, SECONDS, FREE_SECONDS = 1.0, 6.0, 1.0


def measure(setting: Setting) -> list[Table]:
    """Reads of 4 KiB a second over 6 s, by the program's own count."""
    if why := programs.obstacle():
        say(f"NOT RUN: bought_iops: {why}; make test-cluster builds what it needs")
        return []
    table = Table(f"AutoPL of {GIB} GiB, {BOUGHT} IOPS", "IOPS", 1)
    with running() as lab, Hub(addresses=lab.outside) as hub:
        hub.repo(MODEL["repoId"], {"model.bin": os.urandom(64 * MIB)})
        with (
            installed_driver(lab, hub),
            applied(
                lab.kubectl,
                storage_class("models", {**MODEL, **PERFORMANCE}),
                claim("bought", "models", size=f"{GIB}Gi"),
            ),
        ):
            kinds = {
                "inline": inline_volume({**MODEL, **PERFORMANCE, "size": f"{GIB}Gi"}),
                "claim": claim_volume("bought"),
            }
            for kind, volume in kinds.items():
                with applied(lab.kubectl, measuring(f"measured-{kind}", lab.archives[-3], volume)):
                    lab.kubectl.wait_running(f"measured-{kind}")
                    free = _reads(lab, f"measured-{kind}", "free", FREE_SECONDS)
                    within(
                        table, kind, _reads(lab, f"measured-{kind}", "bought", SECONDS), BOUGHT, 0.03, free
                    )
    return [table]


def _reads(lab: Lab, name: str, volume: str, seconds: float) -> float:
    script = Path(direct_reads.__file__).read_text()
    argv = ["python3", "-c", script, f"/{volume}/model.bin", str(WARM_SECONDS + seconds), str(THREADS)]
    moments = json.loads(lab.kubectl.exec(name, argv))
    counted = Result(WARM_SECONDS + seconds, len(moments), len(moments) * 4096, moments).between(
        WARM_SECONDS, WARM_SECONDS + seconds
    )
    say(f"{name}, {volume}: {counted:.1f} reads a second")
    return counted
