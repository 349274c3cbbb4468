"""CopyDataCache between two regions whose operators share an image store, over fake ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from controller_plugin.operator.reconcile.controller import ImageStoreCollector
from controller_plugin.operator.regions.copying import CopyReceiver, CopySender, ImageStoreRegions
from controller_plugin.operator.regions.regions import CopyRequest
from csi.errors import FailedPrecondition, InvalidParameter
from csi.parameters.data_cache import parse_data_cache
from csi.registry.datacaches.data_caches import DataCache, DataCacheState, Phase
from csi.registry.datacaches.directory import DirectoryDataCacheRegistry
from csi.worker.pool import WorkerCall
from tests.controller_plugin.operator.fakes import FakeStored, content

CONTENT = content("a")
COPY = CopyRequest("default", "/models/copy", "title", 3, {"team": "a"}, "rg", "token")


class Region:
    """A place with DataCaches and an image store."""

    def __init__(self, folder: Path, name: str, *others: tuple[str, FakeStored]) -> None:
        folder.mkdir()
        self.caches, self.stored = DirectoryDataCacheRegistry(folder), FakeStored(f"s3://{name}")
        self.regions = ImageStoreRegions(self.caches, self.stored, dict(others), name)
        self.adopter, self.copier = (
            CopyReceiver(self.caches, self.stored),
            CopySender(self.stored, self.regions),
        )
        self.collector = ImageStoreCollector(self.caches, self.stored, 0.0, lambda: folder / "scratch")

    def has(self, is_kept: bool = True, path: str = "/models/a") -> DataCache:
        """A DataCache of the image, Available."""
        spec = parse_data_cache(
            "", path, "URL", {"repoSource": "HuggingFace/Model", "repoId": "org/name"}, namespaces=("team",)
        )
        made = self.caches.add(DataCache("", "", 0, 0.0, spec), {})
        self.caches.write_state(
            made, DataCacheState(Phase.AVAILABLE, 100, 1, CONTENT, in_image_store=is_kept)
        )
        return self.caches.find((made.id,))[0]


@pytest.fixture
def there(tmp_path: Path) -> Region:
    return Region(tmp_path / "there", "cn-there")


@pytest.fixture
def here(tmp_path: Path, there: Region) -> Region:
    made = Region(tmp_path / "here", "cn-here", ("cn-there", there.stored))
    made.stored.images.add(CONTENT.digest)
    return made


def test_a_copy_is_a_datacache_of_that_id_there_before_and_after_its_image_is(
    here: Region, there: Region
) -> None:
    copied = here.regions.start_copy(here.has(), "cn-there", COPY)
    there.adopter.adopt_announced()
    (found,) = there.caches.find()
    assert (found.id, found.title, found.tags, found.resource_group) == (copied, "title", {"team": "a"}, "rg")
    assert found.spec.retention_days == 3
    assert found.spec.display_name == "bucket default, path /models/copy"
    assert found.spec.snapshot_id == CONTENT.snapshot_id
    assert found.spec.namespaces == ("team",), "whom the cache is for stays so"
    there.adopter.adopt_announced()
    assert there.stored.said, "it is said until the image is there"
    here.copier.send_announced(there.stored, WorkerCall())
    there.adopter.adopt_announced()
    assert there.stored.images == {CONTENT.digest}
    assert not there.stored.said
    assert there.caches.find() == [found]


def test_one_token_is_one_copy_and_none_is_another_each_time(here: Region, there: Region) -> None:
    cache = here.has()
    assert here.regions.start_copy(cache, "cn-there", COPY) == here.regions.start_copy(
        cache, "cn-there", COPY
    )
    assert (
        len(
            {
                here.regions.start_copy(cache, "cn-there", CopyRequest("default", f"/{number}"))
                for number in range(3)
            }
        )
        == 3
    )
    there.adopter.adopt_announced()
    assert len(there.caches.find()) == 4


def test_a_copy_that_is_deleted_does_not_come_back(here: Region, there: Region) -> None:
    here.regions.start_copy(here.has(), "cn-there", COPY)
    there.adopter.adopt_announced()
    there.caches.delete(there.caches.find()[0])
    there.adopter.adopt_announced()
    there.adopter.adopt_announced()
    assert there.caches.find() == []
    assert not there.stored.said


def test_a_copy_that_was_made_just_before_a_kill_does_not_come_back_either(
    here: Region, there: Region
) -> None:
    here.regions.start_copy(here.has(), "cn-there", COPY)
    said = dict(there.stored.said)
    there.adopter.adopt_announced()
    there.stored.said = said
    there.adopter.adopt_announced()
    there.caches.delete(there.caches.find()[0])
    there.adopter.adopt_announced()
    assert there.caches.find() == []
    assert not there.stored.said


def test_a_damaged_announcement_is_told_once_and_is_in_no_others_way(
    here: Region, there: Region, caplog: pytest.LogCaptureFixture
) -> None:
    there.stored.damaged = ["announced/edc-x.json is damaged"]
    copied = here.regions.start_copy(here.has(), "cn-there", COPY)
    there.adopter.adopt_announced()
    there.adopter.adopt_announced()
    assert [one.id for one in there.caches.find()] == [copied]
    assert [record.message for record in caplog.records] == ["unreadable announcement skipped"]


def test_a_name_that_is_taken_is_waited_for(here: Region, there: Region) -> None:
    taken = there.has(path=COPY.path)
    copied = here.regions.start_copy(here.has(), "cn-there", COPY)
    there.adopter.adopt_announced()
    assert there.caches.find() == [taken]
    assert there.stored.said
    there.caches.delete(taken)
    there.adopter.adopt_announced()
    assert [one.id for one in there.caches.find()] == [copied]


def test_what_is_announced_is_not_collected(here: Region, there: Region) -> None:
    here.regions.start_copy(here.has(), "cn-there", COPY)
    there.collector.collect()
    assert there.stored.wanted == {CONTENT.digest}


def test_images_of_others_are_not_ours_to_bring(here: Region, there: Region, tmp_path: Path) -> None:
    third = Region(tmp_path / "third", "cn-third", ("cn-there", there.stored))
    third.stored.images.add(CONTENT.digest)
    third.regions.start_copy(third.has(), "cn-there", COPY)
    here.copier.send_announced(there.stored, WorkerCall())
    assert there.stored.images == set()


def test_a_store_of_the_same_url_elsewhere_is_another_one(
    here: Region, there: Region, tmp_path: Path
) -> None:
    twin = Region(tmp_path / "twin", "cn-twin", ("cn-there", there.stored))
    twin.stored.location = here.stored.location
    here.regions.start_copy(here.has(), "cn-there", COPY)
    twin.stored.images.add(CONTENT.digest)
    twin.copier.send_announced(there.stored, WorkerCall())
    assert there.stored.images == set()


def test_a_copy_that_fails_is_in_no_others_way(here: Region, there: Region) -> None:
    here.regions.start_copy(here.has(), "cn-there", COPY)
    (said,) = there.stored.list_announcements()
    there.stored.announce(replace(said, id="edc-" + "0" * 20, digest=content("b").digest))
    here.copier.send_announced(there.stored, WorkerCall())
    assert there.stored.images == {CONTENT.digest}


def test_a_copy_to_ones_own_region_is_there_at_once(here: Region) -> None:
    cache = here.has()
    copied = here.regions.start_copy(cache, "cn-here", COPY)
    assert here.regions.start_copy(cache, "cn-here", COPY) == copied
    assert {one.id for one in here.caches.find()} == {cache.id, copied}


def test_a_region_that_is_not_known_is_refused_with_those_that_are(here: Region) -> None:
    with pytest.raises(
        InvalidParameter,
        match=r"DestinationRegionId is 'cn-x'; the operator knows cn-here, cn-there \(--copy-region\)",
    ):
        here.regions.start_copy(here.has(), "cn-x", COPY)


def test_what_no_image_store_has_cannot_be_copied(here: Region) -> None:
    with pytest.raises(
        FailedPrecondition, match=r"is not in an image store, .*; give the operator one \(--image-store\)"
    ):
        here.regions.start_copy(here.has(is_kept=False), "cn-there", COPY)
