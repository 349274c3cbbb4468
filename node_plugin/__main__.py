"""datacache-node: the node plugin, put together from its parts."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from csi import __version__
from csi.concurrency.wait_limiter import WaitingRoom
from csi.destinations.allow_list import NAS_HELP, PREWARMS, AllowList, nas_prefixes
from csi.destinations.destinations import ORIGINS_HELP, destinations
from csi.errors import UnsupportedByNode
from csi.image_store.client import LANE as STORED_LANE
from csi.image_store.client import StoreAccess, StoredImages
from csi.images.node_store.store import Store
from csi.linux.cgroups.detect import hierarchy_at
from csi.linux.cgroups.hierarchy import Hierarchy
from csi.linux.erofs_support import require_erofs
from csi.linux.loop_devices import KernelLoops, read_ahead_of
from csi.linux.mounts import KernelMounts
from csi.pb import csi_pb2_grpc
from csi.program import flags, lifecycle
from csi.registry.factories import HELP, find_server, open_announcer, open_data_caches, open_pins, open_prewarms, open_registry
from csi.registry.volumes.record import Interest, VolumeRegistry
from csi.resolve.proof_memory import ProofMemory
from csi.resolve.resolver import Resolver
from csi.server import grpc_server, health
from csi.server.identity import IdentityServicer
from csi.worker.pool import WorkerPool
from node_plugin.fills.fill_events import FillEvents
from node_plugin.fills.fills import Fills
from node_plugin.fills.uploads import Uploads
from node_plugin.prewarm.prewarming import Prewarming
from node_plugin.registration import registered
from node_plugin.servicer import NodeServicer
from node_plugin.throttle.records import GroupRecords
from node_plugin.throttle.throttle import Throttle
from node_plugin.topology import NodeTopology
from node_plugin.volumes.authorized_resolver import Proving
from node_plugin.volumes.data_cache_grants import GrantedCaches
from node_plugin.volumes.image_mounts import ImageMounts
from node_plugin.volumes.limits import VolumeLimits
from node_plugin.volumes.pins import NodePins
from node_plugin.volumes.records import VolumeRecords
from node_plugin.volumes.volumes import Volumes

if TYPE_CHECKING:
    from csi.cluster.api_server import ApiServer

log = logging.getLogger("datacache.node")


def parser() -> argparse.ArgumentParser:
    """The flags of datacache-node."""
    parser = argparse.ArgumentParser("datacache-node", description="The node plugin of the datacache CSI driver.")
    parser.add_argument("--version", action="version", version=__version__)
    flags.plugin_flags(parser)
    flags.flag(parser, "--node-id", help="this node's name in the cluster")
    flags.flag(parser, "--store", default="/var/lib/datacache", type=Path, help="the folder that keeps this node's images")
    flags.flag(
        parser, "--store-size", default="", type=flags.optional_size, help="the store's budget, such as 500Gi; empty for 85%% of its file system"
    )
    flags.flag(parser, "--mount-dir", default="", help="where images are mounted, a path propagated to the host; empty for mounts/ in the store")
    flags.flag(parser, "--allow-origins", default="", type=destinations, help=ORIGINS_HELP)
    flags.flag(parser, "--resolve-workers", default="4", type=flags.count, help="resolves at a time")
    flags.flag(parser, "--fill-workers", default="2", type=flags.count, help="fills at a time; more wait their turn")
    flags.flag(parser, "--fill-connections", default="16", type=flags.count, help="most connections of a fill; a near origin gets fewer")
    flags.flag(parser, "--fill-grace", default="5m", type=flags.duration, help="a fill that nobody waited for during this time is stopped")
    flags.flag(
        parser,
        "--read-ahead",
        default="",
        type=flags.optional_size,
        help="how far the kernel reads ahead in an image; empty: as on the store's disk",
    )
    flags.flag(parser, "--allow-inline-nas", default="", type=nas_prefixes, help=NAS_HELP)
    flags.flag(
        parser,
        "--plugins-registry",
        default="",
        help="kubelet's folder of plugins, such as /var/lib/kubelet/plugins_registry, to be found by it; empty where a sidecar registers the driver",
    )
    flags.flag(parser, "--host-endpoint", default="", help="the CSI socket's path as kubelet sees it; empty: as in --endpoint")
    flags.image_store_flags(parser)
    _limit_flags(parser)
    return parser


def _limit_flags(parser: argparse.ArgumentParser) -> None:
    flags.flag(parser, "--registry", default="", help=f"the controller's registry, to learn of changed performance: {HELP}; empty for none")
    flags.flag(parser, "--cgroup-root", default="/sys/fs/cgroup", type=Path, help="where the node's cgroups are mounted")
    flags.flag(
        parser,
        "--require-throttle",
        default="false",
        type=flags.boolean,
        nargs="?",
        const=True,
        help="refuse volumes with limits where limits cannot be held",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM; mounts stay. Exit status 1, with the reason on standard error, where the plugin cannot start."""
    lifecycle.run(parser(), _serve, arguments)


