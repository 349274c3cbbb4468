"""What writes each format today, with fixed clocks, keys and ids: `FORMATS` by the name of its folder in
`data/`."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from controller_plugin.operator.certificates import Certificates
from controller_plugin.operator.openapi.actions import Actions
from controller_plugin.operator.openapi.deletions import Deletions
from controller_plugin.operator.openapi.nonces import FileNonceStore, MemoryNonceStore, SecretNonceStore
from controller_plugin.operator.openapi.parameters import ApiParameters
from controller_plugin.operator.regions.copying import ImageStoreRegions
from controller_plugin.operator.webhook.trust import WebhookTrust
from csi.cluster.access import ClusterAccess
from csi.cluster.api_server import ApiServer
from csi.cluster.lease import Lease
from csi.destinations.allow_list import DATA_CACHE_OBJECTS, AllowList
from csi.destinations.destinations import parse_destinations
from csi.image_store.client import ImageStoreClient, ImageStoreConfig
from csi.image_store.folder import FolderBackend
from csi.image_store.location import parse_image_store_url
from csi.image_store.store import ImageStore
from csi.images import progress as progress_file
from csi.images.layout.layout import build_layout
from csi.images.node_store.journal import Journal
from csi.images.node_store.records import ImagePaths
from csi.images.node_store.store import Store
from csi.linux.loop_devices import KernelLoopDevices
from csi.linux.mounts import KernelMountTable
from csi.manifest.manifest import Entry, EntryKind
from csi.parameters import origin_scope
from csi.parameters.access_modes import parse_access_mode
from csi.parameters.content_ref import Secrets
from csi.parameters.performance_keys import Performance
from csi.parameters.pinning import pin_name
from csi.registry.datacaches import codec as data_cache_object
from csi.registry.datacaches.data_caches import DataCacheRegistry, bucket_path_hash, data_cache_id_from_uid
from csi.registry.datacaches.directory import DirectoryDataCacheRegistry
from csi.registry.datacaches.kubernetes import KubernetesDataCacheRegistry
from csi.registry.events.kubernetes import KubernetesEventRecorder
from csi.registry.pins import codec as cache_pin
from csi.registry.pins.kubernetes import KubernetesPinRegistry
from csi.registry.pins.pins import PinHolder
from csi.registry.prewarms.directory import DirectoryNodePrewarms, DirectoryPrewarmRequests
from csi.registry.prewarms.kubernetes import KubernetesNodePrewarms
from csi.registry.prewarms.kubernetes_requests import KubernetesPrewarmRequests
from csi.registry.prewarms.status import patch_with_node
from csi.registry.volumes import codec as cache_volume
from csi.registry.volumes.directory import DirectoryVolumeRegistry
from csi.registry.volumes.fill_status import FillStatusWriter
from csi.registry.volumes.kubernetes import KubernetesVolumeRegistry
from csi.registry.volumes.record import volume_id_from_name
from csi.resolve.proof_memory import ProofMemory
from csi.topology import node_segments, volume_segments
from csi.worker.pool import WorkerPool
from datacache.__main__ import _print_and_exit
from node_plugin.prewarm.active_request import ActiveRequest
from node_plugin.prewarm.resolved_caches import ResolvedCache
from node_plugin.prewarm.resolved_caches import write_resolved as write_answers
from node_plugin.throttle.records import GroupRecords
from node_plugin.volumes.image_mounts import ImageMounts
from node_plugin.volumes.limits import compute_volume_limits, limit_class_name
from node_plugin.volumes.mount_request import MountRequest
from node_plugin.volumes.records import NodeVolume, VolumeRecords
from tests.golden import values
from tests.golden.recorded_cluster import RecordedCluster, recorded_cluster
from tests.golden.values import DIGEST, KEY, NOW, OTHER_DIGEST, UID

PLACES = ("6e" * 32, "7f" * 32, "80" * 32)
"""Names of places, as the provenance of an image has them."""
JOURNAL_CHUNK = 1 << 20
_FILES = {"config.json": b'{"golden": "config"}\n', "weights.bin": bytes(range(250)) * 40}


@contextmanager
def fixed() -> Iterator[None]:
    """One time, one uid."""
    with patch.object(time, "time", lambda: NOW), patch.object(uuid, "uuid4", lambda: uuid.UUID(UID)):
        yield


def put(path: Path, found: object) -> None:
    """Write a value for people to read in a diff."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def small_image(folder: Path) -> ImagePaths:
    """A sealed image of two files below `folder`, with its manifest."""
    entries = tuple(
        Entry(name, EntryKind.FILE, len(content), digest=f"sha256:{hashlib.sha256(content).hexdigest()}")
        for name, content in _FILES.items()
    )
    manifest = replace(values.MANIFEST, entries=entries)
    folder.mkdir(parents=True, exist_ok=True)
    paths, layout = ImagePaths(folder), build_layout(manifest)
    with paths.manifest.open("wb") as stream:
        manifest.write(stream)
    whole = bytearray(layout.size)
    whole[: len(layout.metadata)] = layout.metadata
    for extent in layout.extents:
        content = _FILES[extent.entry.path]
        whole[extent.offset : extent.offset + len(content)] = content
    paths.image.write_bytes(whole)
    return paths


