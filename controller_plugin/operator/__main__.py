"""datacache-operator: makes DataCaches Available, answers the pod webhook and ECI's OpenAPI; put together from its parts."""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from controller_plugin.operator.data_cache_index import KnownCaches
from controller_plugin.operator.reconcile.controller import Collector, Operator
from controller_plugin.operator.reconcile.reconciler import Reconciler
from controller_plugin.operator.reconcile.worker_images import WorkerImages
from controller_plugin.operator.regions.copying import Adopter, Copier, StoreRegions
from controller_plugin.operator.webhook.admission import Admission
from controller_plugin.operator.webhook.pod_volumes import PodVolumes
from csi import __version__
from csi.concurrency.wait_limiter import WaitingRoom
from csi.destinations.allow_list import DATA_CACHES, NAS_HELP, AllowList, nas_prefixes
from csi.destinations.destinations import ORIGINS_HELP, destinations
from csi.errors import InvalidParameter
from csi.image_store.client import COPY_LANE, LANE, StoreAccess, StoredImages
from csi.linux.durable_files import secret_key
from csi.program import flags, lifecycle
from csi.registry.datacaches.data_caches import DataCache, DataCaches
from csi.registry.factories import HELP, KUBERNETES, find_server, open_data_caches, open_orders
from csi.resolve.proof_memory import ProofMemory
from csi.resolve.resolver import Resolver
from csi.worker.pool import WorkerPool

if TYPE_CHECKING:
    from csi.cluster.api_server import ApiServer

log = logging.getLogger("datacache.operator")

Lead = Callable[[], AbstractContextManager[None]]
STATE_DIR = "/var/lib/datacache-operator"
_LEASE = "{}-operator"
_WAITING = 64


def parser() -> argparse.ArgumentParser:
    """The flags of datacache-operator."""
    parser = argparse.ArgumentParser("datacache-operator", description="The operator of DataCaches, of the datacache CSI driver.")
    parser.add_argument("--version", action="version", version=__version__)
    flags.program_flags(parser)
    flags.flag(parser, "--registry", help=f"what keeps the DataCaches: {HELP}")
    flags.flag(
        parser,
        "--state-dir",
        default="",
        help=f"where proofs of reading are remembered, which may get lost; empty for the registry's folder, with kubernetes for {STATE_DIR}",
    )
    flags.flag(parser, "--allow-origins", default="", type=destinations, help=ORIGINS_HELP)
    flags.flag(parser, "--allow-inline-nas", default="", type=nas_prefixes, help=NAS_HELP)
    flags.flag(parser, "--resolve-workers", default="2", type=flags.count, help="resolves at a time")
    flags.image_store_flags(parser)
    flags.flag(parser, "--image-store-grace", default="7d", type=flags.duration, help="how long the image store keeps what no DataCache wants")
    _serving_flags(parser)
    return parser


