"""Two hundred calls that wait for slow fills: what kubelet's other calls take meanwhile, and how soon
after the seal the pods are ready."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import grpc

from csi.pb import csi_pb2 as pb
from csi.pb import csi_pb2_grpc
from tests.benchmarks.rounds import seconds
from tests.benchmarks.table import Series, Table, at_most
from tests.benchmarks.volume import Setting
from tests.kernel import requests
from tests.kernel.machine import MIB, Machine, content, json_lines
from tests.kernel.requests import OK, answer_of
from tests.origins.hub import Hub

CALLS, IMAGES, EARLY = 200, 4, 40
_RATE = 24e6


def measure(setting: Setting) -> list[Table]:
    """Milliseconds of one call; a fill takes about four seconds."""
    with (
        Hub() as hub,
        Machine(setting.folder, {"HF_ENDPOINT": hub.endpoint}, ["--log-format", "json"]) as machine,
    ):
        hub.repo("org/small", {"config.json": b"{}"})
        for number in range(IMAGES):
            hub.repo(f"org/slow{number}", {"model.bin": content(setting.folder / f"slow{number}", 48 * MIB)})
        for pod in range(EARLY):
            assert machine.inline(f"early{pod}", {"repoId": "org/small"}) == (OK, "")
        hub.faults.rate = _RATE
        ready: dict[str, float] = {}
        waiting = {
            f"pod{n}": machine.inline_soon(f"pod{n}", {"repoId": f"org/slow{n % IMAGES}"})
            for n in range(CALLS)
        }
        for pod, call in waiting.items():
            call.add_done_callback(lambda _, pod=pod: ready.setdefault(pod, time.time()))
        took = _other_calls(machine, lambda: not any(call.done() for call in waiting.values()))
        assert [answer_of(call) for call in waiting.values()] == [(OK, "")] * CALLS
        table = Table(f"Other calls while {CALLS} wait for {IMAGES} fills", "ms", 1)
        for name, times in took.items():
            longest = Series((1000 * max(times),))
            table.row(f"{name}, longest of {len(times)}", longest, at_most(1000, " ms"))
        table.row(
            "ready after the seal, longest",
            Series((1000 * max(_after_seal(machine, ready)),)),
            at_most(5000, " ms"),
        )
        for pod in [*waiting, "early0"]:
            machine.unpublish(pod)
    return [table]


def _other_calls(machine: Machine, while_: Callable[[], bool]) -> dict[str, list[float]]:
    """Seconds of each of kubelet's other calls, made by turns."""
    probe = csi_pb2_grpc.IdentityStub(
        grpc.insecure_channel(machine.plugins.node.endpoint.replace("unix://", "unix:"))
    ).Probe
    pods = [f"early{n}" for n in range(1, EARLY)]
    calls: dict[str, Callable[[], Any]] = {
        "Probe": lambda: probe(pb.ProbeRequest(), timeout=30),
        "stats": lambda: machine.condition("early0"),
        "unpublish": lambda: machine.unpublish(pods.pop()),
    }
    took: dict[str, list[float]] = {name: [] for name in calls}
    while while_():
        for name, call in calls.items():
            if name != "unpublish" or pods:
                took[name].append(seconds(call))
        time.sleep(0.02)
    for pod in pods:
        machine.unpublish(pod)
    return took


def _after_seal(machine: Machine, ready: dict[str, float]) -> list[float]:
    """Of each pod, seconds from the seal of its image to its answer."""
    lines = [line for line in json_lines(machine.plugins.node.text()) if line["message"] == "image sealed"]
    sealed = {line["image"]: datetime.fromisoformat(line["time"]).timestamp() for line in lines}
    records = machine.store / "volumes"
    digests = {
        pod: re.search('"digest": "([0-9a-f]+)"', (records / f"{requests.inline_id(pod)}.json").read_text())
        for pod in ready
    }
    return [ready[pod] - sealed[found[1]] for pod, found in digests.items() if found]
