"""Calls that wait for a slow fill: many at a time, ended by their caller, by a pod's deletion, or by the
plugin's own limits.

How long others take meanwhile `make bench` measures (waiting_calls).
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import grpc
import pytest

from csi.pb import csi_pb2 as pb
from csi.pb import csi_pb2_grpc
from tests.kernel import requests
from tests.kernel.conftest import Start
from tests.kernel.machine import MIB, Machine, content, until
from tests.kernel.requests import OK, answer_of
from tests.origins.hub import Hub

pytestmark = pytest.mark.kernel

ABORTED = grpc.StatusCode.ABORTED
CALLS, IMAGES = 200, 4
SLOW = 24e6
# What a stopped fill over four connections may have to fetch again: its ten buffers, and what was not in the
# journal yet.
LOST = (40 + 64) * MIB


def repository(hub: Hub, folder: Path, name: str = "org/slow", size: int = 96 * MIB) -> dict[str, str]:
    """A repository of one random file; its parameters."""
    hub.repo(name, {"model.bin": content(folder / name.replace("/", "-"), size)})
    return {"repoId": name}


def fills(machine: Machine) -> list[Path]:
    """The fills under way that have told progress."""
    return list((machine.store / "images").glob("*/progress.json"))


def sent(hub: Hub) -> int:
    """Bytes of file content that the hub has sent."""
    return sum(hub.counters.bytes_sent.values())


def test_two_hundred_calls_wait_while_probe_stats_and_unpublish_answer(
    start: Start, hub: Hub, tmp_path: Path
) -> None:
    hub.repo("org/small", {"config.json": b"{}"})
    slow = [repository(hub, tmp_path, f"org/slow{n}", 48 * MIB) for n in range(IMAGES)]
    machine = start("--log-format", "json")
    for pod in range(40):
        assert machine.inline(f"early{pod}", {"repoId": "org/small"}) == (OK, "")
    # So slow that nothing ends before it is let go.
    hub.faults.rate = 1e6
    waiting = [machine.inline_soon(f"pod{n}", slow[n % IMAGES]) for n in range(CALLS)]
    assert until(lambda: len(fills(machine)) == 2)

    probe = csi_pb2_grpc.IdentityStub(
        grpc.insecure_channel(machine.plugins.node.endpoint.replace("unix://", "unix:"))
    ).Probe
    for pod in range(1, 40):
        assert probe(pb.ProbeRequest(), timeout=60)
        assert machine.condition("early0")
        assert machine.unpublish(f"early{pod}") == (OK, "")
    assert not [call for call in waiting if call.done()]

    hub.faults.rate = None
    assert [answer_of(call) for call in waiting] == [(OK, "")] * CALLS


def test_deleting_a_pod_ends_its_wait_and_leaves_the_others(start: Start, hub: Hub, tmp_path: Path) -> None:
    attributes = repository(hub, tmp_path)
    machine = start()
    hub.faults.rate = SLOW
    deleted, kept = machine.inline_soon("deleted", attributes), machine.inline_soon("kept", attributes)
    assert until(lambda: fills(machine))

    assert machine.unpublish("deleted") == (OK, "")
    code, message = answer_of(deleted)
    assert (code, message) == (ABORTED, "the volume is being unpublished")
    assert not machine.sealed()
    assert not kept.done()

    hub.faults.rate = None
    assert answer_of(kept) == (OK, "")
    assert not machine.target("deleted").exists()
    assert machine.unpublish("kept") == (OK, "")
    assert machine.half_made() == []


def test_a_pod_deleted_and_made_again_waits_on_the_same_fill(start: Start, hub: Hub, tmp_path: Path) -> None:
    attributes = repository(hub, tmp_path)
    machine = start()
    hub.faults.rate = SLOW
    first = machine.inline_soon("pod", attributes)
    assert until(lambda: fills(machine))
    machine.unpublish("pod")
    assert answer_of(first)[0] is ABORTED
    second = machine.inline_soon("pod", attributes)
    hub.faults.rate = None
    assert answer_of(second) == (OK, "")
    assert sent(hub) <= 96 * MIB + 4


def test_more_calls_than_half_the_threads_are_turned_away_at_once(
    start: Start, hub: Hub, tmp_path: Path
) -> None:
    attributes = repository(hub, tmp_path)
    machine = start("--rpc-threads", "8")
    hub.faults.rate = SLOW
    first = machine.inline_soon("pod0", attributes)
    assert until(lambda: fills(machine))
    calls = [first, *(machine.inline_soon(f"pod{n}", attributes) for n in range(1, 5))]
    over = until(lambda: [call for call in calls if call.done()])
    assert [answer_of(call) for call in over] == [
        (ABORTED, "4 calls are waiting already; the work goes on, call again")
    ]
    assert not machine.sealed()
    hub.faults.rate = None
    assert [answer_of(call) for call in calls if call not in over] == [(OK, "")] * 4


def test_a_call_that_runs_out_of_time_tells_the_progress(start: Start, hub: Hub, tmp_path: Path) -> None:
    attributes = repository(hub, tmp_path)
    machine = start()
    hub.faults.rate = SLOW / 3
    # Until bytes have come there is none; that is soon, or later on a busy machine.
    early = ("still resolving", "filling the cache: 0 of")
    answers = (machine.inline("pod", attributes, timeout=3) for _ in range(20))
    code, message = next(answer for answer in answers if not answer[1].startswith(early))
    assert code is ABORTED
    assert re.fullmatch(
        r"filling the cache: [1-9]\d* of 96 MiB, [1-9][\d.]* MiB/s, about \d+ s left; call again, the fill "
        r"goes on",
        message,
    )
    hub.faults.rate = None
    assert machine.inline("pod", attributes) == (OK, "")
    assert sent(hub) <= 96 * MIB + 4


def test_a_fill_nobody_waits_for_is_stopped_and_later_goes_on(start: Start, hub: Hub, tmp_path: Path) -> None:
    size = 256 * MIB
    attributes = repository(hub, tmp_path, size=size)
    machine = start("--fill-grace", "1s", "--fill-connections", "4")
    hub.faults.rate = 50e6
    call = machine.inline_soon("pod", attributes)
    assert until(lambda: sent(hub) > LOST + 4 * MIB, 120)
    call.cancel()
    stopped = until(lambda: machine.logged("fill ended"))
    assert stopped
    assert "the work was stopped" in stopped[0]
    assert not machine.sealed()
    before = until(lambda: quiet(hub))
    assert before < size

    hub.faults.rate = None
    assert machine.inline("pod", attributes) == (OK, "")
    assert sent(hub) <= size + LOST


def quiet(hub: Hub) -> int:
    """Bytes sent so far, once they do not grow any more; else 0."""
    before = sent(hub)
    time.sleep(0.5)
    return before if sent(hub) == before else 0


def test_a_caller_that_hangs_up_ends_its_wait(start: Start, hub: Hub, tmp_path: Path) -> None:
    attributes = repository(hub, tmp_path)
    machine = start()
    hub.faults.rate = SLOW
    call = machine.inline_soon("pod", attributes)
    assert until(lambda: fills(machine))
    call.cancel()
    assert until(lambda: machine.logged("method=NodePublishVolume .*code=ABORTED .*the caller has hung up"))
    hub.faults.rate = None
    assert until(machine.sealed)
    time.sleep(0.2)
    assert machine.half_made() == []


def test_a_resolve_longer_than_the_call_goes_on_and_the_next_call_finds_it(start: Start, hub: Hub) -> None:
    hub.repo("org/small", {"config.json": b"{}"})
    machine = start()
    hub.faults.latency = 1.5
    request = requests.create("volume", {"repoId": "org/small"})
    code, message = requests.answer(machine.controller.CreateVolume, request, 3)
    assert code is ABORTED
    assert message == "still resolving HuggingFace/Model org/small@main; call again, the work goes on"
    assert requests.answer(machine.controller.CreateVolume, request)[0] is OK
    assert hub.counters.requests["tree"] == 1


def test_taking_a_volume_away_ends_its_wait_for_a_resolve(start: Start, hub: Hub) -> None:
    hub.repo("org/small", {"config.json": b"{}"})
    machine = start()
    hub.faults.latency = 1.5
    call = machine.inline_soon("pod", {"repoId": "org/small"})
    assert until(lambda: hub.counters.accepted["hub"])
    assert machine.unpublish("pod") == (OK, "")
    assert answer_of(call) == (ABORTED, "the volume is being unpublished")
    hub.faults.latency = 0.0
    assert until(machine.images)
    assert machine.sealed() == machine.mounts() == []
    assert machine.plugins.node.stop() == 0
    machine.restart_node()
    assert machine.images() == []


def test_sigterm_ends_the_wait_for_a_resolve_and_its_worker(start: Start, hub: Hub) -> None:
    hub.repo("org/small", {"config.json": b"{}"})
    machine = start()
    hub.faults.latency = 2.0
    call = machine.controller.CreateVolume.future(
        requests.create("volume", {"repoId": "org/small"}), timeout=30
    )
    assert until(lambda: hub.counters.accepted["hub"])
    workers = machine.plugins.controller.children()
    assert workers
    assert machine.plugins.controller.stop() == 0
    assert answer_of(call) == (ABORTED, "plugin is shutting down; retry")
    assert until(lambda: not [pid for pid in workers if Path(f"/proc/{pid}").exists()])
