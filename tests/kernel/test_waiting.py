"""Calls that wait for a slow fill: many at a time, ended by their caller, by a pod's deletion, or by the plugin's own limits."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi.pb import csi_pb2 as pb
from csi.pb import csi_pb2_grpc
from tests.kernel import requests
from tests.kernel.conftest import Start
from tests.kernel.machine import MIB, Machine, content, json_lines, until
from tests.kernel.requests import OK, answer_of
from tests.origins.hub import Hub

pytestmark = pytest.mark.kernel

ABORTED = grpc.StatusCode.ABORTED
CALLS, IMAGES = 200, 4
SLOW = 24e6
# The bounds, in seconds.
ANSWER_WITHIN, READY_WITHIN = 1.0, 5.0
# What a stopped fill over four connections may have to fetch again: its ten buffers, and what was not in the journal yet.
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
    hub.faults.rate = SLOW
    ready: dict[str, float] = {}
    waiting = {f"pod{n}": machine.inline_soon(f"pod{n}", slow[n % IMAGES]) for n in range(CALLS)}
    for pod, call in waiting.items():
        call.add_done_callback(lambda _, pod=pod: ready.setdefault(pod, time.time()))
    assert until(lambda: len(fills(machine)) == 2)
    assert not ready

    took = other_calls(machine, lambda: not any(call.done() for call in waiting.values()))
    assert [answer_of(call) for call in waiting.values()] == [(OK, "")] * CALLS
    after_seal = seconds_after_seal(machine, ready)

    print(f"\n{CALLS} calls wait on {IMAGES} fills; longest of other calls meanwhile (ms), and how many:")
    for name, times in took.items():
        print(f"  {name:12s} {max(times) * 1000:7.1f}  {len(times)}")
    print(f"ready after the seal: longest {max(after_seal) * 1000:.0f} ms of {len(after_seal)}")
    assert max(max(times) for times in took.values()) <= ANSWER_WITHIN
    assert max(after_seal) <= READY_WITHIN


def other_calls(machine: Machine, while_: Callable[[], bool]) -> dict[str, list[float]]:
    """Seconds of each of kubelet's other calls, made by turns."""
    probe = csi_pb2_grpc.IdentityStub(
        grpc.insecure_channel(machine.plugins.node.endpoint.replace("unix://", "unix:"))
    ).Probe
    took: dict[str, list[float]] = {"Probe": [], "stats": [], "unpublish": []}
    pods = [f"early{n}" for n in range(1, 40)]
    while while_():
        timed(took["Probe"], lambda: probe(pb.ProbeRequest(), timeout=30))
        stats = requests.stats(requests.inline_id("early0"), machine.target("early0"))
        timed(took["stats"], lambda asked=stats: machine.node.NodeGetVolumeStats(asked, timeout=30))
        if pods:
            timed(took["unpublish"], lambda: machine.unpublish(pods.pop()))
        time.sleep(0.02)
    assert all(took.values())
    return took


def timed(took: list[float], work: Callable[[], Any]) -> None:
    began = time.monotonic()
    work()
    took.append(time.monotonic() - began)


def seconds_after_seal(machine: Machine, ready: dict[str, float]) -> list[float]:
    """Of each pod, how long after the seal of its image it was ready."""
    lines = [line for line in json_lines(machine.plugins.node.text()) if line["message"] == "image sealed"]
    sealed = {line["image"]: datetime.fromisoformat(line["time"]).timestamp() for line in lines}
    records = machine.store / "volumes"
    digests = {
        pod: re.search('"digest": "([0-9a-f]+)"', (records / f"{requests.inline_id(pod)}.json").read_text())
        for pod in ready
    }
    return [ready[pod] - sealed[found[1]] for pod, found in digests.items() if found]


def test_deleting_a_pod_ends_its_wait_and_leaves_the_others(start: Start, hub: Hub, tmp_path: Path) -> None:
    attributes = repository(hub, tmp_path)
    machine = start()
    hub.faults.rate = SLOW
    deleted, kept = machine.inline_soon("deleted", attributes), machine.inline_soon("kept", attributes)
    assert until(lambda: fills(machine))

    assert machine.unpublish("deleted") == (OK, "")
    code, message = answer_of(deleted, 5)
    assert (code, message) == (ABORTED, "the volume is being unpublished")
    assert not machine.sealed() and not kept.done()

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
    assert answer_of(first, 5)[0] is ABORTED
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
    hub.faults.rate = SLOW
    code, message = machine.inline("pod", attributes, timeout=3)
    print(f"\n{message}")
    assert code is ABORTED
    assert re.fullmatch(
        r"filling the cache: [1-9]\d* of 96 MiB, [1-9][\d.]* MiB/s, about \d+ s left; call again, the fill goes on",
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
    assert stopped and "the work was stopped" in stopped[0]
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
    assert answer_of(call, 1) == (ABORTED, "the volume is being unpublished")
    hub.faults.latency = 0.0
    assert until(machine.images) and machine.sealed() == machine.mounts() == []
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
    assert workers and machine.plugins.controller.stop() == 0
    assert answer_of(call) == (ABORTED, "the plugin is leaving; its successor goes on")
    assert until(lambda: not [pid for pid in workers if Path(f"/proc/{pid}").exists()])
