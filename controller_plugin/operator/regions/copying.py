"""CopyDataCache: images go to other regions' image stores, and announcements in ours become DataCaches.

Everything that a copy needs is in the destination's image store. So two clusters share nothing else, and a
restart forgets nothing.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from controller_plugin.operator.regions.regions import CopyRequest, Regions
from csi.concurrency.background import background_thread
from csi.errors import AlreadyExists, Busy, DataCacheError, FailedPrecondition, InvalidParameter
from csi.image_store.announcements import Announcement
from csi.image_store.client import ImageStoreClient
from csi.parameters.data_cache import parse_data_cache
from csi.registry.datacaches.data_caches import (
    DataCache,
    DataCacheContent,
    DataCacheRegistry,
    data_cache_id_from_uid,
)
from csi.worker.pool import WorkerCall

log = logging.getLogger("datacache.operator")

_CHECK_INTERVAL = 30.0


class ImageStoreRegions(Regions):
    """Regions known by their image stores.

    `region` is this region, `image_store` its image store, `other_regions` those of the others.
    """

    def __init__(
        self,
        caches: DataCacheRegistry,
        image_store: ImageStoreClient,
        others: Mapping[str, ImageStoreClient],
        region: str,
    ) -> None:
        self._caches, self._image_store, self.region = caches, image_store, region
        self.other_regions, self.copy_announced = dict(others), threading.Event()

    def start_copy(self, cache: DataCache, region: str, copy: CopyRequest) -> str:
        if region not in (self.region, *self.other_regions):
            known = ", ".join(sorted((self.region, *self.other_regions)))
            raise InvalidParameter(
                f"DestinationRegionId is {region[:64]!r}; the operator knows {known} (--copy-region)"
            )
        content = cache.state.content
        if not self._image_store.is_configured or content is None or not cache.state.in_image_store:
            raise FailedPrecondition(
                f"{cache.id} is not in an image store, from which it could be copied; "
                "give the operator one (--image-store)"
            )
        announcement = self._build_announcement(cache, content, region, copy)
        if region == self.region:
            if not self._caches.find((announcement.id,)):
                self._caches.add(_build_data_cache(announcement), {})
        else:
            self.other_regions[region].announce(announcement)
            self.copy_announced.set()
        return announcement.id

    def _build_announcement(
        self, cache: DataCache, content: DataCacheContent, region: str, copy: CopyRequest
    ) -> Announcement:
        # A token makes the id the same for repeated calls, so that they make one copy.
        token = copy.client_token or uuid.uuid4().hex
        return Announcement(
            data_cache_id_from_uid(f"{token}\0{cache.uid}\0{region}"),
            content.digest,
            copy.bucket,
            copy.path,
            store=self._image_store.location,
            region=self.region,
            title=copy.title,
            retention_days=copy.retention_days,
            tags=dict(copy.tags or {}),
            resource_group=copy.resource_group,
            namespaces=cache.spec.namespaces,
        )


class CopySender:
    """Copies images that this region has announced elsewhere. For one process at a time."""

    def __init__(self, image_store: ImageStoreClient, regions: ImageStoreRegions) -> None:
        self._image_store, self.regions = image_store, regions

    @contextmanager
    def run_in_background(self) -> Iterator[None]:
        """Send during the block, after each announcement and at intervals, in a thread."""
        call = WorkerCall()

        def rounds(ended: threading.Event) -> None:
            while not ended.is_set():
                self.regions.copy_announced.clear()
                for name, target in self.regions.other_regions.items():
                    _log_errors(
                        f"copying to region {name} failed", partial(self.send_announced, target, call)
                    )
                if not ended.is_set():
                    self.regions.copy_announced.wait(_CHECK_INTERVAL)

        def stop() -> None:
            call.stop()
            self.regions.copy_announced.set()

        with background_thread(rounds, "copying", stop):
            yield

    def send_announced(self, target: ImageStoreClient, call: WorkerCall) -> None:
        """Copy all images that this region has announced in `target`.

        A failed one does not delay others. Raises as ImageStoreClient.
        """
        for announcement in target.list_announcements():
            if not call.stopped:
                _log_errors(
                    f"copy {announcement.id} to {target.location} failed",
                    partial(self._copy_image, target, announcement, call),
                )

    def _copy_image(self, target: ImageStoreClient, announcement: Announcement, call: WorkerCall) -> None:
        # The region is compared too, since a location such as file:///images is a different store in each
        # region.
        is_ours = (announcement.store, announcement.region) == (
            self._image_store.location,
            self.regions.region,
        )
        if is_ours and target.find(announcement.digest) is None:
            self._image_store.copy_to(target, announcement.digest, call)
            log.info(
                "image copied",
                extra={
                    "fields": {
                        "image": announcement.digest,
                        "data_cache": announcement.id,
                        "to": target.location,
                    }
                },
            )


class CopyReceiver:
    """Creates DataCaches for the announcements in our image store. For one process at a time."""

    def __init__(self, caches: DataCacheRegistry, image_store: ImageStoreClient) -> None:
        self._caches, self._image_store = caches, image_store
        self._logged: set[str] = set()

    @contextmanager
    def run_in_background(self) -> Iterator[None]:
        """Check at intervals during the block, in a thread."""

        def rounds(ended: threading.Event) -> None:
            while not ended.is_set():
                _log_errors("adopting announced copies failed", self.adopt_announced)
                ended.wait(_CHECK_INTERVAL)

        with background_thread(rounds, "adopting"):
            yield

    def adopt_announced(self) -> None:
        """Check once. Raises as DataCacheRegistry and ImageStoreClient."""
        for announcement in self._image_store.list_announcements(
            lambda why: self._log_once("unreadable announcement skipped", reason=why)
        ):
            exists = bool(self._caches.find((announcement.id,)))
            # An adopted announcement without a DataCache: its user deleted it, and it must not come back.
            was_deleted = announcement.adopted and not exists
            if was_deleted or (exists and self._image_store.find(announcement.digest)):
                # Nothing is left to do: it was deleted, or its image has arrived.
                self._image_store.withdraw(announcement)
            elif not announcement.adopted and (exists or self._create_data_cache(announcement)):
                self._image_store.announce(replace(announcement, adopted=True))

    def _create_data_cache(self, announcement: Announcement) -> bool:
        try:
            self._caches.add(_build_data_cache(announcement), {})
        except (AlreadyExists, InvalidParameter) as error:
            self._log_once(
                "announced copy not created",
                **{"data_cache": announcement.id, "from": announcement.region, "reason": str(error)},
            )
            return False
        return True

    def _log_once(self, what: str, **fields: str) -> None:
        """Log a warning, once for each combination of fields."""
        key = repr(fields)
        if key not in self._logged:
            log.warning(what, extra={"fields": fields})
        self._logged.add(key)


def _build_data_cache(announcement: Announcement) -> DataCache:
    """Build the DataCache of an announcement. Raises InvalidParameter, naming the field, if it is invalid."""
    options = {"snapshotId": announcement.snapshot_id}
    spec = parse_data_cache(
        announcement.bucket,
        announcement.path,
        "SNAPSHOT",
        options,
        retention_days=announcement.retention_days,
        namespaces=tuple(announcement.namespaces),
    )
    group = announcement.resource_group
    return DataCache(
        "",
        "",
        0,
        0.0,
        spec,
        title=announcement.title,
        tags=announcement.tags,
        resource_group=group,
        assigned_id=announcement.id,
    )


def _log_errors(what: str, work: Callable[[], None]) -> None:
    try:
        work()
    # Still in progress; the next round continues.
    except Busy:
        return
    except DataCacheError as error:
        log.warning(what, extra={"fields": {"reason": error}})
