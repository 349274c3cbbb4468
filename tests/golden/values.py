"""What the golden files hold: one value for each shape of a format, as today's code names it."""

from __future__ import annotations

from csi.image_store.announcements import Announcement
from csi.image_store.stored_image import StoredImage
from csi.images.progress import FillProgress
from csi.linux.cgroups.hierarchy import ReadCount
from csi.manifest.manifest import Entry, EntryKind, Manifest
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.data_cache import DataCacheSpec
from csi.parameters.dialects.buckets import BucketSpec
from csi.parameters.dialects.composite import CompositeSpec
from csi.parameters.dialects.hub import HubSpec
from csi.parameters.dialects.nas import NasSpec
from csi.parameters.dialects.urls import UrlFile, UrlSpec
from csi.parameters.performance_keys import Performance
from csi.parameters.pvc import PvcReference
from csi.parameters.volume_parameters import VolumeParameters
from csi.performance.limits import Limits, Rate
from csi.registry.datacaches.data_caches import (
    DataCache,
    DataCacheContent,
    DataCacheEvent,
    DataCacheState,
    Phase,
    SecretRef,
)
from csi.registry.events.recorder import ObjectReference
from csi.registry.pins.pins import CachePin, PinHolder
from csi.registry.prewarms.prewarms import NodePrewarmState, PrewarmedCache, PrewarmRequest, PrewarmState
from csi.registry.volumes.record import VolumeRecord
from csi.worker.results import Resolution
from datacache.findings import Finding, Verdict
from datacache.image_store import ListedImage
from datacache.image_store import StoredState as StoredState
from node_plugin.throttle.burst import BurstState
from node_plugin.throttle.meter import BurstMeter
from node_plugin.throttle.records import GroupRecord, RecordedMember
from node_plugin.volumes.records import Exposure, NodeVolume

NOW = 1_700_000_000.25
"""The time at which everything is written."""
KEY = bytes(range(32))
"""The key of keyed hashes."""
UID = "0f0e0d0c-0b0a-4908-8706-050403020100"
"""The uid of whatever is made."""
COMMIT = "c0ffee" * 6 + "c0ff"
DIGEST, OTHER_DIGEST = "ab" * 32, "cd" * 32

HUGGING_FACE = HubSpec("HuggingFace/Model", "org/model", "main", ("*.safetensors", "*.json"), ("*.bin",))
PINNED_HUGGING_FACE = HubSpec(
    "HuggingFace/Model", "org/model", COMMIT, ("*.safetensors", "*.json"), ("*.bin",)
)
MODEL_SCOPE = HubSpec("ModelScope/DataSet", "org/data", "master")
NAS_3 = NasSpec("nas.example", "/export/models", "3", 2049, 635, 1.5, 5, 1000, 100)
NAS_4 = NasSpec("10.0.0.7", "/models", "4.0")
OSS = BucketSpec(
    "OSS",
    "https://oss-cn-hangzhou-internal.aliyuncs.com",
    "models",
    "llama/7b",
    "cn-hangzhou",
    ram_role="reader",
)
S3 = BucketSpec("S3", "http://minio.example:9000", "models", "", "eu-central-1", path_style=True)
URLS = UrlSpec(
    (
        UrlFile("https://files.example/a/weights.bin", "12" * 32),
        UrlFile("https://files.example/b%20c.txt", "", "docs/read me.txt"),
    )
)
PLAIN_URL = UrlSpec((UrlFile("http://files.example:8080/one.bin"),))
METALINK = UrlSpec(metalink="https://files.example/all.meta4")
SEVERAL = CompositeSpec(
    (("base", PINNED_HUGGING_FACE), ("extra", NAS_4), ("weights", S3)),
    (("base", 104_857_600), ("extra", 1_000_000)),
)
PARAMETERS = {
    "hugging-face": VolumeParameters(
        CacheSpec(HUGGING_FACE, True, "fast-net", 524_288_000, True),
        Performance("AutoPL", 5000, True),
        True,
        DIGEST,
        21_474_836_480,
        10_737_418_240,
    ),
    "hugging-face-pinned": VolumeParameters(CacheSpec(PINNED_HUGGING_FACE), Performance()),
    "model-scope": VolumeParameters(CacheSpec(MODEL_SCOPE), Performance("PL2")),
    "nas-3": VolumeParameters(
        CacheSpec(NAS_3, True), Performance(read_iops=2000, read_bandwidth=104_857_600)
    ),
    "nas-4": VolumeParameters(
        CacheSpec(NAS_4), Performance(read_iops=100, burst_iops=4000, burst_credit=600_000)
    ),
    "oss": VolumeParameters(CacheSpec(OSS), Performance("AutoPL", bursting=False)),
    "s3": VolumeParameters(CacheSpec(S3), Performance()),
    "urls": VolumeParameters(CacheSpec(URLS), Performance()),
    "url": VolumeParameters(CacheSpec(PLAIN_URL), Performance()),
    "metalink": VolumeParameters(CacheSpec(METALINK), Performance()),
    "several": VolumeParameters(CacheSpec(SEVERAL, bandwidth_limit=1_048_576), Performance()),
}

