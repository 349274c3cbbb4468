"""datacache-node, the node plugin: its flags and composition root."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from csi import __version__
from csi.concurrency.wait_limiter import WaitLimiter
from csi.destinations.allow_list import (
    CACHE_PREWARMS,
    INLINE_VOLUMES,
    NAS_HELP,
    AllowList,
    parse_nas_prefixes,
)
from csi.destinations.destinations import ORIGINS_HELP, parse_destinations
from csi.errors import UnsupportedByNode
from csi.image_store.client import STORE_LANE as STORED_LANE
from csi.image_store.client import ImageStoreClient, ImageStoreConfig
from csi.images.node_store.store import Store
from csi.linux.cgroups.detect import detect_hierarchy
from csi.linux.cgroups.hierarchy import CgroupHierarchy
from csi.linux.erofs_support import require_erofs
from csi.linux.loop_devices import KernelLoopDevices, default_read_ahead
from csi.linux.mounts import KernelMountTable
from csi.pb import csi_pb2_grpc
from csi.program import flags, lifecycle
from csi.registry.factories import (
    REGISTRY_HELP,
    find_api_server,
    open_data_caches,
    open_event_recorder,
    open_node_prewarms,
    open_pins,
    open_registry,
)
from csi.registry.volumes.record import VolumeRegistry, WatchedVolumes
from csi.resolve.proof_memory import ProofMemory
from csi.resolve.resolver import Resolver
from csi.server import grpc_server, health
from csi.server.identity import IdentityServicer
from csi.worker.pool import WorkerPool
from node_plugin.fills.fill_events import FillEvents
from node_plugin.fills.fill_runner import FillRunner
from node_plugin.fills.fills import Fills, ProtectedImages
from node_plugin.fills.uploads import Uploads
from node_plugin.fills.verification import OriginVerification
from node_plugin.prewarm.prewarming import PrewarmLoop
from node_plugin.registration import serve_registration
from node_plugin.servicer import NodeServicer
from node_plugin.throttle.records import GroupRecords
from node_plugin.throttle.throttle import Throttle
from node_plugin.topology import NodeTopology
from node_plugin.volumes.authorized_resolver import AuthorizedResolver
from node_plugin.volumes.data_cache_grants import DataCacheGrants
from node_plugin.volumes.exposures import VolumeExposures
from node_plugin.volumes.image_mounts import ImageMounts
from node_plugin.volumes.limits import PerformanceLookup
from node_plugin.volumes.pins import NodePins
from node_plugin.volumes.preparation import VolumePreparation
from node_plugin.volumes.records import VolumeRecords
from node_plugin.volumes.recovery import NodeRecovery
from node_plugin.volumes.volumes import NodeVolumes

if TYPE_CHECKING:
    from csi.cluster.api_server import ApiServer

log = logging.getLogger("datacache.node")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of datacache-node's flags."""
    parser = argparse.ArgumentParser(
        "datacache-node", description="The node plugin of the datacache CSI driver."
    )
    parser.add_argument("--version", action="version", version=__version__)
    flags.add_plugin_flags(parser)
    flags.add_flag(parser, "--node-id", help="this node's name in the cluster")
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
    flags.add_flag(
        parser,
        "--read-ahead",
        default="",
        type=flags.parse_optional_size,
        help="the kernel's read-ahead in an image; empty: that of the store's disk",
    )
    flags.add_flag(parser, "--allow-inline-nas", default="", type=parse_nas_prefixes, help=NAS_HELP)
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
    flags.add_image_store_flags(parser)
    _add_limit_flags(parser)
    return parser


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
    store = Store(options.store, options.store_size)
    pool = _build_pool(options)
    server = find_api_server(options.registry)
    watched = WatchedVolumes()
    recorder = open_event_recorder(server, "datacache-node", options.node_id)
    registry = open_registry(options.registry, server) if options.registry else None
    mounts = KernelMountTable()
    loops = KernelLoopDevices(options.read_ahead or default_read_ahead(options.store))
    images = ImageMounts(Path(options.mount_dir or options.store / "mounts"), mounts, loops, require_erofs)
    hierarchy = _detect_hierarchy(options.cgroup_root)
    throttle = Throttle(hierarchy, GroupRecords(options.store / "throttles"), options.require_throttle)
    image_store = _build_image_store_client(options, pool)
    events = FillEvents(recorder)
    protected = ProtectedImages(images.list_in_use)
    runner = FillRunner(store, pool, options.fill_connections, image_store)
    fills = Fills(store, runner, wait_limiter, protected, options.fill_grace, events)
    verification = OriginVerification(store, pool, wait_limiter, options.fill_connections)
    pins = NodePins(open_pins(server), options.node_id)
    performance = PerformanceLookup(registry)
    proofs = ProofMemory(options.store / "proofs", store.key(), options.proof_ttl, options.offline_grace)
    resolver = AuthorizedResolver(store, _build_resolver(pool, proofs, wait_limiter, store))
    grants = _build_grants(options, server, store, image_store, resolver) if options.registry else None
    inline_sources = AllowList(options.allow_inline_nas, options.allow_origins, INLINE_VOLUMES)
    preparation = VolumePreparation(resolver, pins, fills, verification, inline_sources, grants)
    records = VolumeRecords(options.store / "volumes", watched)
    exposures = VolumeExposures(records, store, images, mounts, throttle, performance)
    volumes = NodeVolumes(preparation, exposures, wait_limiter, events)
    prewarms = open_node_prewarms(options.registry, server, options.node_id, registry)
    uploads = Uploads(store, image_store)
    prewarming = None
    if prewarms:
        # A prewarm request fills what a moving source holds now, not what an earlier proof found.
        refreshing_resolver = _build_resolver(pool, proofs, wait_limiter, store, refresh_moving=True)
        prewarm_sources = AllowList(options.allow_inline_nas, options.allow_origins, CACHE_PREWARMS)
        prewarm_preparation = VolumePreparation(
            AuthorizedResolver(store, refreshing_resolver), pins, fills, verification, prewarm_sources, grants
        )
        prewarming = PrewarmLoop(prewarms, prewarm_preparation, store, images.check_node, uploads)
        # No pod mounts these images yet, so nothing else protects them from eviction.
        protected.add(prewarming.list_sealed)
    topology = NodeTopology(options.driver_name, options.node_id, images.check_node, recorder)
    observe = _build_observer(options.metrics_address, throttle)

    def register(server: grpc.Server) -> None:
        csi_pb2_grpc.add_IdentityServicer_to_server(IdentityServicer(options.driver_name), server)
        csi_pb2_grpc.add_NodeServicer_to_server(NodeServicer(volumes, options.node_id, topology), server)

    try:
        with _watch_performance(registry, volumes, watched):
            # Before the first call: calls rely on records that match the mount table.
            NodeRecovery(exposures, store, fills, throttle, performance, pins).recover()
            with pins.sync_in_background(), prewarming.run_in_background() if prewarming else nullcontext():
                grpc_server.serve(
                    options.endpoint,
                    options.rpc_threads,
                    wait_limiter,
                    register,
                    lambda: _serve_probes_and_registration(options, topology),
                    observe,
                )
    finally:
        # Before the pool: these have busy workers, which only they can stop.
        uploads.stop()
        verification.stop()
        fills.stop()
        pool.close()
        recorder.close()
        if prewarms:
            prewarms.close()
        throttle.close()


