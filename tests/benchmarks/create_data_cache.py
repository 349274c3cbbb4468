"""A DataCache of content that the image store has: 80 MB and 80 GB alike, until it is Available, through
the CRD and through ECI's API."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from unittest.mock import patch

from csi.concurrency.deadline import Deadline
from csi.concurrency.wait_limiter import WaitLimiter
from csi.image_store.location import parse_image_store_url
from csi.image_store.store import open_backend
from csi.image_store.stored_image import PART_BYTES, StoredImage, index_key, manifest_key
from csi.images.layout import layout as layouts
from csi.images.layout.layout import build_layout
from csi.linux.durable_files import load_or_create_key
from csi.manifest.manifest import Manifest
from csi.parameters.content_ref import Secrets
from csi.parameters.volume_parameters import parse_volume_parameters
from csi.registry.datacaches.data_caches import Phase
from csi.registry.datacaches.kubernetes import KubernetesDataCacheRegistry
from csi.resolve.proof_memory import ProofMemory
from csi.resolve.resolver import Resolver
from csi.worker.pool import WorkerPool
from csi.worker.results import Resolution
from tests.apiserver import DATA_CACHES, NOT_RUN, ApiServer, programs
from tests.benchmarks.create_cached import LARGE, SMALL
from tests.benchmarks.rounds import interleaved, say, seconds
from tests.benchmarks.table import Series, Table, at_most
from tests.benchmarks.volume import Setting, hub_parameters
from tests.controller_plugin.operator.openapi.sdks import Sdk, Sdk2
from tests.operator_program import OperatorProgram
from tests.origins.hub import Hub
from tests.origins.repositories import Declared

KEY_ID, KEY_SECRET = "LTAIexample", "a-secret"
_ROUNDS, _COLD_ROUNDS, _LOOK_SECONDS, _COLD_SECONDS = 20, 3, 0.01, 75.0
_GOAL = at_most(1000, " ms")
_numbers = iter(range(10**9))


def measure(setting: Setting) -> list[Table]:
    """Milliseconds from the call to Available, looked at every 10 ms.

    The image store has the records of both images; no bytes are moved.
    """
    if programs() is None:
        say(NOT_RUN)
        return []
    with ExitStack() as stack:
        cluster, hub = stack.enter_context(ApiServer()), stack.enter_context(Hub())
        hub.repo(SMALL, {"config.json": b"{}", "model.safetensors": Declared(80 * 10**6)})
        hub.repo(
            LARGE,
            {
                "config.json": b"{}",
                **{f"model-{n:02}-of-16.safetensors": Declared(5 * 10**9, f"{n:064x}") for n in range(16)},
            },
        )
        environment = {
            "HF_ENDPOINT": hub.endpoint,
            "KUBECONFIG": str(cluster.kubeconfig()),
            "POD_NAMESPACE": "default",
        }
        store = f"file://{setting.folder}/images"
        with _resolver(setting.folder, environment) as resolver:
            for repo in (SMALL, LARGE):
                _keep(store, resolver, repo, setting.folder)
        operator = stack.enter_context(
            OperatorProgram(
                setting.folder, "kubernetes", {KEY_ID: KEY_SECRET}, environment, "--image-store", store
            )
        )
        caches, sdk = (
            KubernetesDataCacheRegistry(cluster.client(), "default"),
            Sdk2(operator.port, KEY_ID, KEY_SECRET),
        )
        ways: dict[str, Callable[[str], object]] = {
            "by the CRD": partial(_by_crd, cluster, caches),
            "by the API": partial(_by_api, sdk),
        }
        return [_table(way, create) for way, create in ways.items()]


def _table(way: str, create: Callable[[str], object]) -> Table:
    cold = []
    for _ in range(_COLD_ROUNDS):
        say("until the workers have gone")
        time.sleep(_COLD_SECONDS)
        cold.append(1000 * seconds(lambda: create(LARGE)))
    figures = interleaved(_ROUNDS, {repo: partial(_milliseconds, create, repo) for repo in (SMALL, LARGE)})
    table = Table(f"A DataCache of known content {way}, until it is Available", "ms")
    table.row("80 MB", figures[SMALL], _GOAL)
    table.compare("80 GB", figures[LARGE], [("80 MB", figures[SMALL], None)])
    table.row("80 GB, slowest", Series((max(figures[LARGE].values),)), _GOAL)
    table.row(f"80 GB, the first after {_COLD_SECONDS:.0f} s", Series(tuple(cold)), _GOAL)
    return table


def _milliseconds(create: Callable[[str], object], repo: str) -> float:
    return 1000 * seconds(lambda: create(repo))


def _by_crd(cluster: ApiServer, caches: KubernetesDataCacheRegistry, repo: str) -> None:
    name = f"known-{next(_numbers)}"
    source = {"type": "URL", "options": hub_parameters(repo)}
    thing = {"apiVersion": "eci.aliyun.com/v1alpha1", "kind": "DataCache", "metadata": {"name": name}}
    cluster.client().call(
        "POST", DATA_CACHES, body={**thing, "spec": {"path": f"/models/{name}", "dataSource": source}}
    )
    while not ((cache := caches.get(name)) and cache.state.phase is Phase.AVAILABLE):
        time.sleep(_LOOK_SECONDS)


def _by_api(sdk: Sdk, repo: str) -> None:
    source = {"Type": "URL", "Options": hub_parameters(repo)}
    made = sdk("CreateDataCache", Path=f"/models/by-api-{next(_numbers)}", DataSource=source)["DataCacheId"]
    while sdk("DescribeDataCaches", DataCacheId=[made])["DataCaches"][0]["Status"] != "Available":
        time.sleep(_LOOK_SECONDS)


class KeptManifests:
    """Manifests in files of a folder, without the images that a node's store reserves space for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, digest: str) -> Path:
        """Where the manifest of a digest is."""
        return self._folder / f"manifest-{digest}"

    def has_manifest(self, digest: str) -> bool:
        """Whether it is there."""
        return self.path(digest).exists()

    def read_manifest(self, digest: str) -> Manifest:
        """The manifest."""
        with self.path(digest).open("rb") as stream:
            return Manifest.read(stream)

    def new_temp_path(self) -> Path:
        """Where a resolve writes."""
        return self._folder / "scratch"

    def adopt_manifest(self, digest: str, temp: Path, image_bytes: int) -> None:
        """Keep what a resolve has written."""
        temp.rename(self.path(digest))