def _serving_flags(parser: argparse.ArgumentParser) -> None:
    flags.flag(parser, "--health-address", default="", type=flags.optional_address, help="where GET /healthz is answered; empty for nowhere")
    flags.flag(parser, "--webhook-address", default="", type=flags.optional_address, help="where the API server asks, as :9443; empty for nowhere")
    flags.flag(parser, "--webhook-name", default="datacache-operator", help="the Service, the Secret and the webhook configurations are called so")
    flags.flag(parser, "--api-address", default="", type=flags.optional_address, help="where ECI's OpenAPI is answered, as :8080; empty for nowhere")
    flags.flag(
        parser, "--api-keys", default="", type=flags.optional_path, help="the folder with the API's access keys: one file an id, with its secret"
    )
    flags.flag(parser, "--api-region", default="cn-local", help="what the API calls this place")
    flags.flag(
        parser,
        "--copy-region",
        action=flags.Merged,
        default="",
        type=flags.named,
        help="another place that caches can be copied to, NAME=URL with the URL of the image store there; may be given again",
    )
    flags.flag(
        parser,
        "--copy-region-secret",
        action=flags.Merged,
        default="",
        type=flags.named,
        help="NAME=FOLDER: the folder with the access key of that place's image store, one file a key; may be given again",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Work until SIGTERM. Exit status 1, with the reason on standard error, where the operator cannot start."""
    lifecycle.run(parser(), _run, arguments)


def _run(options: argparse.Namespace) -> None:
    server = find_server(options.registry)
    caches, known = open_data_caches(options.registry, server), KnownCaches()
    allowed = AllowList(options.allow_inline_nas, options.allow_origins, DATA_CACHES)
    pool = WorkerPool(
        {"resolve": options.resolve_workers, LANE: 2, COPY_LANE: 1},
        log_format=options.log_format,
        log_level=options.log_level,
        profiles=options.egress_profile,
        allowed=options.allow_origins,
    )
    try:
        with tempfile.TemporaryDirectory(prefix="datacache-operator-") as scratch, ExitStack() as at_work:
            stored = _stored(pool, options.image_store, options.image_store_secret)
            regions = StoreRegions(caches, stored, _others(options, pool), options.api_region)
            lead = _leader(options, server, caches, known, allowed, pool, stored, regions, Path(scratch))
            at_work.enter_context(caches.watch(known.learn))
            # Who is asked about pods has to know them all, before the watch has come to that.
            known.look(caches.find)
            at_work.enter_context(_leading(server, options.driver_name, lead))
            _serve(options, server, caches, known, allowed, regions, at_work)
            log.info("at work", extra={"fields": {"registry": options.registry}})
            lifecycle.until_told_to_leave()
    finally:
        pool.close()


def _stored(pool: WorkerPool, url: str, folder: Path | None) -> StoredImages:
    access = StoreAccess(url, folder)
    access.check()
    return StoredImages(pool, access)


def _others(options: argparse.Namespace, pool: WorkerPool) -> dict[str, StoredImages]:
    unknown = options.copy_region_secret.keys() - options.copy_region.keys()
    if unknown:
        raise InvalidParameter(f"--copy-region-secret is for {min(unknown)}, which no --copy-region names")
    if options.api_region in options.copy_region:
        raise InvalidParameter(f"--copy-region names {options.api_region}, which is this place (--api-region); name other places")
    return {name: _stored(pool, url, flags.optional_path(options.copy_region_secret.get(name, ""))) for name, url in options.copy_region.items()}


def _leader(
    options: argparse.Namespace,
    server: ApiServer | None,
    caches: DataCaches,
    known: KnownCaches,
    allowed: AllowList,
    pool: WorkerPool,
    stored: StoredImages,
    regions: StoreRegions,
    scratch: Path,
) -> Lead:
    """What one process at a time does."""
    state = Path(options.state_dir or (STATE_DIR if options.registry == KUBERNETES else options.registry))
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    proofs = ProofMemory(state / "proofs", secret_key(state / "key"), options.proof_ttl, options.offline_grace)
    resolver = Resolver(pool, proofs, WaitingRoom(_WAITING), ask_moving=True)
    images = WorkerImages(resolver, stored, options.egress_profile)
    orders = open_orders(options.registry, server, options.driver_name)

    @contextmanager
    def lead() -> Iterator[None]:
        operator = Operator(caches, known, orders, Reconciler(caches, known, images, orders, allowed))
        collector = Collector(caches, stored, options.image_store_grace, lambda: scratch / uuid.uuid4().hex)
        with collector.running(), operator.running(), Copier(stored, regions).running(), Adopter(caches, stored).running():
            yield

    return lead


@contextmanager
def _leading(server: ApiServer | None, driver_name: str, lead: Lead) -> Iterator[None]:
    """For the block, lead whenever that is our turn."""
    if server is None:
        with lead():
            yield
        return
    from csi.cluster.lease import Lease, holder_of, leading

    with leading(Lease(server, _LEASE.format(driver_name.lower()), holder_of(os.environ)), lead):
        yield


def _serve(
    options: argparse.Namespace,
    server: ApiServer | None,
    caches: DataCaches,
    known: KnownCaches,
    allowed: AllowList,
    regions: StoreRegions,
    at_work: ExitStack,
) -> None:
    if options.health_address:
        from controller_plugin.operator.https_server import alive, serving

        at_work.enter_context(serving(alive(), *options.health_address))
    if options.webhook_address and server:
        _serve_webhook(options, server, caches, known, allowed, at_work)
    if options.api_address:
        from controller_plugin.operator.https_server import serving
        from controller_plugin.operator.openapi.access_keys import AccessKeys
        from controller_plugin.operator.openapi.actions import Actions
        from controller_plugin.operator.openapi.app import openapi
        from controller_plugin.operator.openapi.nonces import FileNonces, SecretNonces
        from controller_plugin.operator.openapi.signatures import WINDOW_SECONDS, Signatures

        keys, name, seconds = AccessKeys(options.api_keys), f"{options.webhook_name}-nonces", 2 * WINDOW_SECONDS
        nonces = SecretNonces(server, name, seconds) if server else FileNonces(Path(options.registry) / "nonces.json", seconds)
        app = openapi(Actions(caches, allowed, regions, options.api_region), Signatures(keys.secret, nonces))
        port = at_work.enter_context(serving(app, *options.api_address))
        log.info("the OpenAPI is answered", extra={"fields": {"port": port, "region": options.api_region}})


def _serve_webhook(
    options: argparse.Namespace, server: ApiServer, caches: DataCaches, known: KnownCaches, allowed: AllowList, at_work: ExitStack
) -> None:
    from controller_plugin.operator.webhook.server import webhook_served
    from csi.cluster.outbox import Outbox

    outbox = Outbox()
    at_work.callback(outbox.close)

    def matched(cache: DataCache, when: float) -> None:
        outbox.put(cache.uid, lambda: caches.note_match(cache, when))

    admission = Admission(known, PodVolumes(known, options.driver_name, lambda: known.meet(caches.find)), allowed, matched)
    at_work.enter_context(webhook_served(server, admission, options.webhook_name, *options.webhook_address))


if __name__ == "__main__":
    main()