def _build_resolver(
    pool: WorkerPool,
    proofs: ProofMemory,
    wait_limiter: WaitLimiter,
    store: Store,
    refresh_moving: bool = False,
) -> Resolver:
    return Resolver(
        pool, proofs, wait_limiter, refresh_moving=refresh_moving, new_scratch_path=store.new_temp_path
    )


def _build_pool(options: argparse.Namespace) -> WorkerPool:
    lanes = {
        "resolve": options.resolve_workers,
        "fill": options.fill_workers,
        # A lane of its own, so that a short comparison does not wait for long fills.
        "verify": options.fill_workers,
        STORED_LANE: 2,
    }
    return WorkerPool(
        lanes,
        log_format=options.log_format,
        log_level=options.log_level,
        profiles=options.egress_profile,
        allowed_destinations=options.allow_origins,
    )


def _build_image_store_client(options: argparse.Namespace, pool: WorkerPool) -> ImageStoreClient:
    config = ImageStoreConfig(options.image_store, options.image_store_secret)
    config.check_url()
    return ImageStoreClient(pool, config)


def _build_grants(
    options: argparse.Namespace,
    server: ApiServer | None,
    store: Store,
    image_store: ImageStoreClient,
    resolver: AuthorizedResolver,
) -> DataCacheGrants:
    driver_namespace = server.access.namespace if server else ""
    data_caches = open_data_caches(options.registry, server)
    return DataCacheGrants(data_caches, driver_namespace, store, image_store, resolver)


def _build_observer(address: tuple[str, int] | None, throttle: Throttle) -> grpc_server.CallObserver:
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
def _watch_performance(
    registry: VolumeRegistry | None, volumes: NodeVolumes, watched: WatchedVolumes
) -> Iterator[None]:
    """Renew the limits of this node's volumes for the block, whenever their performance changes.

    If the registry cannot be watched, a volume's next publish applies the change.
    """
    with ExitStack() as exit_stack:
        try:
            watch = registry.watch(volumes.renew_limits, watched) if registry else nullcontext()
            exit_stack.enter_context(watch)
        except UnsupportedByNode as error:
            log.warning("changes of performance not watched", extra={"fields": {"reason": error}})
        yield


def _detect_hierarchy(root: Path) -> CgroupHierarchy | UnsupportedByNode:
    try:
        return detect_hierarchy(root)
    # Not fatal: without --require-throttle, volumes are mounted without limits.
    except UnsupportedByNode as error:
        return error


if __name__ == "__main__":
    main()