def write_contexts(folder: Path) -> None:
    """Parameters of every source: volume contexts, `parameters` of objects, the access half of manifests."""
    for name, parameters in values.PARAMETERS.items():
        put(folder / f"{name}.json", parameters.to_context())
    put(folder / "of-a-claim.json", values.FULL_VOLUME.to_context())


def write_manifests(folder: Path) -> None:
    """Manifests, and the image that one of them lays out."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, manifest in (("manifest", values.MANIFEST), ("owned-manifest", values.OWNED_MANIFEST)):
        with (folder / name).open("wb") as stream:
            manifest.write(stream)
    image = small_image(folder / "image")
    put(folder / "digests.json", {
        "manifest": values.MANIFEST.digest,
        "owned manifest": values.OWNED_MANIFEST.digest,
        "laid out metadata of manifest": hashlib.sha256(build_layout(values.MANIFEST).metadata).hexdigest(),
        "image": hashlib.sha256(image.image.read_bytes()).hexdigest(),
    })  # fmt: skip


def write_node_volumes(folder: Path) -> None:
    """A record each for the volumes of a node."""
    records = VolumeRecords(folder)
    for volume in values.NODE_VOLUMES:
        records.put(volume)


def write_throttles(folder: Path) -> None:
    """A record each for the groups of claims, with what is left of their bursts."""
    records = GroupRecords(folder)
    for record in values.THROTTLES:
        records.put(record)


def write_node_store(folder: Path) -> None:
    """A store with a partial image, its journal and provenance, and a sealed one that was compared."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "key").write_bytes(KEY)
    with Store(folder) as store:
        temp = folder / "tmp" / "manifest.tmp"
        with temp.open("wb") as stream:
            values.MANIFEST.write(stream)
        digest, layout = values.MANIFEST.digest, build_layout(values.MANIFEST)
        paths = store.adopt_manifest(digest, temp, layout.size).paths
        paths.partial.touch()
        for place in PLACES[:2]:
            store.mark_filling_from(digest, place)
        with Journal(paths.journal, layout, JOURNAL_CHUNK) as journal:
            journal.append(4096)
            journal.append_copied([8192, 4096])
        sealed = small_image(folder / "images" / OTHER_DIGEST)
        store.mark_filling_from(OTHER_DIGEST, PLACES[0])
        for place in PLACES[1:]:
            store.mark_verified(OTHER_DIGEST, place)
        sealed.manifest.unlink()
        sealed.image.unlink()
    write_progress(folder / "images" / digest)


def write_progress(folder: Path) -> None:
    """How far fills are."""
    for name, progress in values.FILL_PROGRESS.items():
        progress_file.write_progress(folder / f"progress-{name}.json", progress)


def write_places(folder: Path) -> None:
    """The places of every source, plain and with a credential that opens a part."""
    found = {
        name: origin_scope.compute_origin_scope(parameters.to_context(), KEY, values.SECRETS)
        for name, parameters in values.PARAMETERS.items()
    }
    put(folder / "places.json", found)


def write_prewarms(folder: Path) -> None:
    """What orders turned out to be."""
    folder.mkdir(parents=True, exist_ok=True)
    answers = {key: ResolvedCache(*answer) for key, answer in values.PREWARM_ANSWERS.items()}
    write_answers(folder / "prewarms.json", answers)
    put(folder / "keys.json", ActiveRequest(values.PREWARMS[0]).keys)


def write_proofs(folder: Path) -> None:
    """What was proven, under keyed hashes."""
    memory = ProofMemory(folder, KEY, 600, 3600, lambda: NOW)
    memory.remember(Secrets(values.SECRETS), values.RESOLUTION.spec, values.RESOLUTION)
    memory.remember(
        Secrets(),
        values.PARAMETERS["several"].spec,
        replace(values.RESOLUTION, spec=values.PARAMETERS["several"].spec),
    )