CLAIM = PvcReference("team-a", "model", "11111111-2222-3333-4444-555555555555")
VOLUME_NAME = "pvc-11111111-2222-3333-4444-555555555555"
FULL_VOLUME = VolumeRecord(
    id="dc-0123456789012345678901234567890123456789",
    name=VOLUME_NAME,
    requested_spec=CacheSpec(HUGGING_FACE, True, "fast-net", 524_288_000, True),
    spec=CacheSpec(PINNED_HUGGING_FACE, True, "fast-net", 524_288_000, True),
    digest=DIGEST,
    capacity_bytes=21_474_836_480,
    content_bytes=15_000_000_001,
    downgrade_writers=True,
    cloned_from="dc-original",
    created_at=1_699_999_999.125,
    performance=Performance("AutoPL", 5000, True),
    pvc=CLAIM,
    pin_namespace="team-a",
)
PLAIN_VOLUME = VolumeRecord(
    id="dc-plain",
    name="plain",
    requested_spec=CacheSpec(NAS_4),
    spec=CacheSpec(NAS_4),
    digest=OTHER_DIGEST,
    capacity_bytes=1_073_741_824,
    content_bytes=0,
)
PLAINLY_LIMITED_VOLUME = VolumeRecord(
    id="By_Hand",
    name="by-hand",
    requested_spec=CacheSpec(SEVERAL),
    spec=CacheSpec(SEVERAL),
    digest=OTHER_DIGEST,
    capacity_bytes=2_147_483_648,
    content_bytes=77,
    created_at=1_600_000_000.0,
    performance=Performance(read_iops=100, read_bandwidth=1_048_576, burst_iops=4000, burst_credit=600_000),
    pvc=PvcReference("team-b", "data"),
)
VOLUMES = (FULL_VOLUME, PLAIN_VOLUME, PLAINLY_LIMITED_VOLUME)

PIN = CachePin(
    "team-a",
    CacheSpec(HUGGING_FACE, True),
    CacheSpec(PINNED_HUGGING_FACE, True),
    DIGEST,
    {PinHolder("node", "node-a"): 1_699_999_000.0, PinHolder("volume", FULL_VOLUME.id): 1_699_999_100.0},
)
PIN_OBJECT = {
    "namespace": "team-a",
    "digest": DIGEST,
    "asked": {"type": "URL", "repoSource": "HuggingFace/Model", "repoId": "org/model", "revision": "main"},
    "pinned": {"type": "URL", "repoSource": "HuggingFace/Model", "repoId": "org/model", "revision": COMMIT},
}
"""What a node keeps of a pin."""