def _serve(options: argparse.Namespace) -> None:
    room = WaitingRoom(options.rpc_threads // 2)
    store = Store(options.store, options.store_size)
    pool = _pool(options)
    mounts, loops = KernelMounts(), KernelLoops(options.read_ahead or read_ahead_of(options.store))
    images = ImageMounts(Path(options.mount_dir or options.store / "mounts"), mounts, loops, require_erofs)
    server, shown = find_server(options.registry), Interest()
    announcer = open_announcer(server, "datacache-node", options.node_id)
    events, stored = FillEvents(announcer), _stored(options, pool)
    fills = Fills(
        store,
        pool,
        room,
        connections=options.fill_connections,
        grace=options.fill_grace,
        in_use=images.in_use,
        events=events,
        stored=stored,
    )
    uploads = Uploads(store, stored)
    proofs = ProofMemory(options.store / "proofs", store.key(), options.proof_ttl, options.offline_grace)
    resolver = Resolver(pool, proofs, room, ask_moving=False, scratch=store.temp_path)
    allowed = AllowList(options.allow_inline_nas, options.allow_origins)
    registry = open_registry(options.registry, server) if options.registry else None
    throttle = Throttle(_hierarchy(options.cgroup_root), GroupRecords(options.store / "throttles"), options.require_throttle)
    limits = VolumeLimits(registry)
    records, pins = VolumeRecords(options.store / "volumes", shown), NodePins(open_pins(server), options.node_id)
    proving = Proving(store, resolver)
    granted = _granted(options, server, store, stored, proving) if options.registry else None
    volumes = Volumes(records, store, proving, fills, images, mounts, room, allowed, limits, throttle, pins, events, granted)
    prewarms = open_prewarms(options.registry, server, options.node_id, registry)
    asking_anew = Resolver(pool, proofs, room, ask_moving=True, scratch=store.temp_path)
    prewarming = prewarms and Prewarming(
        prewarms,
        AllowList(options.allow_inline_nas, options.allow_origins, PREWARMS),
        Proving(store, asking_anew),
        fills,
        store,
        pins,
        images.check_node,
        options.store / "prewarms.json",
        granted=granted,
        uploads=uploads,
    )
    if prewarming:
        fills.keep(prewarming.kept)
    topology = NodeTopology(options.driver_name, options.node_id, images.check_node, announcer)
    observe = _observer(options.metrics_address, throttle)

    def register(server: grpc.Server) -> None:
        csi_pb2_grpc.add_IdentityServicer_to_server(IdentityServicer(options.driver_name), server)
        csi_pb2_grpc.add_NodeServicer_to_server(NodeServicer(volumes, options.node_id, topology), server)

    try:
        with _watching(registry, volumes, shown):
            volumes.recover()
            with pins.tended(), prewarming.running() if prewarming else nullcontext():
                grpc_server.serve(options.endpoint, options.rpc_threads, room, register, lambda: _meanwhile(options, topology), observe)
    finally:
        uploads.stop()
        fills.stop()
        pool.close()
        announcer.close()
        if prewarms:
            prewarms.close()
        throttle.close()


def _pool(options: argparse.Namespace) -> WorkerPool:
    lanes = {"resolve": options.resolve_workers, "fill": options.fill_workers, "vouch": options.fill_workers, STORED_LANE: 2}
    return WorkerPool(
        lanes, log_format=options.log_format, log_level=options.log_level, profiles=options.egress_profile, allowed=options.allow_origins
    )


def _stored(options: argparse.Namespace, pool: WorkerPool) -> StoredImages:
    access = StoreAccess(options.image_store, options.image_store_secret)
    access.check()
    return StoredImages(pool, access)


def _granted(options: argparse.Namespace, server: ApiServer | None, store: Store, stored: StoredImages, proving: Proving) -> GrantedCaches:
    home = server.access.namespace if server else ""
    return GrantedCaches(open_data_caches(options.registry, server), home, store, stored, proving)


def _observer(address: tuple[str, int] | None, throttle: Throttle) -> grpc_server.Observe:
    if address is None:
        return grpc_server.unobserved
    # 5 MB that only those pay who ask for them.
    from csi.server.metrics import Metrics
    from node_plugin.metrics import LimitsCollector

    metrics = Metrics(address)
    metrics.add(LimitsCollector(throttle))
    return metrics.observe


@contextmanager
def _meanwhile(options: argparse.Namespace, topology: NodeTopology) -> Iterator[None]:
    """What others are told while calls are answered."""
    host_endpoint = options.host_endpoint or grpc_server.socket_path(options.endpoint)
    with ExitStack() as told:
        told.enter_context(health.answering(options.health_address, options.endpoint))
        if options.plugins_registry:
            told.enter_context(registered(options.plugins_registry, options.driver_name, host_endpoint, topology.refused))
        yield


@contextmanager
def _watching(registry: VolumeRegistry | None, volumes: Volumes, shown: Interest) -> Iterator[None]:
    """Hear of changed performance of the volumes shown here for the block; where that cannot be, a volume's next publishing finds it."""
    with ExitStack() as watch:
        try:
            watch.enter_context(registry.watch(volumes.renew_limits, shown) if registry else nullcontext())
        except UnsupportedByNode as error:
            log.warning("changed performance is not heard of", extra={"fields": {"reason": error}})
        yield


def _hierarchy(root: Path) -> Hierarchy | UnsupportedByNode:
    try:
        return hierarchy_at(root)
    except UnsupportedByNode as error:
        return error


if __name__ == "__main__":
    main()
