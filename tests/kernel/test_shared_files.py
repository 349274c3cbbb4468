"""Files that the node has already: fetched once for each source, and handed to nobody whose origin does
not send them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.kernel.conftest import Start
from tests.kernel.disks import disk
from tests.kernel.knife import read_orders, write_orders
from tests.kernel.machine import MIB, Machine, content, until
from tests.kernel.requests import OK, answer_of
from tests.origins.faults import Fault
from tests.origins.hub import Hub
from tests.origins.repositories import Declared, Repository

pytestmark = pytest.mark.kernel

OWNER, THIEF = {"token": "owner-s3cr3t"}, {"token": "thief-s3cr3t"}
WRONG = grpc.StatusCode.DATA_LOSS


def shards(count: int = 20, size: int = 2 * MIB) -> dict[str, bytes]:
    return {f"model-{n:02d}.bin": os.urandom(size) for n in range(count)}


def sent(hub: Hub, *repositories: str) -> int:
    """Bytes of files that the hub has sent of these repositories."""
    return sum(
        count
        for path, count in hub.counters.bytes_sent.items()
        if path.startswith(tuple(f"{name}/" for name in repositories))
    )


@pytest.fixture(params=["xfs", "btrfs", "ext4"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def machine(kind: str, hub: Hub, tmp_path: Path) -> Iterator[Machine]:
    """A machine with both programs and its store on a file system of this kind."""
    with disk(tmp_path, 512 * MIB, kind) as folder, Machine(folder, {"HF_ENDPOINT": hub.endpoint}) as running:
        yield running


def used(machine: Machine) -> int:
    subprocess.run(["sync", "-f", str(machine.store)], check=True)
    status = os.statvfs(machine.store)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def test_a_new_revision_fetches_what_is_new_and_takes_no_room_twice(
    kind: str, machine: Machine, hub: Hub
) -> None:
    files = shards()
    files["config.json"] = b"{}" * 300
    repository = hub.repo("org/model", files)
    assert machine.inline("old", {"repoId": "org/model"}) == (OK, "")
    before = used(machine)
    moved = {f"moved/{path}" if path == "model-07.bin" else path: data for path, data in files.items()}
    repository.commit({**moved, "model-03.bin": os.urandom(2 * MIB)})
    hub.counters.reset()

    assert machine.inline("new", {"repoId": "org/model", "revision": repository.branches["main"]}) == (OK, "")
    total = sum(map(len, files.values()))
    assert 0.04 < sent(hub, "org/model") / total < 0.06, "one shard of twenty, and the byte of the proof"
    room = used(machine) - before
    assert room > 0.9 * total if kind == "ext4" else room < 0.2 * total, room
    for path, data in {**moved, "model-03.bin": repository.at("main").files["model-03.bin"].content}.items():  # type: ignore[union-attr]
        assert (machine.target("new") / path).read_bytes() == data
    assert machine.logged("image sealed.*copied")
    for name in ("old", "new"):
        assert machine.unpublish(name) == (OK, "")


def test_workers_killed_in_the_middle_of_copying_leave_the_right_bytes_to_the_next(
    hub: Hub, tmp_path: Path
) -> None:
    files = shards()
    repository = hub.repo("org/model", files)
    machine = Machine(tmp_path, {"HF_ENDPOINT": hub.endpoint})
    machine.plugins.node.command[0:1] = [sys.executable, "-m", "tests.kernel.knife", str(tmp_path), "node"]
    with machine:
        assert machine.inline("old", {"repoId": "org/model"}) == (OK, "")
        new = {**files, "model-03.bin": os.urandom(2 * MIB)}
        repository.commit(new)
        hub.counters.reset()
        deaths = [
            {"point": point, "victim": "worker", "skip": 0, "times": 2}
            for point in ("copy begins", "copy done", "copy sync done")
        ]
        write_orders(tmp_path, [{**deaths[1], "skip": 1}, *deaths])
        pinned = {"repoId": "org/model", "revision": repository.branches["main"]}
        assert until(lambda: machine.inline("new", pinned) == (OK, ""))
        assert read_orders(tmp_path) == []
        assert (tmp_path / "hits").read_text().count("worker at copy") == 8
        assert {path: (machine.target("new") / path).read_bytes() for path in new} == new
        assert sent(hub, "org/model") <= 2 * MIB + 1
        for pod in ("old", "new"):
            assert machine.unpublish(pod) == (OK, "")


@pytest.fixture
def private(hub: Hub, tmp_path: Path) -> Repository:
    """A private repository of `OWNER`'s; `THIEF` is another user of the hub."""
    hub.tokens[THIEF["token"]] = "thief"
    files = {"model.bin": content(tmp_path / "model", 4 * MIB), "other.bin": os.urandom(MIB)}
    return hub.repo("org/private", files, private=True, tokens={OWNER["token"]})


