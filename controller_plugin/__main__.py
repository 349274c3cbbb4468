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

from controller_plugin.pvc_annotations import ParameterReader, open_pvc_reader
from controller_plugin.servicer import ControllerServicer, NodeServiceStub
from controller_plugin.volumes import ControllerVolumes
from csi import __version__
from csi.concurrency.wait_limiter import WaitLimiter
from csi.destinations.allow_list import NAS_HELP, PVC_ANNOTATIONS, AllowList, parse_nas_prefixes
from csi.destinations.destinations import ORIGINS_HELP, parse_destinations
from csi.linux.durable_files import load_or_create_key
from csi.pb import csi_pb2_grpc
from csi.program import flags, lifecycle
from csi.registry.factories import (
    KUBERNETES,
    REGISTRY_HELP,
    find_api_server,
    open_event_recorder,
    open_pins,
    open_registry,
)
from csi.resolve.proof_memory import ProofMemory
from csi.resolve.resolver import Resolver
from csi.server import grpc_server, health
from csi.server.identity import IdentityServicer
from csi.worker.pool import WorkerPool

if TYPE_CHECKING:
    from csi.cluster.api_server import ApiServer

STATE_DIR = "/var/lib/datacache-controller"


def build_parser() -> argparse.ArgumentParser:
    """The flags of datacache-controller."""
    parser = argparse.ArgumentParser(
        "datacache-controller", description="The controller plugin of the datacache CSI driver."
    )
    parser.add_argument("--version", action="version", version=__version__)
    flags.add_plugin_flags(parser)
    flags.add_flag(parser, "--registry", help=f"what keeps the volumes: {REGISTRY_HELP}")
    flags.add_flag(
        parser,
        "--state-dir",
        default="",
        help=f"where proofs of reading are remembered, which may get lost; empty for the registry's folder, with kubernetes for {STATE_DIR}",
    )
    flags.add_flag(parser, "--allow-origins", default="", type=parse_destinations, help=ORIGINS_HELP)
    flags.add_flag(parser, "--allow-inline-nas", default="", type=parse_nas_prefixes, help=NAS_HELP)
    flags.add_flag(
        parser,
        "--sweep-interval",
        default="5m",
        type=flags.parse_duration,
        help="how often what nodes and volumes that are gone have left in the cluster's objects is taken away",
    )
    flags.add_flag(
        parser, "--resolve-workers", default="4", type=flags.parse_count, help="resolves at a time"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM. Exit status 1, with the reason on standard error, where the plugin cannot start."""
    lifecycle.run_program(build_parser(), _serve, arguments)


def _serve(options: argparse.Namespace) -> None:
    server = find_api_server(options.registry)
    pins = open_pins(server)
    registry = open_registry(options.registry, server)
    announcer = open_event_recorder(
        server, "datacache-controller", os.environ.get("POD_NAME") or socket.gethostname()
    )
    allowed = AllowList(options.allow_inline_nas, options.allow_origins, PVC_ANNOTATIONS)
    room = WaitLimiter(options.rpc_threads // 2)
    state = Path(options.state_dir or (STATE_DIR if options.registry == KUBERNETES else options.registry))
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    proofs = ProofMemory(
        state / "proofs", load_or_create_key(state / "key"), options.proof_ttl, options.offline_grace
    )
    pool = WorkerPool(
        {"resolve": options.resolve_workers},
        log_format=options.log_format,
        log_level=options.log_level,
        profiles=options.egress_profile,
        allowed_destinations=options.allow_origins,
    )
    asking = ParameterReader(open_pvc_reader(server), allowed)
    volumes = ControllerVolumes(
        registry, Resolver(pool, proofs, room, refresh_moving=True), asking, pins, announcer
    )

    observe = grpc_server.ignore_call
    if options.metrics_address:
        from csi.server.metrics import Metrics  # 5 MB that only those pay who ask for them

        observe = Metrics(options.metrics_address).observe

    def register(server: grpc.Server) -> None:
        csi_pb2_grpc.add_IdentityServicer_to_server(IdentityServicer(options.driver_name), server)
        csi_pb2_grpc.add_ControllerServicer_to_server(
            ControllerServicer(volumes, options.driver_name), server
        )
        csi_pb2_grpc.add_NodeServicer_to_server(NodeServiceStub(), server)

    try:
        with _campaign(options, server):
            healthy = partial(health.serve_health, options.health_address, options.endpoint)
            grpc_server.serve(options.endpoint, options.rpc_threads, room, register, healthy, observe)
    finally:
        pool.close()
        announcer.close()


@contextmanager
def _campaign(options: argparse.Namespace, server: ApiServer | None) -> Iterator[None]:
    """In a cluster, do the leader's duties whenever this replica leads; a folder has one controller and no duties."""
    if server is None:
        yield
        return
    from controller_plugin.leader import Leader
    from csi.registry.pins.kubernetes import KubernetesPinRegistry
    from csi.registry.volumes.kubernetes import KubernetesVolumeRegistry

    leader = Leader(
        server, KubernetesVolumeRegistry(server), KubernetesPinRegistry(server), options.sweep_interval
    )
    with leader.campaign(f"{options.driver_name.lower()}-controller"):
        yield


if __name__ == "__main__":
    main()
