"""200 pods at once on one node of a real cluster against one image: until all run, NodePublish, the
plugins' CPU and memory, API calls a volume."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tests.benchmarks.rounds import say, seconds
from tests.benchmarks.table import Series, Table, at_most
from tests.benchmarks.volume import Setting
from tests.cluster import audit, images, programs
from tests.cluster.driver_image import ready
from tests.cluster.installed import NAMESPACE, Driver, installed
from tests.cluster.kubectl import Kubectl, Object
from tests.cluster.lab import Lab, running
from tests.cluster.pods import applied
from tests.cluster.spaces import wait_for
from tests.cluster.volumes import claim, claim_volume, inline_volume, reader, storage_class
from tests.origins.hub import Hub

PODS, FEW, MANY = 200, 2, 5_000
_UP_SECONDS, _IDLE_SECONDS = 900, 60
_FEW, _MANY = "org/few", "org/many"
_MEMORY, _CALLS = at_most(64, " MB"), at_most(10, " calls")
_PROGRAMS = ("controller", "node")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Round:
    """200 pods came and went: seconds until all ran, ms of each NodePublish.

    By program CPU seconds (its workers' included) and API calls.
    """

    up: float
    publishes: Sequence[float]
    cpu: Mapping[str, float]
    calls: Mapping[str, Counter[str]]


def measure(setting: Setting) -> list[Table]:
    """The same pods without a volume are the baseline of how long it takes."""
    if why := programs.obstacle():
        say(f"NOT RUN: pods_of_a_node: {why}; make test-cluster builds what it needs")
        return []
    with running() as lab, Hub(addresses=lab.outside) as hub:
        for repo, files in ((_FEW, FEW), (_MANY, MANY)):
            hub.repo(repo, {f"part-{number}.bin": os.urandom(200) for number in range(files)})
        with installed_driver(lab, hub) as driver:
            return _tables(lab, driver)


@contextmanager
def installed_driver(lab: Lab, hub: Hub) -> Iterator[Driver]:
    """The driver of this checkout in `lab`; its image is the first of the three that are loaded last."""
    archives = [ready(programs.TREE, programs.cache()), *images.sidecars(lab.folder, lab.programs)]
    lab.load(*archives)
    with installed(lab, archives[0], archives[1:], hub.endpoint, logFormat="json") as driver:
        yield driver


def _tables(lab: Lab, driver: Driver) -> list[Table]:
    empty: Object = {"name": "data", "emptyDir": {}}
    rounds = {"without a volume": _round(lab, driver, empty)}
    rounds[f"inline, {FEW} files"] = _round(lab, driver, inline_volume({"repoId": _FEW}))
    rounds[f"inline, {MANY} files"] = _round(lab, driver, inline_volume({"repoId": _MANY}))
    with applied(lab.kubectl, storage_class("models", {"repoId": _FEW}), claim("model", "models")):
        rounds[f"one claim, {FEW} files"] = _round(lab, driver, claim_volume("model"))
    return [_time(rounds), _publishes(rounds), _cpu(rounds), _calls(rounds), _resident(driver)]


def _round(lab: Lab, driver: Driver, volume: Object) -> Round:
    """One pod goes first, so that the image is there."""
    with applied(lab.kubectl, reader("first", volume)):
        lab.kubectl.wait_running("first", seconds=300)
    cpu, log, asked = _cpu_seconds(driver), len(_published(driver)), len(audit.calls(lab.plane.audit_log))
    with applied(lab.kubectl, _deployment(volume)):
        up = seconds(lambda: _all_run(lab.kubectl))
    wait_for(
        lambda: not lab.kubectl.list("pod") and not driver.mounts(lab.nodes[0]), _UP_SECONDS, "all to be gone"
    )
    say(f"{PODS} pods in {up:.0f} s")
    spent = {name: after - cpu[name] for name, after in _cpu_seconds(driver).items()}
    return Round(up, _published(driver)[log:], spent, _asked(lab, asked))


def _deployment(volume: Object) -> Object:
    pod, labels = reader("reader", volume), {"app": "reader"}
    template = {"metadata": {"labels": labels}, "spec": pod["spec"]}
    spec = {"replicas": PODS, "selector": {"matchLabels": labels}, "template": template}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "readers", "namespace": "default"},
        "spec": spec,
    }


def _all_run(kubectl: Kubectl) -> None:
    kubectl.wait(
        "deployment",
        "readers",
        lambda found: found["status"].get("readyReplicas") == PODS,
        seconds=_UP_SECONDS,
    )


def _pod(driver: Driver, program: str) -> str:
    return str(driver.pod(program)["metadata"]["name"])


def _proc(driver: Driver, program: str, file: str) -> str:
    return driver.lab.kubectl.exec(_pod(driver, program), ["cat", f"/proc/1/{file}"], NAMESPACE)


def _cpu_seconds(driver: Driver) -> dict[str, float]:
    """utime, stime, cutime and cstime of proc_pid_stat(5)."""
    fields = {name: _proc(driver, name, "stat").rpartition(")")[2].split() for name in _PROGRAMS}
    return {name: sum(map(int, found[11:15])) / _TICKS for name, found in fields.items()}


def _published(driver: Driver) -> list[float]:
    """Milliseconds of each NodePublishVolume so far, by the plugin's log.

    Calls that had to be made again included.
    """
    lines = map(json.loads, driver.lab.kubectl.logs(_pod(driver, "node"), NAMESPACE).splitlines())
    return [line["ms"] for line in lines if line.get("method") == "NodePublishVolume"]


def _asked(lab: Lab, before: int) -> dict[str, Counter[str]]:
    """What each program asked the API server for: verb and resource."""
    new = audit.calls(lab.plane.audit_log)[before:]
    accounts = {name: f"system:serviceaccount:{NAMESPACE}:datacache-csi-{name}" for name in _PROGRAMS}
    return {
        name: Counter(f"{call.verb} {call.resource}" for call in new if call.user == user)
        for name, user in accounts.items()
    }


def _time(rounds: Mapping[str, Round]) -> Table:
    table = Table(f"{PODS} pods of one node at once, until all run", "s", 1)
    (first, baseline), *others = rounds.items()
    table.row(first, alone := Series((baseline.up,)))
    for what, one in others:
        table.compare(what, Series((one.up,)), [(first, alone, None)])
    return table


def _publishes(rounds: Mapping[str, Round]) -> Table:
    table = Table(f"NodePublish of these {PODS} pods", "ms", 1)
    for what, one in rounds.items():
        if one.publishes:
            series = Series(tuple(one.publishes))
            for label, share in (("p50", 0.5), ("p99", 0.99)):
                table.row(f"{what}: {label} of {len(one.publishes)}", Series((series.percentile(share),)))
    return table


def _cpu(rounds: Mapping[str, Round]) -> Table:
    table = Table(f"CPU for {PODS} pods, from the first to none left", "s", 2)
    for what, one in rounds.items():
        for name, spent in one.cpu.items():
            table.row(f"{what}: {name}", Series((spent,)))
    return table


def _calls(rounds: Mapping[str, Round]) -> Table:
    table = Table(f"API calls a pod, of {PODS} pods", "calls", 2)
    for what, one in rounds.items():
        for name, counted in one.calls.items():
            table.row(f"{what}: {name}", Series((counted.total() / PODS,)), _CALLS)
            table.notes.append(
                f"{what}: {name}: "
                f"{', '.join(f'{count} {call}' for call, count in counted.most_common()) or 'none'}"
            )
    return table


def _resident(driver: Driver) -> Table:
    say(f"idle for {_IDLE_SECONDS} s")
    time.sleep(_IDLE_SECONDS)
    table = Table(
        f"Resident memory {_IDLE_SECONDS} s behind all that: {4 * PODS} pods came and went", "MB", 1
    )
    for name in _PROGRAMS:
        status = dict(line.split(":", 1) for line in _proc(driver, name, "status").splitlines())
        table.row(name, Series((int(status["VmRSS"].split()[0]) * 1024 / 1e6,)), _MEMORY)
    return table
