"""CopyDataCache: caches go to the image stores of other regions, and what other regions announce in ours becomes DataCaches.

All that a copy needs is in the image store that it goes to, so two clusters share nothing but that, and a restart forgets nothing.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from controller_plugin.operator.regions.regions import CopyRequest
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


class ImageStoreRegions:
    """See Regions: places known by the image store that each has. `region` is this place, `stored` its image store."""

    def __init__(
        self,
        caches: DataCacheRegistry,
        stored: ImageStoreClient,
        others: Mapping[str, ImageStoreClient],
        region: str,
    ) -> None:
        self._caches, self._image_store, self.region = caches, stored, region
        self.others, self.announced = dict(others), threading.Event()

    def start_copy(self, cache: DataCache, region: str, copy: CopyRequest) -> str:
        """See Regions; raises FailedPrecondition too, where no image store here has what is to be copied."""
        if region not in (self.region, *self.others):
            known = ", ".join(sorted((self.region, *self.others)))
            raise InvalidParameter(
                f"DestinationRegionId is {region[:64]!r}; the operator knows {known} (--copy-region)"
            )
        content = cache.state.content
        if not self._image_store.is_configured or content is None or not cache.state.in_image_store:
            raise FailedPrecondition(
                f"{cache.id} is not in an image store, from which it could be copied; give the operator one (--image-store)"
            )
        announcement = self._build_announcement(cache, content, region, copy)
        if region == self.region:
            if not self._caches.find((announcement.id,)):
                self._caches.add(_build_data_cache(announcement), {})
        else:
            self.others[region].announce(announcement)
            self.announced.set()
        return announcement.id

    def _build_announcement(
        self, cache: DataCache, content: DataCacheContent, region: str, copy: CopyRequest
    ) -> Announcement:
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
    """Brings images where this place has announced them. For one process at a time."""

    def __init__(self, image_store: ImageStoreClient, regions: ImageStoreRegions) -> None:
        self._image_store, self.regions = image_store, regions

    @contextmanager
    def run_in_background(self) -> Iterator[None]:
        """For the block, look when something was announced, and now and then, from a thread of its own."""
        call = WorkerCall()

        def rounds(ended: threading.Event) -> None:
            while not ended.is_set():
                self.regions.announced.clear()
                for name, target in self.regions.others.items():
                    _log_errors(
                        f"the region {name} was not looked at", partial(self.send_announced, target, call)
                    )
                if not ended.is_set():
                    self.regions.announced.wait(_CHECK_INTERVAL)

        def stop() -> None:
            call.stop()
            self.regions.announced.set()

        with background_thread(rounds, "copying", stop):
            yield

    def send_announced(self, target: ImageStoreClient, call: WorkerCall) -> None:
        """Bring one image store what is announced there from here; one that fails is in no other's way. Raises as ImageStoreClient."""
        for announcement in target.list_announcements():
            if not call.stopped:
                _log_errors(
                    f"the copy {announcement.id} was not brought to {target.location}",
                    partial(self._copy_image, target, announcement, call),
                )

    def _copy_image(self, target: ImageStoreClient, announcement: Announcement, call: WorkerCall) -> None:
        # file:///images is a place of its own in each region.
        is_ours = (announcement.store, announcement.region) == (
            self._image_store.location,
            self.regions.region,
        )
        if is_ours and target.find(announcement.digest) is None:
            self._image_store.copy_to(target, announcement.digest, call)
            log.info(
                "an image was copied",
                extra={
                    "fields": {
                        "image": announcement.digest,
                        "data_cache": announcement.id,
                        "to": target.location,
                    }
                },
            )


class CopyReceiver:
    """Makes DataCaches of what is announced in our image store. For one process at a time."""

    def __init__(self, caches: DataCacheRegistry, image_store: ImageStoreClient) -> None:
        self._caches, self._image_store = caches, image_store
        self._logged: set[str] = set()

    @contextmanager
    def run_in_background(self) -> Iterator[None]:
        """For the block, look now and then, from a thread of its own."""

        def rounds(ended: threading.Event) -> None:
            while not ended.is_set():
                _log_errors("announced copies were not looked at", self.adopt_announced)
                ended.wait(_CHECK_INTERVAL)

        with background_thread(rounds, "adopting"):
            yield

    def adopt_announced(self) -> None:
        """Look once. Raises as DataCaches and ImageStoreClient."""
        for announcement in self._image_store.list_announcements(
            lambda why: self._log_once("an announced copy cannot be read", reason=why)
        ):
            is_made = bool(self._caches.find((announcement.id,)))
            # One that was deleted does not come back.
            if (
                announcement.adopted
                and not is_made
                or is_made
                and self._image_store.find(announcement.digest)
            ):
                self._image_store.withdraw(announcement)
            elif not announcement.adopted and (is_made or self._create_data_cache(announcement)):
                self._image_store.announce(replace(announcement, adopted=True))

    def _create_data_cache(self, announcement: Announcement) -> bool:
        try:
            self._caches.add(_build_data_cache(announcement), {})
        except (AlreadyExists, InvalidParameter) as error:
            self._log_once(
                "a copy has no place here",
                **{"data_cache": announcement.id, "from": announcement.region, "reason": str(error)},
            )
            return False
        return True

    def _log_once(self, what: str, **fields: str) -> None:
        """Warn of it once."""
        said = repr(fields)
        if said not in self._logged:
            log.warning(what, extra={"fields": fields})
        self._logged.add(said)


def _build_data_cache(announcement: Announcement) -> DataCache:
    """Raises InvalidParameter, naming the field, for what no DataCache can be."""
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
    except Busy:
        return
    except DataCacheError as error:
        log.warning(what, extra={"fields": {"reason": error}})