@contextmanager
def _resolver(folder: Path, environment: dict[str, str]) -> Iterator[Resolver]:
    with patch.dict(os.environ, environment):
        pool = WorkerPool({"resolve": 1})
        try:
            proofs = ProofMemory(folder / "proofs", load_or_create_key(folder / "key"), 600.0, 600.0)
            manifests = KeptManifests(folder)
            yield Resolver(pool, proofs, WaitLimiter(1), refresh_moving=True, manifests=manifests)
        finally:
            pool.close()


def _keep(store: str, resolver: Resolver, repo: str, folder: Path) -> None:
    """The image store has the manifest and the record of the image, as if its bytes were there too."""
    found: Resolution = resolver.resolve(
        repo,
        parse_volume_parameters(hub_parameters(repo)).spec,
        Secrets(),
        Deadline(60.0),
    )
    path = KeptManifests(folder).path(found.digest)
    content = path.read_bytes()
    with path.open("rb") as stream:
        manifest = Manifest.read(stream)
    layout = build_layout(manifest)
    data_at = len(layout.metadata)
    parts = [f"{number:064x}" for number in range(-(-(layout.size - data_at) // PART_BYTES))]
    record = StoredImage(
        found.digest,
        layout.size,
        manifest.content_bytes,
        data_at,
        parts,
        dict(manifest.access),
        layouts.LAYOUT_FORMAT,
        stored_at=time.time(),
    )
    (folder / "images").mkdir(exist_ok=True)
    backend = open_backend(parse_image_store_url(store), {})
    backend.put(manifest_key(found.digest), content)
    backend.put(index_key(found.digest), record.encode())
    backend.close()
