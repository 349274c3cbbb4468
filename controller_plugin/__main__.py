"""Entry point of datacache-controller: parses flags and assembles the controller plugin."""

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
from csi.pb import csi_pb2_grpc
from csi.program import flags, lifecycle
from csi.registry.events.recorder import EventRecorder
from csi.registry.factories import (
    KUBERNETES,
    REGISTRY_HELP,
    find_api_server,
    open_event_recorder,
    open_pins,
    open_registry,
)
from csi.resolve.proof_memory import open_proof_memory
from csi.resolve.resolver import Resolver
from csi.server import grpc_server, health
from csi.server.identity import IdentityServicer
from csi.worker.pool import WorkerPool, build_worker_command

if TYPE_CHECKING:
    from csi.cluster.api_server import ApiServer

STATE_DIR = "/var/lib/datacache-controller"


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of datacache-controller's flags."""
    parser = argparse.ArgumentParser(
        "datacache-controller", description="The controller plugin of the datacache CSI driver."
    )
    parser.add_argument("--version", action="version", version=__version__)
    flags.add_plugin_flags(parser)
    flags.add_flag(parser, "--registry", help=f"registry of the volumes: {REGISTRY_HELP}")
    flags.add_flag(
        parser,
        "--state-dir",
        default="",
        help="folder that remembers successful access checks, and may be lost; empty for the registry's "
        f"folder, with kubernetes for {STATE_DIR}",
    )
    flags.add_flag(parser, "--allow-origins", default="", type=parse_destinations, help=ORIGINS_HELP)
    flags.add_flag(parser, "--allow-inline-nas", default="", type=parse_nas_prefixes, help=NAS_HELP)
    flags.add_flag(
        parser,
        "--sweep-interval",
        default="5m",
        type=flags.parse_duration,
        help="how often references to deleted nodes and volumes are removed from the cluster's objects",
    )
    flags.add_flag(
        parser,
        "--resolve-workers",
        default="4",
        type=flags.parse_count,
        help="the maximum number of concurrent resolves",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM.

    Exit with status 1 and the reason on standard error if the plugin cannot start.
    """
    lifecycle.run_program(build_parser(), _serve, arguments)


def _serve(options: argparse.Namespace) -> None:
    server = find_api_server(options.registry)
    recorder = open_event_recorder(
        server, "datacache-controller", os.environ.get("POD_NAME") or socket.gethostname()
    )
    wait_limiter = WaitLimiter(options.rpc_threads // 2)
    pool = _build_pool(options)
    volumes = _build_volumes(options, server, pool, wait_limiter, recorder)
    register = partial(_register_servicers, options.driver_name, volumes)
    serve_probes = partial(health.serve_health, options.health_address, options.endpoint)
    observe = _start_metrics(options.metrics_address)
    try:
        with _campaign(options, server):
            grpc_server.serve(
                options.endpoint, options.rpc_threads, wait_limiter, register, serve_probes, observe
            )
    finally:
        pool.close()
        recorder.close()


def _build_pool(options: argparse.Namespace) -> WorkerPool:
    return WorkerPool(
        {"resolve": options.resolve_workers},
        command=build_worker_command(options.log_format, options.log_level),
        profiles=options.egress_profile,
        allowed_destinations=options.allow_origins,
    )


def _build_volumes(
    options: argparse.Namespace,
    server: ApiServer | None,
    pool: WorkerPool,
    wait_limiter: WaitLimiter,
    recorder: EventRecorder,
) -> ControllerVolumes:
    state_dir = Path(options.state_dir or (STATE_DIR if options.registry == KUBERNETES else options.registry))
    proofs = open_proof_memory(state_dir, options.proof_ttl, options.offline_grace)
    resolver = Resolver(pool, proofs, wait_limiter, refresh_moving=True)
    allow_list = AllowList(options.allow_inline_nas, options.allow_origins, PVC_ANNOTATIONS)
    parameter_reader = ParameterReader(open_pvc_reader(server), allow_list)
    registry, pins = open_registry(options.registry, server), open_pins(server)
    return ControllerVolumes(registry, resolver, parameter_reader, pins, recorder)


def _start_metrics(address: tuple[str, int] | None) -> grpc_server.CallObserver:
    if address is None:
        return grpc_server.ignore_call
    # Imported here: prometheus_client takes 5 MB, which plugins without --metrics-address need not pay.
    from csi.server.metrics import Metrics

    return Metrics(address).observe


def _register_servicers(driver_name: str, volumes: ControllerVolumes, server: grpc.Server) -> None:
    csi_pb2_grpc.add_IdentityServicer_to_server(IdentityServicer(driver_name), server)
    csi_pb2_grpc.add_ControllerServicer_to_server(ControllerServicer(volumes, driver_name), server)
    csi_pb2_grpc.add_NodeServicer_to_server(NodeServiceStub(), server)


@contextmanager
def _campaign(options: argparse.Namespace, server: ApiServer | None) -> Iterator[None]:
    """Run for leader and do its duties during the block.

    A folder has one controller and no duties.
    """
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
