"""Entry point of datacache-operator.

The operator makes DataCaches available, and serves the pod webhook and ECI's OpenAPI.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from controller_plugin.operator.data_cache_index import DataCacheIndex
from controller_plugin.operator.reconcile.controller import DataCacheController, ImageStoreCollector
from controller_plugin.operator.reconcile.reconciler import Reconciler
from controller_plugin.operator.reconcile.worker_images import WorkerDataCacheImages
from controller_plugin.operator.regions.copying import CopyReceiver, CopySender, ImageStoreRegions
from controller_plugin.operator.webhook.admission import AdmissionReviewer
from controller_plugin.operator.webhook.pod_volumes import PodMutator
from csi import __version__
from csi.concurrency.wait_limiter import WaitLimiter
from csi.destinations.allow_list import DATA_CACHE_OBJECTS, NAS_HELP, AllowList, parse_nas_prefixes
from csi.destinations.destinations import ORIGINS_HELP, parse_destinations
from csi.errors import InvalidParameter
from csi.image_store.client import COPY_LANE, IMAGE_STORE_LANE, ImageStoreClient, ImageStoreConfig
from csi.program import flags, lifecycle
from csi.registry.datacaches.data_caches import DataCache, DataCacheRegistry
from csi.registry.factories import (
    KUBERNETES,
    REGISTRY_HELP,
    find_api_server,
    open_data_caches,
    open_prewarm_requests,
)
from csi.registry.prewarms.requests import PrewarmRequests
from csi.resolve.proof_memory import open_proof_memory
from csi.resolve.resolver import Resolver
from csi.worker.pool import WorkerPool, build_worker_command

if TYPE_CHECKING:
    from controller_plugin.operator.openapi.nonces import NonceStore
    from csi.cluster.api_server import ApiServer

log = logging.getLogger("datacache.operator")

StartLeading = Callable[[], AbstractContextManager[None]]
STATE_DIR = "/var/lib/datacache-operator"
_LEASE_NAME = "{}-operator"
_MAX_WAITING = 64


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of datacache-operator's flags."""
    parser = argparse.ArgumentParser(
        "datacache-operator", description="The operator of DataCaches, of the datacache CSI driver."
    )
    parser.add_argument("--version", action="version", version=__version__)
    flags.add_program_flags(parser)
    flags.add_flag(parser, "--registry", help=f"registry of the DataCaches: {REGISTRY_HELP}")
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
        "--resolve-workers",
        default="2",
        type=flags.parse_count,
        help="the maximum number of concurrent resolves",
    )
    flags.add_image_store_flags(parser)
    flags.add_flag(
        parser,
        "--image-store-grace",
        default="7d",
        type=flags.parse_duration,
        help="how long the image store keeps images that no DataCache refers to",
    )
    flags.add_flag(
        parser,
        "--health-address",
        default="",
        type=flags.parse_optional_address,
        help="address of GET /healthz; empty to disable",
    )
    _add_webhook_flags(parser)
    _add_openapi_flags(parser)
    _add_region_flags(parser)
    return parser


def _add_webhook_flags(parser: argparse.ArgumentParser) -> None:
    flags.add_flag(
        parser,
        "--webhook-address",
        default="",
        type=flags.parse_optional_address,
        help="address of the admission webhook, as :9443; empty to disable",
    )
    flags.add_flag(
        parser,
        "--webhook-name",
        default="datacache-operator",
        help="name of the webhook's Service, Secret and configurations",
    )


def _add_openapi_flags(parser: argparse.ArgumentParser) -> None:
    flags.add_flag(
        parser,
        "--api-address",
        default="",
        type=flags.parse_optional_address,
        help="address of ECI's OpenAPI, as :8080; empty to disable",
    )
    flags.add_flag(
        parser,
        "--api-keys",
        default="",
        type=flags.parse_optional_path,
        help="folder with the API's access keys: one file per id, with its secret",
    )
    flags.add_flag(parser, "--api-region", default="cn-local", help="region that the API reports for itself")