def write_registry(folder: Path) -> None:
    """A registry that is a folder: volumes, DataCaches in every phase, orders, nonces."""
    volumes = DirectoryVolumeRegistry(folder)
    for record in values.VOLUMES:
        volumes.put(record)
    caches = DirectoryDataCacheRegistry(folder)
    full = caches.add(values.HUB_DATA_CACHE, values.SECRETS)
    caches.write_match_time(full, NOW)
    caches.write_state(full, values.AVAILABLE_STATE)
    specs = {"loading": values.NAS_CACHE, "creating": values.OSS_CACHE, "failed": values.S3_CACHE,
             "updating": values.SNAPSHOT_CACHE, "update-failed": replace(values.NAS_CACHE, path="/failed")}  # fmt: skip  # noqa: E501
    for number, (state, spec) in enumerate(specs.items()):
        with patch.object(uuid, "uuid4", lambda number=number: uuid.UUID(int=number + 1)):
            made = caches.add(replace(values.NAS_DATA_CACHE, spec=spec), {})
        caches.write_state(made, values.STATES[state])
        DirectoryPrewarmRequests(folder).submit(replace(made, state=values.LOADING_STATE))
    orders = DirectoryNodePrewarms(folder, volumes)
    for order, state in zip(orders.list_requests(), values.NODE_STATES.values(), strict=True):
        orders.report_state(order, state)
    nonces = FileNonceStore(folder / "nonces.json", 1800)
    nonces.use("an-old-mark", NOW - 60)
    nonces.use("a-mark", NOW)


def write_openapi(folder: Path) -> None:
    """DataCaches that the OpenAPI has made, with the hash of what was asked for."""
    caches = DirectoryDataCacheRegistry(folder)
    allowed = AllowList(["nas.example:/m"], parse_destinations(""), DATA_CACHE_OBJECTS)
    stored = ImageStoreClient(WorkerPool({}), ImageStoreConfig())
    actions = Actions(
        caches,
        allowed,
        ImageStoreRegions(caches, stored, {}, "cn-local"),
        "cn-local",
        Deletions(MemoryNonceStore(60)),
    )
    asked = {
        "Path": "/llama", "Bucket": "models", "ClientToken": "token-1", "Name": "llama", "Size": "30", "RetentionDays": "7",  # noqa: E501
        "ResourceGroupId": "rg-1", "Tag.1.Key": "team", "Tag.1.Value": "a", "VSwitchId": "vsw-1", "SecurityGroupId": "sg-1",  # noqa: E501
        "DataSource.Type": "URL", "DataSource.Options.repoSource": "HuggingFace/Model", "DataSource.Options.repoId": "org/model",  # noqa: E501
        "DataSource.Options.token": "hf_golden",
    }  # fmt: skip
    actions.call("CreateDataCache", ApiParameters(asked), "request-1")


def write_image_store(folder: Path) -> None:
    """An image store: a whole image, parts of an upload, a mark, announcements."""
    folder.mkdir(parents=True, exist_ok=True)
    backend = FolderBackend(parse_image_store_url(folder.as_uri()))
    store = ImageStore(backend, part_bytes=4096)
    store.add(small_image(folder / "small"), access={**values.ACCESS, "repoId": "org/copy"})
    store.collect((), 3600, NOW)
    for announcement in values.ANNOUNCEMENTS:
        store.announce(announcement)
    for path in (folder / "small").iterdir():
        path.unlink()
    (folder / "small").rmdir()


def _performances() -> Mapping[str, tuple[Performance, int]]:
    gib = 2**30
    return {
        "PL1 of 20 GiB": (Performance("PL1"), 20 * gib),
        "PL3 of 20 GiB, lowered": (Performance("PL3"), 20 * gib),
        "AutoPL": (Performance("AutoPL"), 40 * gib),
        "provisioned": (Performance("AutoPL", 1000), 100 * gib),
        "bursting": (Performance("AutoPL", 1000, True), 100 * gib),
        "reads alone": (Performance(read_iops=100), gib),
        "bandwidth alone": (Performance(read_bandwidth=1_048_576), gib),
        "burst credit": (Performance(read_iops=100, burst_iops=4000, burst_credit=600_000), gib),
        "none": (Performance(), gib),
    }