def pointers(repository: Repository, *paths: str) -> dict[str, Declared]:
    """Large files as who knows their digests can list them, without having a byte of them."""
    found = repository.at("main")
    assert found is not None
    return {path: Declared(found.files[path].size, found.files[path].sha256) for path in paths}


def refused(machine: Machine, attributes: dict[str, str], secrets: dict[str, str], words: str) -> None:
    code, message = machine.inline("thief", attributes, secrets)
    assert code is WRONG, (code, message)
    assert words in message, (code, message)
    assert "s3cr3t" not in message, (code, message)
    assert not machine.target("thief").exists() or not os.listdir(machine.target("thief"))


def test_a_listing_that_claims_the_digests_of_a_cached_image_does_not_open_it(
    start: Start, hub: Hub, private: Repository
) -> None:
    """The same manifest, digest for digest.

    The thief's hub lists it, lets it be read, and has zeros in the files' place.
    """
    machine = start()
    hub.repo(
        "thief/pointers", pointers(private, "model.bin", "other.bin"), private=True, tokens={THIEF["token"]}
    )
    assert machine.inline("owner", {"repoId": "org/private"}, OWNER) == (OK, "")
    image = machine.sealed()
    for _ in range(2):
        refused(machine, {"repoId": "thief/pointers"}, THIEF, ".bin")
    volume = machine.create("volume", {"repoId": "thief/pointers"}, THIEF)
    code, message = machine.stage(volume, THIEF)
    assert code is WRONG
    assert ".bin" in message

    assert machine.sealed() == image, "it is the same image, and it stays for its owner"
    assert machine.inline("again", {"repoId": "org/private"}, OWNER) == (OK, "")
    assert len(machine.images()) == 1
    for pod in ("owner", "again"):
        assert machine.unpublish(pod) == (OK, "")


def test_who_waits_for_the_owners_fill_is_not_let_in_with_the_owner(
    start: Start, hub: Hub, private: Repository
) -> None:
    machine = start()
    hub.repo("thief/pointers", pointers(private, "model.bin", "other.bin"))
    hub.faults.rate = 2.5e6
    owner = machine.inline_soon("owner", {"repoId": "org/private"}, OWNER)
    assert until(lambda: sent(hub, "org/private") > MIB)
    thief = machine.inline_soon("thief", {"repoId": "thief/pointers"}, THIEF)
    assert answer_of(owner) == (OK, "")
    hub.faults.rate = None
    code, message = answer_of(thief)
    assert code is WRONG
    assert ".bin" in message
    assert machine.unpublish("owner") == (OK, "")


def test_one_file_of_another_repository_is_not_copied_into_ones_own(
    start: Start, hub: Hub, private: Repository
) -> None:
    machine = start()
    assert machine.inline("owner", {"repoId": "org/private"}, OWNER) == (OK, "")
    hub.repo("thief/mine", {"config.json": b"{}", **pointers(private, "model.bin")})
    refused(machine, {"repoId": "thief/mine"}, THIEF, "model.bin")
    assert len(machine.sealed()) == 1
    assert machine.unpublish("owner") == (OK, "")


def test_a_rightful_second_repository_shares_the_image_for_a_few_bytes(
    start: Start, hub: Hub, private: Repository, tmp_path: Path
) -> None:
    machine = start()
    assert machine.inline("owner", {"repoId": "org/private"}, OWNER) == (OK, "")
    files = {path: file.content for path, file in private.at("main").files.items()}  # type: ignore[union-attr]
    hub.repo("org/copy", files)
    assert machine.inline("second", {"repoId": "org/copy"}) == (OK, "")
    assert 0 < sent(hub, "org/copy") < 128 * 1024
    assert (machine.target("second") / "model.bin").read_bytes() == (tmp_path / "model").read_bytes()
    hub.counters.reset()
    assert machine.unpublish("second") == (OK, "")
    assert machine.inline("second", {"repoId": "org/copy"}) == (OK, "")
    assert sent(hub, "org/copy") == 0
    assert len(machine.sealed()) == 1
    for pod in ("owner", "second"):
        assert machine.unpublish(pod) == (OK, "")


def test_an_origin_that_ignores_ranges_can_be_compared_with_too(
    start: Start, hub: Hub, private: Repository
) -> None:
    machine = start()
    assert machine.inline("owner", {"repoId": "org/private"}, OWNER) == (OK, "")
    hub.repo("org/copy", {path: file.content for path, file in private.at("main").files.items()})  # type: ignore[union-attr]
    hub.faults.add(Fault("ignore-range", "org/copy/*"))
    assert machine.inline("second", {"repoId": "org/copy"}) == (OK, "")
    assert sent(hub, "org/copy") < 4 * 5 * MIB, (
        "it sends a file whole for a byte of it, but not for each range"
    )
    assert len(machine.sealed()) == 1
    for pod in ("owner", "second"):
        assert machine.unpublish(pod) == (OK, "")
