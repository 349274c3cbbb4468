"""datacache-node, the node plugin: its flags and what it serves."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc

from csi import __version__
from csi.concurrency.wait_limiter import WaitLimiter
from csi.destinations.allow_list import NAS_HELP, parse_nas_prefixes
from csi.destinations.destinations import ORIGINS_HELP, parse_destinations
from csi.errors import UnsupportedByNode
from csi.pb import csi_pb2_grpc
from csi.program import flags, lifecycle
from csi.registry.factories import REGISTRY_HELP
from csi.server import grpc_server, health
from csi.server.identity import IdentityServicer
from node_plugin.composition import NodePlugin, build_plugin
from node_plugin.registration import serve_registration
from node_plugin.servicer import NodeServicer
from node_plugin.throttle.throttle import Throttle
from node_plugin.topology import NodeTopology

log = logging.getLogger("datacache.node")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of datacache-node's flags."""
    parser = argparse.ArgumentParser(
        "datacache-node", description="The node plugin of the datacache CSI driver."
    )
    parser.add_argument("--version", action="version", version=__version__)
    flags.add_plugin_flags(parser)
    flags.add_flag(parser, "--node-id", help="this node's name in the cluster")
    _add_store_flags(parser)
    _add_fill_flags(parser)
    _add_mount_flags(parser)
    _add_registration_flags(parser)
    flags.add_image_store_flags(parser)
    _add_limit_flags(parser)
    return parser


def _add_store_flags(parser: argparse.ArgumentParser) -> None:
    flags.add_flag(
        parser,
        "--store",
        default="/var/lib/datacache",
        type=Path,
        help="the folder that keeps this node's images",
    )
    flags.add_flag(
        parser,
        "--store-size",
        default="",
        type=flags.parse_optional_size,
        help="the store's budget, such as 500Gi; empty for 85%% of its file system",
    )
    flags.add_flag(
        parser,
        "--mount-dir",
        default="",
        help="where images are mounted, a path propagated to the host; empty for mounts/ in the store",
    )


def _add_fill_flags(parser: argparse.ArgumentParser) -> None:
    flags.add_flag(parser, "--allow-origins", default="", type=parse_destinations, help=ORIGINS_HELP)
    flags.add_flag(
        parser,
        "--resolve-workers",
        default="4",
        type=flags.parse_count,
        help="the maximum number of concurrent resolves",
    )
    flags.add_flag(
        parser,
        "--fill-workers",
        default="2",
        type=flags.parse_count,
        help="the maximum number of concurrent fills; others are queued",
    )
    flags.add_flag(
        parser,
        "--fill-connections",
        default="16",
        type=flags.parse_count,
        help="the maximum number of connections of a fill; fewer are used if more bring no throughput",
    )
    flags.add_flag(
        parser,
        "--fill-grace",
        default="5m",
        type=flags.parse_duration,
        help="a fill is stopped if nothing has waited for it for this long",
    )


def _add_mount_flags(parser: argparse.ArgumentParser) -> None:
    flags.add_flag(
        parser,
        "--read-ahead",
        default="",
        type=flags.parse_optional_size,
        help="the kernel's read-ahead in an image; empty: that of the store's disk",
    )
    flags.add_flag(parser, "--allow-inline-nas", default="", type=parse_nas_prefixes, help=NAS_HELP)


def _add_registration_flags(parser: argparse.ArgumentParser) -> None:
    flags.add_flag(
        parser,
        "--plugins-registry",
        default="",
        help="kubelet's folder for plugin registration, such as /var/lib/kubelet/plugins_registry; "
        "empty if a sidecar registers the driver",
    )
    flags.add_flag(
        parser,
        "--host-endpoint",
        default="",
        help="the CSI socket's path as kubelet sees it; empty: as in --endpoint",
    )


def _add_limit_flags(parser: argparse.ArgumentParser) -> None:
    flags.add_flag(
        parser,
        "--registry",
        default="",
        help=f"the controller's registry, for changes of performance: {REGISTRY_HELP}; empty for none",
    )
    flags.add_flag(
        parser,
        "--cgroup-root",
        default="/sys/fs/cgroup",
        type=Path,
        help="where the node's cgroups are mounted",
    )
    flags.add_flag(
        parser,
        "--require-throttle",
        default="false",
        type=flags.parse_boolean,
        nargs="?",
        const=True,
        help="refuse volumes with limits if this node cannot enforce them",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM; mounts stay.

    If the plugin cannot start, the exit status is 1 and the reason is on standard error.
    """
    lifecycle.run_program(build_parser(), _serve, arguments)


def _serve(options: argparse.Namespace) -> None:
    # The other half of the threads is for calls that do not wait, such as NodeUnpublishVolume.
    wait_limiter = WaitLimiter(options.rpc_threads // 2)
    plugin = build_plugin(options, wait_limiter)
    on_call = _start_metrics(options.metrics_address, plugin.mounting.throttle)

    def register(server: grpc.Server) -> None:
        identity = IdentityServicer(options.driver_name)
        node = NodeServicer(plugin.volumes, options.node_id, plugin.topology)
        csi_pb2_grpc.add_IdentityServicer_to_server(identity, server)
        csi_pb2_grpc.add_NodeServicer_to_server(node, server)

    try:
        with _watch_performance(plugin), ExitStack() as background:
            # Before the first call: calls rely on records that match the mount table.
            plugin.recovery.recover()
            background.enter_context(plugin.cluster.pins.sync_in_background())
            if plugin.prewarming:
                background.enter_context(plugin.prewarming.run_in_background())
            grpc_server.serve(
                options.endpoint,
                options.rpc_threads,
                wait_limiter,
                register,
                lambda: _serve_probes_and_registration(options, plugin.topology),
                on_call,
            )
    finally:
        plugin.stop()


def _start_metrics(address: tuple[str, int] | None, throttle: Throttle) -> grpc_server.CallObserver:
    """Serve metrics at `address`, if given; return the observer that counts calls."""
    if address is None:
        return grpc_server.ignore_call
    # Imported here: prometheus_client takes 5 MB, which plugins without --metrics-address need not pay.
    from csi.server.metrics import Metrics
    from node_plugin.metrics import LimitsCollector

    metrics = Metrics(address)
    metrics.add(LimitsCollector(throttle))
    return metrics.observe


@contextmanager
def _serve_probes_and_registration(options: argparse.Namespace, topology: NodeTopology) -> Iterator[None]:
    """Serve the health endpoint, and register with kubelet if requested, while calls are answered."""
    host_endpoint = options.host_endpoint or grpc_server.parse_socket_path(options.endpoint)
    with ExitStack() as exit_stack:
        exit_stack.enter_context(health.serve_health(options.health_address, options.endpoint))
        if options.plugins_registry:
            exit_stack.enter_context(
                serve_registration(
                    options.plugins_registry,
                    options.driver_name,
                    host_endpoint,
                    topology.report_refused_registration,
                )
            )
        yield


@contextmanager
def _watch_performance(plugin: NodePlugin) -> Iterator[None]:
    """Renew the limits of this node's volumes for the block, whenever their performance changes.

    If the registry cannot be watched, a volume's next publish applies the change.
    """
    registry, watched = plugin.cluster.registry, plugin.mounting.watched_volumes
    with ExitStack() as exit_stack:
        if registry:
            try:
                exit_stack.enter_context(registry.watch(plugin.volumes.renew_limits, watched))
            except UnsupportedByNode as error:
                log.warning("changes of performance not watched", extra={"fields": {"reason": error}})
        yield


if __name__ == "__main__":
    main()