def _volume(performance: Performance, capacity: int, inline: bool) -> NodeVolume:
    return NodeVolume("dc-1", DIGEST, {}, capacity, 1, inline, performance=performance.to_context())


def _limit_class(volume: NodeVolume) -> str:
    return limit_class_name(volume, compute_volume_limits(volume))


def write_names(folder: Path) -> None:
    """Names that are computed: hashes, labels, keys."""
    classes = {name: _limit_class(_volume(*given, True)) for name, given in _performances().items()}
    volume, cache = values.FULL_VOLUME, values.HUB_CACHE
    made = replace(values.NAS_DATA_CACHE, name="edc-1", uid=UID)
    put(folder / "names.json", {
        "limit classes of inline volumes": classes,
        "limit class of a volume": _limit_class(_volume(Performance("PL1"), 20 * 2**30, False)),
        "volume id": volume_id_from_name(values.VOLUME_NAME),
        "object of a volume id": {one: cache_volume.object_name(one) for one in ("dc-1", "By_Hand", "odd/id", "hashed-1")},  # noqa: E501
        "label of a volume id": cache_volume.label_value(volume.id),
        "pins": {name: pin_name(parameters.spec) for name, parameters in values.PARAMETERS.items()},
        "place of a bucket and path": bucket_path_hash(cache.bucket, cache.path),
        "DataCacheId": data_cache_id_from_uid(UID),
        "snapshot id": values.CONTENT.snapshot_id,
        "labels of a DataCache": data_cache_object.build_labels(made),
        "topology of nodes": node_segments("datacache.csi.io", True),
        "topology of volumes": volume_segments("datacache.csi.io"),
        "access modes": {str(number): _mode(number) for number in range(1, 8)},
        "marker of a staging path": _marker(),
    })  # fmt: skip


def _mode(number: int) -> str:
    """How the record of a volume names an access mode of CSI."""
    return MountRequest("volume", Path("/target"), parse_access_mode(number), {}).exposure.mode


class _Marks(KernelMountTable):
    """Mounts nothing, and keeps what markers are called."""

    def __init__(self) -> None:
        self.labels: list[str] = []

    def mount_marker(self, label: str, target: Path) -> None:
        self.labels.append(label)


def _marker() -> str:
    """The source of the mount that marks a staging path."""
    marks = _Marks()
    images = ImageMounts(Path("/"), marks, KernelLoopDevices(0), lambda: None)
    images.mount_marker(Path("/var/lib/datacache/mounts", DIGEST, "none"), Path("/staged"))
    return marks.labels[0]


@contextmanager
def _recording(
    folder: Path, name: str, objects: Mapping[str, Any] | None = None
) -> Iterator[tuple[RecordedCluster, ApiServer]]:
    with recorded_cluster(objects) as cluster:
        yield cluster, ApiServer(ClusterAccess(cluster.url, namespace="datacache"))
        put(folder / f"{name}.json", {"writes": cluster.writes, "objects": cluster.objects})


def write_cluster(folder: Path) -> None:
    """What is written to an API server, and the objects that this makes."""
    with _recording(folder, "volumes") as (cluster, server):
        registry = KubernetesVolumeRegistry(server)
        for record in values.VOLUMES:
            registry.add(record)
        for path, thing in list(cluster.objects.items()):
            registry._update_status(path.rpartition("/")[2], thing)
        FillStatusWriter(server, "node-a").write(values.FULL_VOLUME.id, 42)
        registry.delete(values.PLAIN_VOLUME.id)
    with _recording(folder, "pins") as (cluster, server):
        pins = KubernetesPinRegistry(server)
        pins.add_holder(values.PIN, PinHolder("node", "node-a"))
        pins.add_holder(values.PIN, PinHolder("volume", values.FULL_VOLUME.id))
        for thing in list(cluster.objects.values()):
            pins._update_status("", thing)
        pins.remove_holder("team-a", values.PIN.name, PinHolder("volume", values.FULL_VOLUME.id))
    with _recording(folder, "data-caches") as (cluster, server):
        _write_data_caches(KubernetesDataCacheRegistry(server, "datacache"))
    with _recording(folder, "orders", {"/api/v1/nodes/node-a": _NODE}) as (cluster, server):
        orders = KubernetesPrewarmRequests(server, "datacache", "datacache.csi.io")
        orders.submit(replace(values.NAS_DATA_CACHE, name="edc-1", uid=UID, state=values.LOADING_STATE))
        orders.submit(replace(values.HUB_DATA_CACHE, name="edc-2", uid="uid-2", state=values.UPDATING_STATE))
    _write_prewarm_status(folder)
    _write_rest(folder)


