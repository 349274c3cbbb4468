"""ListVolumes in pages, while volumes come and go."""

from __future__ import annotations

import grpc
import pytest

from csi.pb import csi_pb2 as pb
from tests.kernel import requests
from tests.kernel.conftest import Start
from tests.kernel.machine import Machine
from tests.origins.hub import Hub

pytestmark = pytest.mark.kernel

MODEL = {"repoId": "org/model"}


@pytest.fixture
def machine(start: Start, hub: Hub) -> Machine:
    """A controller with a repository to create volumes from."""
    hub.repo("org/model", {"config.json": b"{}"})
    return start()


def page(machine: Machine, token: str = "", most: int = 0) -> tuple[list[str], str]:
    """The ids of one page, and the next one's token."""
    reply = machine.controller.ListVolumes(
        pb.ListVolumesRequest(max_entries=most, starting_token=token), timeout=30
    )
    return [entry.volume.volume_id for entry in reply.entries], reply.next_token


def delete(machine: Machine, volume_id: str) -> None:
    machine.controller.DeleteVolume(requests.delete(volume_id), timeout=30)


def test_pages_show_every_volume_that_stays_exactly_once(machine: Machine) -> None:
    ids = [machine.create(f"volume{number}", MODEL).volume_id for number in range(40)]
    doomed, seen, token, number = ids[::3], [], "", 0
    while number == 0 or token:
        shown, token = page(machine, token, 7)
        assert len(shown) == 7 or not token
        seen += shown
        machine.create(f"newcomer{number}", MODEL)
        # One that was shown already, and one that may still be to come.
        for volume_id in [doomed.pop() for _ in range(min(2, len(doomed)))]:
            delete(machine, volume_id)
        number += 1
    staying = set(ids) - set(ids[::3])
    assert len(seen) == len(set(seen))
    assert staying <= set(seen)
    everything = page(machine)[0]
    assert everything == sorted(everything)
    assert staying <= set(everything)


def test_a_token_whose_volume_is_gone_still_leads_on(machine: Machine) -> None:
    ids = sorted(machine.create(f"volume{number}", MODEL).volume_id for number in range(4))
    shown, token = page(machine, "", 2)
    assert shown == ids[:2]
    delete(machine, ids[1])
    assert page(machine, token, 2) == (ids[2:], "")


def test_a_token_that_was_never_given_out_is_refused(machine: Machine) -> None:
    code, message = requests.answer(
        machine.controller.ListVolumes, pb.ListVolumesRequest(starting_token="invalid-token")
    )
    assert code is grpc.StatusCode.ABORTED
    assert "starting_token" in message
