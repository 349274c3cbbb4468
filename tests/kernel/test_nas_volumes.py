"""Volumes of a NAS: what changed behind them is said, and inline volumes read only what the operator has
listed."""

from __future__ import annotations

import os
import re
from pathlib import Path

import grpc
import pytest

from tests.kernel.conftest import Start
from tests.kernel.requests import OK
from tests.origins.ganesha import Ganesha

pytestmark = pytest.mark.kernel

CHANGED, DENIED = grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.PERMISSION_DENIED


@pytest.fixture
def models(nas: Ganesha, tmp_path: Path) -> Path:
    """A folder of the export."""
    folder = nas.exports[0].path / tmp_path.name
    (folder / "small").mkdir(parents=True)
    (folder / "weights.bin").write_bytes(b"1" * 10_000)
    (folder / "small" / "config.json").write_bytes(b"{}")
    return folder


def parameters(nas: Ganesha, folder: Path) -> dict[str, str]:
    """The folder, as a StorageClass names it."""
    return {
        "server": nas.server,
        "path": str(folder),
        "options": f"nolock,port={nas.port},mountport={nas.mount_port}",
    }


@pytest.mark.parametrize("cached", [True, False], ids=["image on the node", "no image yet"])
def test_a_file_that_changed_is_told_and_a_new_volume_picks_it_up(
    start: Start, nas: Ganesha, models: Path, cached: bool
) -> None:
    machine = start("--proof-ttl", "0s")
    volume = machine.create("old", parameters(nas, models))
    if cached:
        assert machine.stage(volume) == machine.unstage(volume.volume_id) == (OK, "")
    (models / "weights.bin").write_bytes(b"2" * 10_000)

    code, message = machine.stage(volume)
    assert code is CHANGED
    assert f"NAS 127.0.0.1:{models} has changed since this volume was created" in message
    assert "create a new volume" in message
    assert ("'weights.bin' changed" in message) is cached
    assert machine.mounts() == []
    assert machine.half_made() == []

    new = machine.create("new", parameters(nas, models))
    assert (machine.show(new, "pod") / "weights.bin").read_bytes() == b"2" * 10_000


def test_a_mounted_volume_keeps_what_it_was_created_from(start: Start, nas: Ganesha, models: Path) -> None:
    machine = start("--proof-ttl", "0s")
    volume = machine.create("old", parameters(nas, models))
    target = machine.show(volume, "pod")
    (models / "weights.bin").write_bytes(b"2" * 10_000)
    assert (target / "weights.bin").read_bytes() == b"1" * 10_000
    assert machine.stage(volume) == machine.publish(volume, "another") == (OK, "")


@pytest.mark.parametrize(
    "allowed", ["", "{server}:{models}/small", "{server}:{models}/weights", "other:{models}"]
)
def test_an_inline_volume_of_an_unlisted_nas_is_refused(
    start: Start, nas: Ganesha, models: Path, allowed: str
) -> None:
    machine = start("--allow-inline-nas", allowed.format(server=nas.server, models=models))
    code, message = machine.inline("pod", parameters(nas, models))
    assert code is DENIED
    assert "not on the operator's list" in message
    assert f"--allow-inline-nas {nas.server}:{models}" in message
    assert machine.images() == []
    assert machine.half_made() == []


@pytest.mark.parametrize("allowed", ["*", "{server}:{models}", "other:/x,{server}:{export}"])
def test_an_inline_volume_of_a_listed_nas_is_mounted(
    start: Start, nas: Ganesha, models: Path, allowed: str
) -> None:
    machine = start(
        "--allow-inline-nas", allowed.format(server=nas.server, models=models, export=nas.exports[0].path)
    )
    assert machine.inline("pod", parameters(nas, models / "small")) == (OK, "")
    assert (machine.target("pod") / "config.json").read_bytes() == b"{}"
    assert machine.unpublish("pod") == (OK, "")
    assert machine.half_made() == []


def test_a_cached_image_is_not_handed_to_a_user_who_may_not_read(
    start: Start, nas: Ganesha, models: Path
) -> None:
    owner = 1234
    for path in (models, models / "small", models / "weights.bin", models / "small" / "config.json"):
        os.chown(path, owner, owner)
    (models / "weights.bin").chmod(0o600)
    machine = start("--allow-inline-nas", "*")
    asked = parameters(nas, models)
    assert machine.inline("owner", {**asked, "uid": str(owner), "gid": str(owner)}) == (OK, "")
    code, message = machine.inline("other", {**asked, "uid": "4321", "gid": "4321"})
    assert code is DENIED
    assert "uid 4321" in message
    assert "weights.bin" in message
    assert machine.unpublish("owner") == (OK, "")
    assert len(machine.sealed()) == 1
    assert machine.half_made() == []


def test_with_the_server_down_only_what_was_proven_mounts(start: Start, nas: Ganesha, models: Path) -> None:
    machine = start("--proof-ttl", "0s", "--allow-inline-nas", "*")
    asked = parameters(nas, models)
    volume = machine.create("volume", asked)
    assert machine.stage(volume) == machine.unstage(volume.volume_id) == (OK, "")
    nas.stop()
    try:
        code, message = machine.inline("unproven", {**asked, "uid": "1234"})
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "does not accept connections" in message
        assert (machine.show(volume, "pod") / "weights.bin").read_bytes() == b"1" * 10_000
        assert machine.inline("inline", asked) == (OK, "")
    finally:
        nas.start()


def test_what_one_identity_has_read_is_no_source_for_another(
    start: Start, nas: Ganesha, models: Path
) -> None:
    """The image of a whole tree is compared first, and files of one identity's image are not copied into
    another's."""
    machine = start("--proof-ttl", "0s")

    def copied(name: str, uid: str) -> list[int]:
        """Show what the folder holds now as `uid` reads it.

        The bytes that each fill so far had from other images.
        """
        assert machine.stage(machine.create(name, {**parameters(nas, models), "uid": uid})) == (OK, "")
        return [
            int(number)
            for line in machine.logged("image sealed")
            for number in re.findall(r"copied=(\d+)", line)
        ]

    assert copied("first", "1000") == [0]
    assert not machine.logged("image verified against its origin")
    assert copied("second", "2000") == [0]
    assert len(machine.logged("image verified against its origin")) == 1
    (models / "one.bin").write_bytes(b"3" * 5000)
    assert copied("third", "3000") == [0, 0]
    assert copied("fourth", "3000") == [0, 0]
    (models / "two.bin").write_bytes(b"4" * 5000)
    assert copied("fifth", "3000") == [0, 0, 15_002]
    fifth = machine.create("fifth", {**parameters(nas, models), "uid": "3000"})
    assert (machine.show(fifth, "pod") / "one.bin").read_bytes() == b"3" * 5000