NODE_VOLUMES = (
    NodeVolume(
        id="dc-persistent",
        digest=DIGEST,
        context={"type": "NAS", "server": "10.0.0.7", "path": "/models", "vers": "4.0"},
        capacity_bytes=21_474_836_480,
        content_bytes=15_000_000_001,
        staging_paths={"/var/lib/kubelet/globalmount": Exposure("MULTI_NODE_READER_ONLY")},
        target_paths={
            "/var/lib/kubelet/pods/a/mount": Exposure(
                "MULTI_NODE_READER_ONLY", False, ("ro", "noatime"), "uid-of-a"
            ),
            "/var/lib/kubelet/pods/b/mount": Exposure("SINGLE_NODE_WRITER", True),
        },
        limit_class="volume-0123456789abcdef",
        performance={"performanceLevel": "PL1"},
    ),
    NodeVolume(
        id="csi-inline",
        digest=OTHER_DIGEST,
        context={"repoId": "org/model", "readIops": "100"},
        capacity_bytes=1_073_741_824,
        content_bytes=5,
        is_inline=True,
        target_paths={
            "/var/lib/kubelet/pods/c/mount": Exposure("MULTI_NODE_READER_ONLY", True, (), "uid-of-c")
        },
        limit_class="limits-0123456789abcdef",
        pin=PIN_OBJECT,
    ),
    NodeVolume(
        id="csi-data-cache",
        digest=OTHER_DIGEST,
        context={"cacheBucket": "default", "cachePath": "/models/llama"},
        capacity_bytes=21_474_836_480,
        content_bytes=5,
        is_inline=True,
        target_paths={"/var/lib/kubelet/pods/d/mount": Exposure("MULTI_NODE_READER_ONLY")},
        performance={},
    ),
    NodeVolume(
        id="odd/id of a static PV",
        digest=OTHER_DIGEST,
        context={},
        capacity_bytes=0,
        content_bytes=0,
        staging_paths={"/staged": Exposure("MULTI_NODE_READER_ONLY")},
    ),
)

NO_LIMIT = Limits(Rate())
FIXED = Limits(Rate(1800, 100_000_000))
CREDITED = Limits(Rate(100, 1_638_400), Rate(4000, 65_536_000), 600_000)
METERED = Limits(
    Rate(6800, 173_015_040), Rate(25_000, 367_001_600), None, ("provisionedIops 9000 lowered to 5000",)
)
THROTTLES = (
    GroupRecord(
        pod="11111111-2222-3333-4444-555555555555",
        device="7:3",
        members={
            "/pods/a/mount": RecordedMember("dc-persistent", CREDITED),
            "/pods/a/other": RecordedMember("csi-inline", METERED),
        },
        burst=BurstState(599_123.5, True, BurstMeter(12.25, ReadCount(40, 655_360), 1.5, 26.5)),
        counts={"kubepods/pod1": ReadCount(1000, 16_384_000), "kubepods/pod1/c1": ReadCount(1, 4096)},
        counted_at=1234.5,
        boot="b0071d",
    ),
    GroupRecord("uid-of-b", "259:0", {"/pods/b/mount": RecordedMember("dc-persistent", FIXED)}),
    GroupRecord(
        "uid-of-c",
        "7:4",
        {"/pods/c/mount": RecordedMember("dc-persistent", NO_LIMIT)},
        BurstState(None, True),
    ),
)

PREWARM_ANSWERS = {
    "prewarm-uid-1-4-0": (DIGEST, dict(PIN_OBJECT["pinned"]), PIN_OBJECT),
    "prewarm-uid-1-4-1": (OTHER_DIGEST, {"type": "NAS", "server": "10.0.0.7", "path": "/models"}, None),
}
"""By their keys: digest, pinned spec as parameters, and what is kept of the pin."""

FILL_PROGRESS = {
    "begun": FillProgress(0, 15_000_000_001),
    "at-work": FillProgress(
        5_000_000_000, 15_000_000_001, 4_000_000_000, 104_857_600.5, 95.25, 1_000_000_000
    ),
}

