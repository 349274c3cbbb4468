"""datacache-controller: the controller plugin, put together from its parts."""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from controller_plugin.pvc_annotations import Asking, open_claims
from controller_plugin.servicer import ControllerServicer, NoNode
from controller_plugin.volumes import Volumes
from csi import __version__
from csi.concurrency.wait_limiter import WaitingRoom
from csi.destinations.allow_list import ANNOTATIONS, NAS_HELP, AllowList, nas_prefixes
from csi.destinations.destinations import ORIGINS_HELP, destinations
from csi.linux.durable_files import secret_key
from csi.pb import csi_pb2_grpc
from csi.program import flags, lifecycle
from csi.registry.factories import HELP, KUBERNETES, find_server, open_announcer, open_pins, open_registry
from csi.resolve.proof_memory import ProofMemory
from csi.resolve.resolver import Resolver
from csi.server import grpc_server, health
from csi.server.identity import IdentityServicer
from csi.worker.pool import WorkerPool

if TYPE_CHECKING:
    from csi.cluster.api_server import ApiServer

STATE_DIR = "/var/lib/datacache-controller"


def parser() -> argparse.ArgumentParser:
    """The flags of datacache-controller."""
    parser = argparse.ArgumentParser("datacache-controller", description="The controller plugin of the datacache CSI driver.")
    parser.add_argument("--version", action="version", version=__version__)
    flags.plugin_flags(parser)
    flags.flag(parser, "--registry", help=f"what keeps the volumes: {HELP}")
    flags.flag(
        parser,
        "--state-dir",
        default="",
        help=f"where proofs of reading are remembered, which may get lost; empty for the registry's folder, with kubernetes for {STATE_DIR}",
    )
    flags.flag(parser, "--allow-origins", default="", type=destinations, help=ORIGINS_HELP)
    flags.flag(parser, "--allow-inline-nas", default="", type=nas_prefixes, help=NAS_HELP)
    flags.flag(
        parser,
        "--sweep-interval",
        default="5m",
        type=flags.duration,
        help="how often what nodes and volumes that are gone have left in the cluster's objects is taken away",
    )
    flags.flag(parser, "--resolve-workers", default="4", type=flags.count, help="resolves at a time")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM. Exit status 1, with the reason on standard error, where the plugin cannot start."""
    lifecycle.run(parser(), _serve, arguments)


def _serve(options: argparse.Namespace) -> None:
    server = find_server(options.registry)
    pins = open_pins(server)
    registry = open_registry(options.registry, server)
    announcer = open_announcer(server, "datacache-controller", os.environ.get("POD_NAME") or socket.gethostname())
    allowed = AllowList(options.allow_inline_nas, options.allow_origins, ANNOTATIONS)
    room = WaitingRoom(options.rpc_threads // 2)
    state = Path(options.state_dir or (STATE_DIR if options.registry == KUBERNETES else options.registry))
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    proofs = ProofMemory(state / "proofs", secret_key(state / "key"), options.proof_ttl, options.offline_grace)
    pool = WorkerPool(
        {"resolve": options.resolve_workers},
        log_format=options.log_format,
        log_level=options.log_level,
        profiles=options.egress_profile,
        allowed=options.allow_origins,
    )
    asking = Asking(open_claims(server), allowed)
    volumes = Volumes(registry, Resolver(pool, proofs, room, ask_moving=True), asking, pins, announcer)

    observe = grpc_server.unobserved
    if options.metrics_address:
        from csi.server.metrics import Metrics  # 5 MB that only those pay who ask for them

        observe = Metrics(options.metrics_address).observe

    def register(server: grpc.Server) -> None:
        csi_pb2_grpc.add_IdentityServicer_to_server(IdentityServicer(options.driver_name), server)
        csi_pb2_grpc.add_ControllerServicer_to_server(ControllerServicer(volumes, options.driver_name), server)
        csi_pb2_grpc.add_NodeServicer_to_server(NoNode(), server)

    try:
        with _leadership(options, server):
            healthy = partial(health.answering, options.health_address, options.endpoint)
            grpc_server.serve(options.endpoint, options.rpc_threads, room, register, healthy, observe)
    finally:
        pool.close()
        announcer.close()


@contextmanager
def _leadership(options: argparse.Namespace, server: ApiServer | None) -> Iterator[None]:
    """In a cluster, do the leader's duties whenever this replica leads; a folder has one controller and no duties."""
    if server is None:
        yield
        return
    from controller_plugin.leader import Leader
    from csi.registry.pins.kubernetes import KubernetesPins
    from csi.registry.volumes.kubernetes import KubernetesRegistry

    leader = Leader(server, KubernetesRegistry(server), KubernetesPins(server), options.sweep_interval)
    with leader.campaign(f"{options.driver_name.lower()}-controller"):
        yield


if __name__ == "__main__":
    main()