_NODE = {
    "metadata": {"name": "node-a", "labels": {"kubernetes.io/hostname": "host-a"}},
    "status": {"conditions": [{"type": "Ready", "status": "True"}]},
}


def _write_data_caches(caches: DataCacheRegistry) -> None:
    full = caches.add(values.HUB_DATA_CACHE, values.SECRETS)
    for state in values.STATES.values():
        caches.write_state(full, state)
    caches.write_match_time(full, NOW)
    caches.change(full, lambda cache: replace(cache, spec=replace(cache.spec, refresh="again")))
    plain = caches.add(values.NAS_DATA_CACHE, {})
    caches.add(values.REFERRING_DATA_CACHE, {})
    caches.delete(plain)


def _prewarm_objects() -> dict[str, Any]:
    return {
        f"/apis/datacache.csi.io/v1alpha1/namespaces/{name}/cacheprewarms/{thing['metadata']['name']}": thing
        for thing in json.loads((DATA / "cluster-input" / "prewarms.json").read_text())
        for name in (thing["metadata"]["namespace"],)
    }


def _write_prewarm_status(folder: Path) -> None:
    with _recording(folder, "prewarms", _prewarm_objects()) as (_, server):
        prewarms = KubernetesNodePrewarms(server, "node-a", KubernetesVolumeRegistry(server))
        for order in prewarms.list_requests():
            for state in values.NODE_STATES.values():
                prewarms._write_status(order, state)
            prewarms._write_status(order, None)
        prewarms.close()
    order = values.PREWARMS[0]
    found: dict[str, Any] = {}
    for name, state in zip("abcde", values.NODE_STATES.values(), strict=True):
        found = patch_with_node(order, found, f"node-{name}", state, NOW) or found
    put(folder / "prewarm-status.json", found)


def _write_rest(folder: Path) -> None:
    with _recording(folder, "nonces") as (_, server):
        nonces = SecretNonceStore(server, "datacache-operator-nonces", 1800)
        nonces.use("a-mark", NOW - 60)
        nonces.use("another-mark", NOW)
    with _recording(folder, "leases") as (_, server):
        lease = Lease(server, "a-lease", "pod-1")
        lease.acquire_or_renew()
        lease.acquire_or_renew()
        lease.release()
    with _recording(folder, "events") as (cluster, server):
        announcer = KubernetesEventRecorder(server, "datacache-node", "node-a")
        for subject in values.SUBJECTS:
            for _ in range(2):
                announcer._write_event(
                    subject,
                    "FillFailed",
                    {"message": "no route", "type": "Warning", "lastTimestamp": "2023-11-14T22:13:20Z"},
                )
    hook = {
        "metadata": {"name": "datacache-operator", "resourceVersion": "7"},
        "webhooks": [{"name": "a", "clientConfig": {}}],
    }
    hooks = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/datacache-operator"
    with _recording(folder, "webhook", {hooks: hook}) as (_, server):
        trust = WebhookTrust(server, ["datacache-operator"], "datacache-operator", "datacache-operator")
        trust._publish_ca_bundle("mutatingwebhookconfigurations", "authority")
        trust._write_secret(None, Certificates("authority", "authority's key", "certificate", "key"))


def write_command(folder: Path) -> None:
    """What the command prints for programs."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "doctor.json").open("w") as stream, redirect_stdout(stream), suppress(SystemExit):
        _print_and_exit(values.FINDINGS, "json")
    put(folder / "image-store.json", [held.to_json() for held in values.HELD])


def write_pin_objects(folder: Path) -> None:
    """A pin's object, its status, and what a node keeps of it."""
    put(folder / "object.json", cache_pin.encode(values.PIN))
    put(folder / "status.json", cache_pin.build_status(values.PIN))


DATA = Path(__file__).parent / "data"
FORMATS: Mapping[str, Callable[[Path], None]] = {
    "contexts": write_contexts,
    "manifests": write_manifests,
    "node-volumes": write_node_volumes,
    "throttles": write_throttles,
    "node-store": write_node_store,
    "places": write_places,
    "prewarms": write_prewarms,
    "proofs": write_proofs,
    "registry": write_registry,
    "openapi": write_openapi,
    "image-store": write_image_store,
    "names": write_names,
    "cluster": write_cluster,
    "command": write_command,
    "pin": write_pin_objects,
}