ENTRIES = (
    Entry("config.json", EntryKind.FILE, 21, 0o444, 1_600_000_000_000_000_001, 0, 0, "git:" + "1a" * 20),
    Entry("docs", EntryKind.DIRECTORY, mode=0o555),
    Entry("docs/latest", EntryKind.SYMLINK, mode=0o777, target="../config.json"),
    Entry(
        "docs/läse mich.txt", EntryKind.FILE, 4097, 0o555, 315_532_800_000_000_000, 0, 0, 'token:url ["a"]'
    ),
    Entry("empty", EntryKind.FILE),
    Entry(
        "weights.bin",
        EntryKind.FILE,
        12_345,
        0o444,
        1_600_000_000_000_000_000,
        0,
        0,
        "claimed:" + "2b" * 32 + " x",
    ),
    Entry("z.bin", EntryKind.FILE, 4096, digest="sha256:" + "3c" * 32),
)
ACCESS = {"type": "URL", "repoSource": "HuggingFace/Model", "repoId": "org/model", "revision": COMMIT}
MANIFEST = Manifest(ENTRIES, ACCESS)
OWNED_MANIFEST = Manifest(
    (Entry("a", EntryKind.FILE, 3, 0o640, 5, 1000, 100, "sha256:" + "4d" * 32),),
    {"type": "NAS", "server": "10.0.0.7", "path": "/models", "vers": "4.0", "preserveOwnership": "true"},
)

RESOLUTION = Resolution(CacheSpec(PINNED_HUGGING_FACE), DIGEST, 15_000_000_001, 15_000_100_864, 12, 3)
SECRETS = {"token": "hf_golden"}

HUB_CACHE = DataCacheSpec(
    bucket="models",
    path="/llama/7b",
    type="URL",
    options={"repoSource": "HuggingFace/Model", "repoId": "org/model", "revision": "main"},
    size_gib=100,
    retention_days=30,
    networks=("vsw-fast", "sg-fast"),
    namespaces=("team-a", "team-b"),
    node_selector={"disktype": "ssd"},
    refresh="2024-01-01",
)
NAS_CACHE = DataCacheSpec(
    "default", "/plain", "NAS", {"server": "10.0.0.7", "path": "/models", "vers": "4.0"}
)
OSS_CACHE = DataCacheSpec(
    "default", "/oss", "OSS", {"bucket": "models", "path": "/", "url": "oss-cn-hangzhou.aliyuncs.com"}
)
S3_CACHE = DataCacheSpec(
    "default",
    "/s3",
    "S3",
    {"bucket": "models", "path": "/", "endpoint": "http://minio.example:9000"},
    networks=("", "sg-1"),
)
SNAPSHOT_CACHE = DataCacheSpec("default", "/snapshot", "SNAPSHOT", {"snapshotId": "s-0123456789abcdef0123"})

CONTENT = DataCacheContent(
    DIGEST, {"type": "NAS", "server": "10.0.0.7", "path": "/models"}, 15_000_100_864, 15_000_000_001
)
COMING = DataCacheContent(OTHER_DIGEST, {"type": "NAS", "server": "10.0.0.7", "path": "/models"}, 8192, 5)
LOADING_STATE = DataCacheState(percent=12, generation=1, next_content=COMING, message="filling on node-a")
CREATING_STATE = DataCacheState(Phase.CREATING, 99, 1, None, COMING)
AVAILABLE_STATE = DataCacheState(
    Phase.AVAILABLE,
    100,
    2,
    CONTENT,
    None,
    True,
    "",
    expires_at=1_702_592_000.0,
    events=(
        DataCacheEvent("Normal", "SuccessfulCreate", "made", 1, 1_699_999_000.0, 1_699_999_000.0),
        DataCacheEvent("Warning", "Failed", "no route", 3, 1_699_990_000.0, 1_699_999_500.0),
    ),
)
FAILED_STATE = DataCacheState(Phase.FAILED, 0, 1, message="the origin refuses the credential")
UPDATING_STATE = DataCacheState(Phase.UPDATING, 50, 3, CONTENT, COMING, True)
UPDATE_FAILED_STATE = DataCacheState(Phase.UPDATE_FAILED, 0, 3, CONTENT, None, False, "no such repository")
STATES = {
    "loading": LOADING_STATE,
    "creating": CREATING_STATE,
    "available": AVAILABLE_STATE,
    "failed": FAILED_STATE,
    "updating": UPDATING_STATE,
    "update-failed": UPDATE_FAILED_STATE,
}

