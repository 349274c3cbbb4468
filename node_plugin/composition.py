"""Composition of the node plugin: what is built of what, in the order of the flow from origins to pods."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from csi.concurrency.wait_limiter import WaitLimiter
from csi.destinations.allow_list import CACHE_PREWARMS, INLINE_VOLUMES, AllowList, PolicySubject
from csi.errors import UnsupportedByNode
from csi.image_store.client import IMAGE_STORE_LANE, ImageStoreClient, ImageStoreConfig
from csi.images.node_store.store import Store
from csi.linux.cgroups.detect import detect_hierarchy
from csi.linux.cgroups.hierarchy import CgroupHierarchy
from csi.linux.erofs_support import require_erofs
from csi.linux.loop_devices import KernelLoopDevices, default_read_ahead
from csi.linux.mounts import KernelMountTable, MountTable
from csi.registry.datacaches.data_caches import DataCacheRegistry
from csi.registry.events.recorder import EventRecorder
from csi.registry.factories import (
    find_api_server,
    open_data_caches,
    open_event_recorder,
    open_node_prewarms,
    open_pins,
    open_registry,
)
from csi.registry.prewarms.prewarms import NodePrewarms
from csi.registry.volumes.record import VolumeRegistry, WatchedVolumes
from csi.resolve.proof_memory import ProofMemory
from csi.resolve.resolver import Resolver
from csi.worker.pool import WorkerPool, build_worker_command
from node_plugin.fills.fill_events import FillEvents
from node_plugin.fills.fill_runner import FillRunner
from node_plugin.fills.fills import Fills, ProtectedImages
from node_plugin.fills.uploads import Uploads
from node_plugin.fills.verification import OriginVerification
from node_plugin.prewarm.prewarming import PrewarmLoop
from node_plugin.throttle.records import GroupRecords
from node_plugin.throttle.throttle import Throttle
from node_plugin.topology import NodeTopology
from node_plugin.volumes.data_cache_grants import DataCacheGrants
from node_plugin.volumes.exposures import VolumeExposures
from node_plugin.volumes.image_mounts import ImageMounts
from node_plugin.volumes.limits import PerformanceLookup
from node_plugin.volumes.pins import NodePins
from node_plugin.volumes.preparation import VolumePreparation
from node_plugin.volumes.records import VolumeRecords
from node_plugin.volumes.recovery import NodeRecovery
from node_plugin.volumes.volumes import NodeVolumes


@dataclass(frozen=True)
class ClusterObjects:
    """The objects of the cluster, or of a registry folder; None where there is no registry."""

    recorder: EventRecorder
    pins: NodePins
    registry: VolumeRegistry | None
    prewarms: NodePrewarms | None
    data_caches: DataCacheRegistry | None
    driver_namespace: str

    def close(self) -> None:
        """Record and report nothing more."""
        self.recorder.close()
        if self.prewarms:
            self.prewarms.close()


@dataclass(frozen=True)
class NodeStorage:
    """Where images are kept, on this node and beyond it, and the workers that read and write them."""

    store: Store
    pool: WorkerPool
    wait_limiter: WaitLimiter
    image_store: ImageStoreClient


@dataclass(frozen=True)
class ImageWork:
    """The work in the workers of `pool` that fills, verifies and uploads images."""

    pool: WorkerPool
    protected: ProtectedImages
    events: FillEvents
    fills: Fills
    verification: OriginVerification
    uploads: Uploads

    def stop(self) -> None:
        """Stop all work, then the workers."""
        # Before the pool: these have busy workers, which only they can stop.
        self.uploads.stop()
        self.verification.stop()
        self.fills.stop()
        self.pool.close()


@dataclass(frozen=True)
class Authorization:
    """Who may read what: proofs of reading, and the DataCaches that are granted to namespaces."""

    proofs: ProofMemory
    resolver: Resolver
    grants: DataCacheGrants | None


@dataclass(frozen=True)
class Mounting:
    """The kernel's side of volumes: mounts, limits, and the paths that show volumes."""

    throttle: Throttle
    performance: PerformanceLookup
    watched_volumes: WatchedVolumes
    exposures: VolumeExposures


@dataclass(frozen=True)
class NodePlugin:
    """The node plugin, ready to recover its volumes and then to serve calls."""

    cluster: ClusterObjects
    work: ImageWork
    mounting: Mounting
    volumes: NodeVolumes
    recovery: NodeRecovery
    prewarming: PrewarmLoop | None
    topology: NodeTopology

    def stop(self) -> None:
        """Stop all work; mounts stay."""
        self.work.stop()
        self.cluster.close()
        self.mounting.throttle.close()


def build_plugin(options: argparse.Namespace, wait_limiter: WaitLimiter) -> NodePlugin:
    """Build the plugin; raises what its parts raise if they cannot be used on this node."""
    # First: the lock of the store tells whether another plugin runs here.
    storage = _open_storage(options, wait_limiter)
    cluster = _open_cluster(options)
    mounts = KernelMountTable()
    images = _build_image_mounts(options, mounts)
    work = _build_image_work(options, storage, cluster, images)
    mounting = _build_mounting(options, cluster, storage.store, mounts, images)
    authorization = _build_authorization(options, cluster, storage)
    preparation = _build_preparation(
        options, cluster, work, authorization.resolver, authorization.grants, INLINE_VOLUMES
    )
    return NodePlugin(
        cluster=cluster,
        work=work,
        mounting=mounting,
        volumes=NodeVolumes(preparation, mounting.exposures, wait_limiter, work.events),
        recovery=NodeRecovery(
            mounting.exposures,
            storage.store,
            work.fills,
            mounting.throttle,
            mounting.performance,
            cluster.pins,
        ),
        prewarming=_build_prewarming(options, cluster, storage, work, images, authorization),
        topology=NodeTopology(options.driver_name, options.node_id, images.check_node, cluster.recorder),
    )


