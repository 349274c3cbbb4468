"""What version 0.1.0 wrote is read by today's code, value by value."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from controller_plugin.operator.certificates import Certificates
from controller_plugin.operator.openapi.nonces import FileNonceStore, SecretNonceStore
from controller_plugin.operator.webhook.trust import WebhookTrust
from csi.cluster.access import ClusterAccess
from csi.cluster.api_server import ApiServer
from csi.image_store.folder import FolderBackend
from csi.image_store.location import parse_image_store_url
from csi.image_store.store import ImageStore
from csi.images.layout.layout import build_layout
from csi.images.node_store.journal import Journal, read_journal_digest
from csi.images.node_store.records import ImageState
from csi.images.node_store.store import Store
from csi.images.progress import read_progress
from csi.manifest.manifest import Manifest
from csi.parameters.content_ref import Secrets
from csi.parameters.data_cache import DataCacheSpec
from csi.parameters.pvc import PvcReference
from csi.parameters.volume_parameters import parse_accepted_parameters
from csi.registry.datacaches import codec as data_cache_object
from csi.registry.datacaches.data_caches import DataCache, DataCacheState, Phase, SecretRef
from csi.registry.datacaches.directory import DirectoryDataCacheRegistry
from csi.registry.datacaches.kubernetes import KubernetesDataCacheRegistry
from csi.registry.pins import codec as cache_pin
from csi.registry.pins.pins import PinHolder
from csi.registry.prewarms.directory import DirectoryNodePrewarms, DirectoryPrewarmRequests
from csi.registry.prewarms.kubernetes import KubernetesNodePrewarms
from csi.registry.prewarms.prewarms import PrewarmedCache, PrewarmRequest
from csi.registry.prewarms.prewarms import PrewarmState as Readiness
from csi.registry.prewarms.requests import PrewarmProgress
from csi.registry.volumes import codec as cache_volume
from csi.registry.volumes.directory import DirectoryVolumeRegistry
from csi.registry.volumes.kubernetes import KubernetesVolumeRegistry
from csi.resolve.proof_memory import ProofMemory
from node_plugin.prewarm.resolved_caches import ResolvedCache
from node_plugin.prewarm.resolved_caches import read_resolved as read_answers
from node_plugin.throttle.records import GroupRecords, read_records
from node_plugin.volumes.pins import NodePins
from node_plugin.volumes.records import VolumeRecords, read_volumes
from tests.csi.registry.pins.fake_pins import FakePins
from tests.golden import values
from tests.golden.recorded_cluster import recorded_cluster
from tests.golden.values import DIGEST, KEY, NOW, OTHER_DIGEST, UID
from tests.golden.writers import DATA, JOURNAL_CHUNK, PLACES


def loaded(path: str) -> Any:
    """A golden file of JSON."""
    return json.loads((DATA / path).read_text())


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[str], Path]:
    """Copies a golden folder to where a test may write."""

    def copied(name: str) -> Path:
        return Path(shutil.copytree(DATA / name, tmp_path / name))

    return copied


@pytest.mark.parametrize("name", values.PARAMETERS)
def test_parameters_of_every_source(name: str) -> None:
    assert parse_accepted_parameters(loaded(f"contexts/{name}.json")) == values.PARAMETERS[name]


def test_the_context_of_a_claimed_volume() -> None:
    context = loaded("contexts/of-a-claim.json")
    assert PvcReference.from_context(context) == PvcReference(
        "team-a", "model", "11111111-2222-3333-4444-555555555555"
    )
    assert parse_accepted_parameters(context).spec == values.FULL_VOLUME.spec
    assert parse_accepted_parameters(context).performance == values.FULL_VOLUME.performance


@pytest.mark.parametrize(
    ("name", "expected"), [("manifest", values.MANIFEST), ("owned-manifest", values.OWNED_MANIFEST)]
)
def test_manifests(name: str, expected: Manifest) -> None:
    with (DATA / "manifests" / name).open("rb") as stream:
        assert Manifest.read(stream) == expected


def test_volumes_of_a_node(copy: Callable[[str], Path]) -> None:
    assert read_volumes(DATA / "node-volumes") == [values.NODE_VOLUMES[at] for at in (2, 1, 0, 3)]
    records = VolumeRecords(copy("node-volumes"))
    for volume in values.NODE_VOLUMES:
        assert records.get(volume.id) == volume


def test_the_pods_of_volumes_of_a_node() -> None:
    """The pod is no part of how a volume is shown, so equality says nothing of it."""
    pods = {
        path: shown.pod
        for volume in read_volumes(DATA / "node-volumes")
        for path, shown in volume.target_paths.items()
    }
    assert pods == {
        "/var/lib/kubelet/pods/a/mount": "uid-of-a",
        "/var/lib/kubelet/pods/b/mount": "",
        "/var/lib/kubelet/pods/c/mount": "uid-of-c",
        "/var/lib/kubelet/pods/d/mount": "",
    }


def test_a_volume_of_an_earlier_version_of_the_record(tmp_path: Path) -> None:
    """Records that were written before a field was added lack it."""
    whole = loaded("node-volumes/dc-persistent.json")
    for later in ("performance", "pin", "limit_class", "inline"):
        del whole[later]
    (tmp_path / "dc-persistent.json").write_text(json.dumps(whole))
    plain = replace(values.NODE_VOLUMES[0], performance=None, limit_class="none")
    assert read_volumes(tmp_path) == [plain]


def test_throttles(copy: Callable[[str], Path]) -> None:
    assert read_records(DATA / "throttles") == list(values.THROTTLES)
    records = GroupRecords(copy("throttles"))
    assert records.get("uid-of-b", "259:0") == values.THROTTLES[1]


def test_a_store_of_a_node(copy: Callable[[str], Path]) -> None:
    folder = copy("node-store")
    digest, layout = values.MANIFEST.digest, build_layout(values.MANIFEST)
    with Store(folder) as store:
        assert store.load_key() == KEY
        (image,) = store.list_images()
        assert image.digest == "542aa3f8e14f9ae014baf7bd47bcfb94b8a135ceec929ce5cb28e5679a583bff"
        assert image.state is ImageState.PARTIAL
        assert image.size == 36_864
        assert store.read_manifest(digest) == values.MANIFEST
        assert store.read_access(digest) == values.ACCESS
        assert read_journal_digest(image.paths.journal) == digest
        with Journal(image.paths.journal, layout, JOURNAL_CHUNK) as journal:
            assert journal.durable_bytes == 4096
            assert journal.copied_offsets == {4096, 8192}


def test_the_provenance_of_images(copy: Callable[[str], Path]) -> None:
    folder = copy("node-store")
    shutil.copytree(DATA / "manifests/image", folder / "images" / OTHER_DIGEST, dirs_exist_ok=True)
    with Store(folder) as store:
        assert store.get_provenance(OTHER_DIGEST) == (PLACES[2], PLACES[1], PLACES[0])
        store.get_paths(values.MANIFEST.digest).partial.rename(store.get_paths(values.MANIFEST.digest).image)
        assert store.get_provenance(values.MANIFEST.digest) == (), (
            "it was filled from two places, and nothing is known of either"
        )


@pytest.mark.parametrize("name", values.FILL_PROGRESS)
def test_the_progress_of_a_fill(name: str) -> None:
    kept = DATA / "node-store/images" / values.MANIFEST.digest / f"progress-{name}.json"
    assert read_progress(kept) == values.FILL_PROGRESS[name]


def test_what_prewarm_orders_turned_out_to_be() -> None:
    found = read_answers(DATA / "prewarms/prewarms.json")
    assert found == {key: ResolvedCache(*answer) for key, answer in values.PREWARM_ANSWERS.items()}
    assert loaded("prewarms/keys.json") == ["prewarm-uid-1-4-0", "prewarm-uid-1-4-1", "prewarm-uid-1-4-2"]


def test_proofs(copy: Callable[[str], Path]) -> None:
    memory = ProofMemory(copy("proofs"), KEY, 600, 3600, lambda: NOW + 599)
    assert memory.find_fresh(Secrets({"token": "hf_golden"}), values.RESOLUTION.spec) == values.RESOLUTION
    several = values.PARAMETERS["several"].spec
    assert memory.find_fresh(Secrets(), several) == replace(values.RESOLUTION, spec=several)
    assert memory.find_fresh(Secrets({"token": "another"}), values.RESOLUTION.spec) is None


def test_a_pin_that_a_node_keeps() -> None:
    pins = NodePins(FakePins(), "node-a")
    pins.restore(read_volumes(DATA / "node-volumes"))
    pin = pins.get_pin("csi-inline")
    assert pin is not None
    assert pin.namespace == "team-a"
    assert pin.digest == DIGEST
    assert pin.requested == replace(values.PIN.requested, preserve_ownership=False, source=replace(
        values.HUGGING_FACE, allow_patterns=(), ignore_patterns=()))  # fmt: skip
    assert pin.pinned.source == replace(values.PINNED_HUGGING_FACE, allow_patterns=(), ignore_patterns=())
    assert pins.encode_pin("csi-inline") == values.PIN_OBJECT


@pytest.mark.parametrize("volume", values.VOLUMES, ids=lambda volume: volume.id)
def test_volumes_of_a_folder(copy: Callable[[str], Path], volume: Any) -> None:
    assert DirectoryVolumeRegistry(copy("registry")).get(volume.id) == volume


FULL_DATA_CACHE = DataCache(
    name="edc-0123456789abcdef0123",
    uid=UID,
    generation=1,
    created_at=1_700_000_000.0,
    spec=values.HUB_CACHE,
    state=replace(values.AVAILABLE_STATE, last_matched_at=1_700_000_000.0),
    secret_ref=SecretRef("", "edc-0123456789abcdef0123"),
    title="llama",
    tags={"team": "a", "empty": ""},
    resource_group="rg-1",
    client_token="client-token",
    request_hash="5e" * 32,
    assigned_id="edc-0123456789abcdef0123",
)


def plain_data_cache(number: int, name: str, spec: DataCacheSpec, state: DataCacheState) -> DataCache:
    """One of a folder, of which nothing else was said."""
    uid = f"00000000-0000-0000-0000-00000000000{number}"
    return DataCache(name, uid, 1, 1_700_000_000.0, spec, state)


DATA_CACHES = (
    plain_data_cache(1, "edc-7ac1b8d7010bb6cd3a3e", values.NAS_CACHE, values.LOADING_STATE),
    plain_data_cache(2, "edc-90d5b0a26955772ebda6", values.OSS_CACHE, values.CREATING_STATE),
    plain_data_cache(3, "edc-c67f2fc391b678929fa4", values.S3_CACHE, values.FAILED_STATE),
    plain_data_cache(4, "edc-ca55ceea2bd0618bfde6", values.SNAPSHOT_CACHE, values.UPDATING_STATE),
    plain_data_cache(5, "edc-9002fa2529ae34cc5ca9", replace(values.NAS_CACHE, path="/failed"), values.UPDATE_FAILED_STATE),  # noqa: E501
)  # fmt: skip


def test_data_caches_of_a_folder(copy: Callable[[str], Path]) -> None:
    caches = DirectoryDataCacheRegistry(copy("registry"))
    assert caches.find() == [*DATA_CACHES, FULL_DATA_CACHE]
    assert caches.read_credential(FULL_DATA_CACHE) == {"token": "hf_golden"}
    assert caches.list_digests() == {DIGEST, OTHER_DIGEST}


def test_orders_of_a_folder(copy: Callable[[str], Path]) -> None:
    folder = copy("registry")
    orders = DirectoryNodePrewarms(folder, DirectoryVolumeRegistry(folder)).list_requests()
    name = "edc-7ac1b8d7010bb6cd3a3e"
    uid = f"00000000-0000-0000-0000-000000000001/{OTHER_DIGEST}"
    assert orders[0] == PrewarmRequest(
        "", name, uid, 1, (PrewarmedCache(data_cache=name, digest=OTHER_DIGEST),)
    )
    found = [
        DirectoryPrewarmRequests(folder).submit(replace(cache, state=values.LOADING_STATE))
        for cache in DATA_CACHES
    ]
    assert found == [
        PrewarmProgress(Readiness.PENDING, 0, "fills that pods wait for go first"),
        PrewarmProgress(Readiness.STORING, 99, "bringing it to the image store"),
        PrewarmProgress(Readiness.READY, 100, ""),
        PrewarmProgress(Readiness.FAILED, 10, "the origin refuses the credential"),
        PrewarmProgress(Readiness.FILLING, 42, ""),
    ]


def test_nonces_of_a_folder(copy: Callable[[str], Path]) -> None:
    nonces = FileNonceStore(copy("registry") / "nonces.json", 1800)
    assert [nonces.use(mark, NOW) for mark in ("a-mark", "an-old-mark", "a-new-mark")] == [False, False, True]


def test_a_data_cache_of_the_openapi(copy: Callable[[str], Path]) -> None:
    (cache,) = DirectoryDataCacheRegistry(copy("openapi")).find()
    assert cache.client_token == "token-1"
    assert cache.request_hash == "7036a48102d6edd91372070098cc0192d55f03e4e0e5bd4294b1addfbbdbf65d"
    assert cache.title == "llama"
    assert cache.spec == DataCacheSpec(
        "models",
        "/llama",
        "URL",
        {"repoSource": "HuggingFace/Model", "repoId": "org/model"},
        30,
        7,
        ("vsw-1", "sg-1"),
    )


def test_an_image_store(copy: Callable[[str], Path]) -> None:
    store = ImageStore(FolderBackend(parse_image_store_url(copy("image-store").as_uri())))
    (image,) = store.list_images()
    assert image == values.STORED_IMAGE
    assert store.find_by_snapshot_id("s-cac5b5ed579a5a23908e") == values.STORED_IMAGE
    assert [entry.path for entry in store.read_manifest(image.digest).entries] == [
        "config.json",
        "weights.bin",
    ]
    assert tuple(store.list_announcements()) == values.ANNOUNCEMENTS
    assert store.collect((), 0, NOW * 2) == [image.digest], "it was marked as unwanted"


@pytest.fixture
def server() -> Any:
    """Makes an API server that has the objects of a golden file."""
    with recorded_cluster() as cluster:

        def having(name: str) -> ApiServer:
            cluster.objects = loaded(f"cluster/{name}.json")["objects"]
            return ApiServer(ClusterAccess(cluster.url, namespace="datacache"))

        yield having


def applied(name: str) -> list[Any]:
    """The bodies that were written, in order."""
    return [write["body"] for write in loaded(f"cluster/{name}.json")["writes"]]


def test_volumes_of_a_cluster(server: Callable[[str], ApiServer]) -> None:
    registry = KubernetesVolumeRegistry(server("volumes"))
    assert registry.get(values.FULL_VOLUME.id) == values.FULL_VOLUME
    assert registry.get(values.PLAINLY_LIMITED_VOLUME.id) == values.PLAINLY_LIMITED_VOLUME
    assert [cache_volume.decode(thing) for thing in applied("volumes")[:3]] == list(values.VOLUMES)


def test_pins_of_a_cluster() -> None:
    pin = cache_pin.decode(loaded("pin/object.json"))
    assert pin == values.PIN
    assert pin.holders == {
        PinHolder("node", "node-a"): 1_699_999_000.0,
        PinHolder("volume", "dc-0123456789012345678901234567890123456789"): 1_699_999_100.0,
    }
    (kept,) = loaded("cluster/pins.json")["objects"].values()
    assert cache_pin.decode(kept) == values.PIN
    assert cache_pin.decode(kept).holders == {PinHolder("node", "node-a"): 1_700_000_000.0}


def test_data_caches_of_a_cluster(server: Callable[[str], ApiServer]) -> None:
    caches = KubernetesDataCacheRegistry(server("data-caches"), "datacache")
    found = caches.find(("edc-0123456789abcdef0123",))
    cache = next(one for one in found if one.client_token)
    assert cache == replace(
        FULL_DATA_CACHE,
        name="edc-02d5026fe5e556c58a44d43f7de83be62744af13",
        spec=replace(values.HUB_CACHE, refresh="again"),
        state=DataCacheState(
            Phase.UPDATE_FAILED, 0, 3, values.CONTENT, values.COMING, True, "no such repository",
            1_702_592_000.0, 1_700_000_000.0, values.AVAILABLE_STATE.events,
        ),
        secret_ref=SecretRef("datacache", "data-cache-e5176ded499f592099bb"),
    )  # fmt: skip
    assert caches.read_credential(cache) == {"token": "hf_golden"}
    assert caches.is_credential_in_scope(cache)
    referring = caches.get("edc-c993956740d4a8fab0e2b5449f986a2acd83a99d")
    assert referring is not None
    assert referring.secret_ref == SecretRef("team-a", "oss-key")
    assert referring.spec == values.OSS_CACHE


@pytest.mark.parametrize(("at", "name"), list(enumerate(values.STATES)))
def test_states_of_a_data_cache(at: int, name: str) -> None:
    status = applied("data-caches")[2 + at]["status"]
    (cache, *_) = (body for body in applied("data-caches") if body and "spec" in body)
    whole = {
        **cache,
        "metadata": {**cache["metadata"], "uid": UID, "creationTimestamp": "2023-11-14T22:13:20Z"},
        "status": status,
    }
    assert data_cache_object.decode(whole).state == values.STATES[name]


def test_digests_of_a_data_cache() -> None:
    found = loaded("cluster/data-caches.json")["objects"]
    path = "/apis/eci.aliyun.com/v1alpha1/datacaches/edc-02d5026fe5e556c58a44d43f7de83be62744af13"
    assert data_cache_object.list_digests(found[path]) == {DIGEST, OTHER_DIGEST}


def test_prewarms_of_a_cluster(server: Callable[[str], ApiServer]) -> None:
    found = server("prewarms")
    prewarms = KubernetesNodePrewarms(found, "node-a", KubernetesVolumeRegistry(found))
    assert prewarms.list_requests() == list(values.PREWARMS)
    prewarms.close()


def test_orders_of_a_cluster(server: Callable[[str], ApiServer]) -> None:
    found = server("orders")
    prewarms = KubernetesNodePrewarms(found, "node-a", KubernetesVolumeRegistry(found))
    hub, plain = prewarms.list_requests()
    prewarms.close()
    assert plain.caches == (PrewarmedCache(data_cache="edc-1", digest=OTHER_DIGEST),)
    assert plain.selector == {"kubernetes.io/hostname": "host-a"}
    assert hub.selector == {"disktype": "ssd"}


def test_nonces_of_a_cluster(server: Callable[[str], ApiServer]) -> None:
    nonces = SecretNonceStore(server("nonces"), "datacache-operator-nonces", 1800)
    assert [nonces.use(mark, NOW) for mark in ("a-mark", "another-mark", "a-new-mark")] == [
        False,
        False,
        True,
    ]


def test_the_certificates_of_the_webhook(server: Callable[[str], ApiServer]) -> None:
    trust = WebhookTrust(
        server("webhook"), ["datacache-operator"], "datacache-operator", "datacache-operator"
    )
    assert trust.read() == Certificates("authority", "authority's key", "certificate", "key")