HUB_DATA_CACHE = DataCache(
    name="",
    uid="",
    generation=0,
    created_at=0.0,
    spec=HUB_CACHE,
    title="llama",
    tags={"team": "a", "empty": ""},
    resource_group="rg-1",
    client_token="client-token",
    request_hash="5e" * 32,
    assigned_id="edc-0123456789abcdef0123",
)
NAS_DATA_CACHE = DataCache("", "", 0, 0.0, NAS_CACHE)
REFERRING_DATA_CACHE = DataCache("", "", 0, 0.0, OSS_CACHE, secret_ref=SecretRef("team-a", "oss-key"))

PREWARMS = (
    PrewarmRequest(
        "team-a",
        "everything",
        "uid-1",
        4,
        (
            PrewarmedCache({"repoId": "org/model", "revision": "main"}, secret_name="hub-token"),
            PrewarmedCache(pvc_name="model"),
            PrewarmedCache(data_cache="edc-1", digest=DIGEST),
        ),
        {"disktype": "ssd"},
    ),
    PrewarmRequest("team-b", "one", "uid-2", 1, (PrewarmedCache({"server": "10.0.0.7", "path": "/models"}),)),
)
NODE_STATES = {
    "pending": NodePrewarmState(PrewarmState.PENDING, 0, "fills that pods wait for go first"),
    "filling": NodePrewarmState(PrewarmState.FILLING, 42),
    "storing": NodePrewarmState(PrewarmState.STORING, 99, "bringing it to the image store"),
    "ready": NodePrewarmState(PrewarmState.READY, 100),
    "failed": NodePrewarmState(PrewarmState.FAILED, 10, "the origin refuses the credential"),
}

ANNOUNCEMENTS = (
    Announcement(
        id="edc-0123456789abcdef0123",
        digest=DIGEST,
        bucket="models",
        path="/llama/7b",
        store="oss://elsewhere/images",
        region="cn-beijing",
        title="llama",
        retention_days=30,
        tags={"team": "a"},
        resource_group="rg-1",
        namespaces=("team-a",),
        adopted=True,
    ),
    Announcement("edc-ffffffffffffffffffff", OTHER_DIGEST, "default", "/plain", "file:///images", "cn-local"),
)

SUBJECTS = (
    ObjectReference("Pod", "team-a", "pod-1", "uid-1"),
    ObjectReference("Node", "", "node-a", "node-a"),
)

STORED_IMAGE = StoredImage(
    digest="cac5b5ed579a5a23908e9db2795d8bf94c2b7b7bd28cf15ccbf05a9b84898f60",
    image_bytes=20_480,
    content_bytes=10_021,
    data_offset=4096,
    parts=[
        "43e16fae61ceb1f7b3170d02a50fd4fc603eafcab6589f8a6fb43d33cf9a2257",
        "08b6369fb86e53a292c96dcf9c0f4d275b871dc47869c5515d5daff41a61eab6",
        "19db936b84d2fcbd6aa36444c6c3018ff52d50ed1a85be91cd5fb2d7cc95fdc4",
        "80fb16c7a16efda1fe23a1b778e85cbdd644ee36644133cc5493412d31bfe8eb",
    ],
    access={**ACCESS, "repoId": "org/copy"},
    layout_format=2,
    part_bytes=4096,
    stored_at=NOW,
)

FINDINGS = (
    Finding("store", Verdict.OK, "it has room"),
    Finding("cgroups", Verdict.WARNING, "no limit is held", "mount /sys/fs/cgroup"),
    Finding("kernel", Verdict.FAULT, "no EROFS", "load the module"),
)
HELD = (
    ListedImage(
        DIGEST, StoredState.WHOLE, StoredImage(DIGEST, 8192, 5, 4096, ["3c" * 32], ACCESS, 1, 4096, NOW)
    ),
    ListedImage(OTHER_DIGEST, StoredState.DAMAGED, reason="another format"),
    ListedImage(OTHER_DIGEST, StoredState.PARTS),
)
