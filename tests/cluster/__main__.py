"""`python -m tests.cluster`: a cluster with the images of this checkout, kept up until it is interrupted."""

from __future__ import annotations

import argparse
import signal
import sys
from contextlib import suppress

from tests.cluster import images, programs
from tests.cluster.control_plane import MOST_NODES
from tests.cluster.driver_image import ready
from tests.cluster.lab import Lab, running


def main() -> int:
    """Exit status 1, with the reason, where no cluster can run here."""
    flags = argparse.ArgumentParser("python -m tests.cluster", description=__doc__)
    flags.add_argument("--nodes", type=int, choices=range(1, MOST_NODES + 1), default=1)
    flags.add_argument(
        "--bare", action="store_true", help="without the images of the driver and its sidecars"
    )
    options = flags.parse_args()
    if why := programs.obstacle():
        print(f"cluster: CANNOT RUN: {why}", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt), running(options.nodes) as lab:
        if not options.bare:
            lab.load(ready(programs.TREE, programs.cache()), *images.sidecars(lab.folder, lab.programs))
        _tell(lab)
        while True:
            signal.pause()
    return 0


def _tell(lab: Lab) -> None:
    print(f"export KUBECONFIG={lab.kubectl.kubeconfig} PATH={lab.programs}:$PATH")
    print(
        f"# logs: {lab.folder}; this machine, for pods: {lab.outside[0]}; images: "
        f"{', '.join(archive.name for archive in lab.archives)}"
    )
    for node in lab.nodes:
        print(f"# {node.name}: nsenter -t {node.space.pid} --all --wd=/ sh")
    print("# Ctrl-C ends it", flush=True)


if __name__ == "__main__":
    sys.exit(main())
