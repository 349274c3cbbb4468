"""`python -m tests.benchmarks [subject...]`: measure and print tables; without a subject, all of them."""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.rounds import say
from tests.benchmarks.volume import Setting

SUBJECTS = (
    "create_cached",
    "create_data_cache",
    "layout_time",
    "read_volume",
    "fill_from_hub",
    "fill_far_origin",
    "fill_from_nas",
    "fill_from_modelscope",
    "fill_from_s3",
    "fill_from_url",
    "fill_at_a_limit",
    "egress_rates",
    "readers_nas_or_volume",
    "shared_reads",
    "publish_latency",
    "waiting_calls",
    "rehash_cost",
    "idle_memory",
    "throttle_rates",
    "throttle_bursts",
    "throttle_neighbours",
    "throttle_pods",
    "throttle_starts",
    "throttle_restart",
    "throttle_idle",
    "pods_of_a_node",
    "bought_iops",
    "many_data_caches",
)


def main() -> None:
    """Run the chosen benchmarks one after the other, each in a scratch folder of its own."""
    parser = argparse.ArgumentParser("benchmarks", description=__doc__)
    parser.add_argument(
        "subjects", nargs="*", metavar="subject", help=f"one or more of {', '.join(SUBJECTS)}"
    )
    parser.add_argument("--gib", type=float, default=4.0, help="size of the repositories")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each comparison")
    parser.add_argument(
        "--dir", type=Path, default=Path("/var/tmp"), help="where to work: the disk that is measured"
    )
    options = parser.parse_args()
    unknown = set(options.subjects) - set(SUBJECTS)
    if unknown:
        parser.error(f"no such subject: {', '.join(sorted(unknown))}")
    if os.geteuid():
        sys.exit("the benchmarks mount and drop caches: run them as root")
    for subject in options.subjects or SUBJECTS:
        _run(subject, options)


def _run(subject: str, options: argparse.Namespace) -> None:
    module = importlib.import_module(f"tests.benchmarks.{subject}")
    folder = Path(tempfile.mkdtemp(prefix=f"datacache-bench-{subject}-", dir=options.dir))
    say(f"{subject}: {(module.__doc__ or '').splitlines()[0]}")
    started = time.monotonic()
    try:
        for table in module.measure(Setting(options.gib, options.rounds, folder)):
            print("\n" + table.markdown(), flush=True)
    finally:
        shutil.rmtree(folder)
    say(f"{subject}: {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