def _add_region_flags(parser: argparse.ArgumentParser) -> None:
    flags.add_flag(
        parser,
        "--copy-region",
        action=flags.MergeAction,
        default="",
        type=flags.parse_name_value,
        help="region that caches can be copied to, as NAME=URL with the URL of its image store; repeatable",
    )
    flags.add_flag(
        parser,
        "--copy-region-secret",
        action=flags.MergeAction,
        default="",
        type=flags.parse_name_value,
        help="NAME=FOLDER, the folder with the access key of that region's image store, one file per key; "
        "repeatable",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run until SIGTERM.

    Exit with status 1 and the reason on standard error if the operator cannot start.
    """
    lifecycle.run_program(build_parser(), _run_operator, arguments)


def _run_operator(options: argparse.Namespace) -> None:
    server = find_api_server(options.registry)
    pool = _build_pool(options)
    try:
        with tempfile.TemporaryDirectory(prefix="datacache-operator-") as scratch, ExitStack() as resources:
            operator = _build_operator(options, server, pool, Path(scratch))
            resources.enter_context(operator.caches.watch(operator.index.apply_event))
            # The webhook needs all caches from the first request on, before the watch has delivered them.
            operator.index.resync(operator.caches.find)
            resources.enter_context(_lead_or_campaign(server, options.driver_name, operator.lead))
            if options.health_address:
                resources.enter_context(_serve_health(options.health_address))
            if options.webhook_address and server:
                resources.enter_context(_serve_webhook(options, server, operator))
            if options.api_address:
                resources.enter_context(_serve_openapi(options, server, operator))
            log.info("operator started", extra={"fields": {"registry": options.registry}})
            lifecycle.wait_for_signal()
    finally:
        pool.close()


@dataclass(frozen=True)
class _Operator:
    """The DataCaches of a cluster, with what serves them and what the leader does for them."""

    caches: DataCacheRegistry
    index: DataCacheIndex
    allow_list: AllowList
    regions: ImageStoreRegions
    image_store: ImageStoreClient
    images: WorkerDataCacheImages
    prewarm_requests: PrewarmRequests
    new_collector: Callable[[], ImageStoreCollector]

    @contextmanager
    def lead(self) -> Iterator[None]:
        """Do the duties of the leader during the block; each term of a leader starts without any memory."""
        reconciler = Reconciler(self.caches, self.index, self.images, self.prewarm_requests, self.allow_list)
        controller = DataCacheController(self.caches, self.index, self.prewarm_requests, reconciler)
        with (
            self.new_collector().run_in_background(),
            controller.run_in_background(),
            CopySender(self.image_store, self.regions).run_in_background(),
            CopyReceiver(self.caches, self.image_store).run_in_background(),
        ):
            yield


def _build_pool(options: argparse.Namespace) -> WorkerPool:
    return WorkerPool(
        {"resolve": options.resolve_workers, IMAGE_STORE_LANE: 2, COPY_LANE: 1},
        command=build_worker_command(options.log_format, options.log_level),
        profiles=options.egress_profile,
        allowed_destinations=options.allow_origins,
    )


def _build_operator(
    options: argparse.Namespace, server: ApiServer | None, pool: WorkerPool, scratch: Path
) -> _Operator:
    caches, index = open_data_caches(options.registry, server), DataCacheIndex()
    allow_list = AllowList(options.allow_inline_nas, options.allow_origins, DATA_CACHE_OBJECTS)
    image_store = _build_image_store_client(pool, options.image_store, options.image_store_secret)
    other_regions = _build_other_regions(options, pool)
    state_dir = Path(options.state_dir or (STATE_DIR if options.registry == KUBERNETES else options.registry))
    proofs = open_proof_memory(state_dir, options.proof_ttl, options.offline_grace)
    resolver = Resolver(pool, proofs, WaitLimiter(_MAX_WAITING), refresh_moving=True)
    return _Operator(
        caches=caches,
        index=index,
        allow_list=allow_list,
        regions=ImageStoreRegions(caches, image_store, other_regions, options.api_region),
        image_store=image_store,
        images=WorkerDataCacheImages(resolver, image_store, options.egress_profile),
        prewarm_requests=open_prewarm_requests(options.registry, server, options.driver_name),
        new_collector=lambda: ImageStoreCollector(
            caches, image_store, options.image_store_grace, lambda: scratch / uuid.uuid4().hex
        ),
    )


def _build_image_store_client(pool: WorkerPool, url: str, folder: Path | None) -> ImageStoreClient:
    config = ImageStoreConfig(url, folder)
    config.check_url()
    return ImageStoreClient(pool, config)


def _build_other_regions(options: argparse.Namespace, pool: WorkerPool) -> dict[str, ImageStoreClient]:
    unknown = options.copy_region_secret.keys() - options.copy_region.keys()
    if unknown:
        raise InvalidParameter(
            f"--copy-region-secret is for {min(unknown)}, which no --copy-region names; add it there"
        )
    if options.api_region in options.copy_region:
        raise InvalidParameter(
            f"--copy-region names {options.api_region}, which is this region (--api-region); "
            "name other regions"
        )
    return {
        name: _build_image_store_client(
            pool, url, flags.parse_optional_path(options.copy_region_secret.get(name, ""))
        )
        for name, url in options.copy_region.items()
    }


@contextmanager
def _lead_or_campaign(server: ApiServer | None, driver_name: str, lead: StartLeading) -> Iterator[None]:
    """Lead during the block whenever this replica holds the lease; without a cluster, always."""
    if server is None:
        with lead():
            yield
        return
    from csi.cluster.lease import Lease, holder_identity, leader_election

    with leader_election(
        Lease(server, _LEASE_NAME.format(driver_name.lower()), holder_identity(os.environ)), lead
    ):
        yield


def _serve_health(address: tuple[str, int]) -> AbstractContextManager[int]:
    from controller_plugin.operator.https_server import health_app, serve_app

    return serve_app(health_app(), *address)


@contextmanager
def _serve_openapi(
    options: argparse.Namespace, server: ApiServer | None, operator: _Operator
) -> Iterator[None]:
    from controller_plugin.operator.https_server import serve_app
    from controller_plugin.operator.openapi.access_keys import AccessKeys
    from controller_plugin.operator.openapi.actions import Actions
    from controller_plugin.operator.openapi.app import openapi_app
    from controller_plugin.operator.openapi.deletions import Deletions
    from controller_plugin.operator.openapi.nonces import FileNonceStore, SecretNonceStore
    from controller_plugin.operator.openapi.signatures import WINDOW_SECONDS, SignatureVerifier

    nonces: NonceStore
    if server:
        nonces = SecretNonceStore(server, f"{options.webhook_name}-nonces", 2 * WINDOW_SECONDS)
    else:
        nonces = FileNonceStore(Path(options.registry) / "nonces.json", 2 * WINDOW_SECONDS)
    actions = Actions(
        operator.caches, operator.allow_list, operator.regions, options.api_region, Deletions(nonces)
    )
    verifier = SignatureVerifier(AccessKeys(options.api_keys).find_secret, nonces)
    with serve_app(openapi_app(actions, verifier), *options.api_address) as port:
        log.info("OpenAPI started", extra={"fields": {"port": port, "region": options.api_region}})
        yield


@contextmanager
def _serve_webhook(options: argparse.Namespace, server: ApiServer, operator: _Operator) -> Iterator[None]:
    from controller_plugin.operator.webhook.server import serve_webhook
    from csi.cluster.outbox import Outbox

    caches, index = operator.caches, operator.index
    mutator = PodMutator(index, options.driver_name, lambda: index.fetch_missing(caches.find))
    with closing(Outbox()) as outbox:

        def on_match(cache: DataCache, when: float) -> None:
            outbox.put(cache.uid, lambda: caches.write_match_time(cache, when))

        admission = AdmissionReviewer(index, mutator, operator.allow_list, on_match)
        with serve_webhook(server, admission, options.webhook_name, *options.webhook_address):
            yield


if __name__ == "__main__":
    main()