def _open_storage(options: argparse.Namespace, wait_limiter: WaitLimiter) -> NodeStorage:
    store = Store(options.store, options.store_size)
    pool = _build_pool(options)
    config = ImageStoreConfig(options.image_store, options.image_store_secret)
    config.check_url()
    return NodeStorage(store, pool, wait_limiter, ImageStoreClient(pool, config))


def _build_pool(options: argparse.Namespace) -> WorkerPool:
    lanes = {
        "resolve": options.resolve_workers,
        "fill": options.fill_workers,
        # A lane of its own, so that a short comparison does not wait for long fills.
        "verify": options.fill_workers,
        IMAGE_STORE_LANE: 2,
    }
    return WorkerPool(
        lanes,
        command=build_worker_command(options.log_format, options.log_level),
        profiles=options.egress_profile,
        allowed_destinations=options.allow_origins,
    )


def _open_cluster(options: argparse.Namespace) -> ClusterObjects:
    where: str = options.registry
    server = find_api_server(where)
    registry = open_registry(where, server) if where else None
    return ClusterObjects(
        recorder=open_event_recorder(server, "datacache-node", options.node_id),
        pins=NodePins(open_pins(server), options.node_id),
        registry=registry,
        prewarms=open_node_prewarms(where, server, options.node_id, registry),
        data_caches=open_data_caches(where, server) if where else None,
        driver_namespace=server.access.namespace if server else "",
    )


def _build_image_mounts(options: argparse.Namespace, mounts: MountTable) -> ImageMounts:
    folder = Path(options.mount_dir or options.store / "mounts")
    loops = KernelLoopDevices(options.read_ahead or default_read_ahead(options.store))
    return ImageMounts(folder, mounts, loops, require_erofs)


def _build_image_work(
    options: argparse.Namespace, storage: NodeStorage, cluster: ClusterObjects, images: ImageMounts
) -> ImageWork:
    store, pool, wait_limiter = storage.store, storage.pool, storage.wait_limiter
    protected = ProtectedImages(images.list_in_use)
    events = FillEvents(cluster.recorder)
    runner = FillRunner(store, pool, options.fill_connections, storage.image_store)
    return ImageWork(
        pool=pool,
        protected=protected,
        events=events,
        fills=Fills(store, runner, wait_limiter, protected, options.fill_grace, events),
        verification=OriginVerification(store, pool, wait_limiter, options.fill_connections),
        uploads=Uploads(store, storage.image_store),
    )


def _build_mounting(
    options: argparse.Namespace,
    cluster: ClusterObjects,
    store: Store,
    mounts: MountTable,
    images: ImageMounts,
) -> Mounting:
    hierarchy = _detect_hierarchy(options.cgroup_root)
    throttle = Throttle(hierarchy, GroupRecords(options.store / "throttles"), options.require_throttle)
    performance = PerformanceLookup(cluster.registry)
    watched_volumes = WatchedVolumes()
    records = VolumeRecords(options.store / "volumes", watched_volumes)
    exposures = VolumeExposures(records, store, images, mounts, throttle, performance)
    return Mounting(throttle, performance, watched_volumes, exposures)


def _detect_hierarchy(root: Path) -> CgroupHierarchy | UnsupportedByNode:
    try:
        return detect_hierarchy(root)
    # Not fatal: without --require-throttle, volumes are mounted without limits.
    except UnsupportedByNode as error:
        return error


def _build_authorization(
    options: argparse.Namespace, cluster: ClusterObjects, storage: NodeStorage
) -> Authorization:
    store = storage.store
    proofs = ProofMemory(options.store / "proofs", store.load_key(), options.proof_ttl, options.offline_grace)
    resolver = _build_resolver(storage, proofs, refresh_moving=False)
    grants = None
    if cluster.data_caches:
        grants = DataCacheGrants(
            cluster.data_caches, cluster.driver_namespace, store, storage.image_store, resolver
        )
    return Authorization(proofs, resolver, grants)


def _build_resolver(storage: NodeStorage, proofs: ProofMemory, refresh_moving: bool) -> Resolver:
    return Resolver(
        storage.pool,
        proofs,
        storage.wait_limiter,
        refresh_moving=refresh_moving,
        manifests=storage.store,
    )


def _build_preparation(
    options: argparse.Namespace,
    cluster: ClusterObjects,
    work: ImageWork,
    resolver: Resolver,
    grants: DataCacheGrants | None,
    subject: PolicySubject,
) -> VolumePreparation:
    """Build the preparation of volumes, or of prewarmed caches: `subject` is who names their sources."""
    allow_list = AllowList(options.allow_inline_nas, options.allow_origins, subject)
    return VolumePreparation(resolver, cluster.pins, work.fills, work.verification, allow_list, grants)


def _build_prewarming(
    options: argparse.Namespace,
    cluster: ClusterObjects,
    storage: NodeStorage,
    work: ImageWork,
    images: ImageMounts,
    authorization: Authorization,
) -> PrewarmLoop | None:
    if cluster.prewarms is None:
        return None
    # A prewarm request fills what a moving source holds now, not what an earlier proof found.
    resolver = _build_resolver(storage, authorization.proofs, refresh_moving=True)
    preparation = _build_preparation(options, cluster, work, resolver, authorization.grants, CACHE_PREWARMS)
    prewarming = PrewarmLoop(cluster.prewarms, preparation, storage.store, images.check_node, work.uploads)
    # No pod mounts these images yet, so nothing else protects them from eviction.
    work.protected.add(prewarming.list_sealed)
    return prewarming
