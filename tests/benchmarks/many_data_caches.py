"""1,000 DataCaches in a cluster: the operator's CPU, memory and API calls until all are Available, idle, and
after a kill in the middle.

Whoever comes after the one that was killed is the same pod's next container.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from csi.program.flags import DRIVER_NAME
from csi.registry.datacaches.data_caches import Phase
from csi.registry.datacaches.kubernetes import KubernetesDataCacheRegistry
from csi.topology import volume_segments
from tests.apiserver import DATA_CACHES, NOT_RUN, ApiServer, programs
from tests.benchmarks.rounds import say
from tests.benchmarks.table import Series, Table, at_most
from tests.benchmarks.volume import Setting, hub_parameters, plugins
from tests.cluster import audit
from tests.csi.registry.prewarms.kinds import make_node
from tests.operator_program import OperatorProgram
from tests.origins.hub import Hub
from tests.origins.onc_rpc import wait_until
from tests.plugins import Plugins

CACHES, IMAGES, BYTES = 1000, 200, 100_000
OPERATOR = "operator"
_CALLERS, _IDLE_SECONDS, _LONGEST = 16, 60.0, 1800.0
_MEMORY, _CALLS = at_most(128, " MB"), at_most(20, " calls")
_TICKS = os.sysconf("SC_CLK_TCK")


def measure(setting: Setting) -> list[Table]:
    """1,000 objects of 200 repositories, one node, an image store in a folder.

    Calls are those of the operator's own account, by the audit log.
    """
    if programs() is None:
        say(NOT_RUN)
        return []
    with ExitStack() as stack:
        cluster, hub = stack.enter_context(ApiServer([OPERATOR], audit=True)), stack.enter_context(Hub())
        for number in range(IMAGES):
            hub.repo(f"org/model-{number}", {"weights.bin": os.urandom(BYTES)})
        cluster.kubectl(
            "create", "clusterrolebinding", OPERATOR, "--clusterrole=cluster-admin", f"--user={OPERATOR}"
        )
        _node(cluster)
        environment, store = (
            {"HF_ENDPOINT": hub.endpoint, "POD_NAMESPACE": "default", "POD_NAME": "operator-1"},
            f"file://{setting.folder}/images",
        )
        (setting.folder / "images").mkdir()
        running = stack.enter_context(
            plugins(setting.folder, environment, ["--image-store", store], cluster.kubeconfig())
        )
        flags = ("--image-store", store)
        starts = _Starts(
            setting.folder, {**environment, "KUBECONFIG": str(cluster.kubeconfig(OPERATOR))}, flags
        )
        return _tables(cluster, hub, running, starts)


def _node(cluster: ApiServer) -> None:
    make_node(cluster, "node-1", {"kubernetes.io/hostname": "node-1", **volume_segments(DRIVER_NAME)})
    ready = [{"type": "Ready", "status": "True", "reason": "Said", "message": ""}]
    cluster.kubectl(
        "patch",
        "node",
        "node-1",
        "--subresource=status",
        "--type=merge",
        "-p",
        json.dumps({"status": {"conditions": ready}}),
    )


@dataclass(frozen=True)
class _Spent:
    """What the operator used: CPU seconds, its workers' included.

    Its most memory so far, in bytes, and its workers' together now; its calls.
    """

    seconds: float
    cpu: float
    peak: float
    workers: float
    calls: Counter[str]


class _Starts:
    """Starts operators, one after the other."""

    def __init__(self, folder: Path, environment: dict[str, str], flags: tuple[str, ...]) -> None:
        self._folder, self._environment, self._flags = folder, environment, flags
        self._count = 0

    def next(self) -> OperatorProgram:
        """One that is to be entered."""
        self._count += 1
        folder = self._folder / f"operator-{self._count}"
        folder.mkdir()
        return OperatorProgram(
            folder, "kubernetes", {"LTAIexample": "a-secret"}, self._environment, *self._flags
        )


class _Watched:
    """An operator at work, and what it has used since."""

    def __init__(self, cluster: ApiServer, operator: OperatorProgram) -> None:
        self._cluster, self._operator = cluster, operator
        self._began, self._cpu, self._calls = time.monotonic(), 0.0, len(audit.calls(cluster.audit_log))

    def spent(self) -> _Spent:
        """Since the last time this was asked."""
        cpu, calls = sum(map(_cpu_seconds, self._operator.processes())), audit.calls(self._cluster.audit_log)
        asked = Counter(
            f"{call.verb} {call.resource}{'/' * bool(call.subresource)}{call.subresource}"
            for call in calls[self._calls :]
            if call.user == OPERATOR
        )
        workers = sum(_memory(pid, "VmRSS") for pid in self._operator.processes()[1:])
        now = time.monotonic()
        found = _Spent(
            now - self._began, cpu - self._cpu, _memory(self._operator.pid, "VmHWM"), workers, asked
        )
        self._began, self._cpu, self._calls = now, cpu, len(calls)
        return found


def _tables(cluster: ApiServer, hub: Hub, running: Plugins, starts: _Starts) -> list[Table]:
    caches = KubernetesDataCacheRegistry(cluster.client(), "default")
    phases: dict[str, _Spent] = {}
    with _killed(starts) as operator:
        watched = _Watched(cluster, operator)
        _create(cluster)
        _wait(caches, CACHES // 3)
        phases[f"until {CACHES // 3} are Available, then killed"] = watched.spent()
    with starts.next() as operator:
        watched = _Watched(cluster, operator)
        _wait(caches, CACHES)
        phases["the next one, until all are"] = watched.spent()
        time.sleep(_IDLE_SECONDS)
        phases[f"idle for {_IDLE_SECONDS:.0f} s"] = watched.spent()
    sealed, sent = running.node.text().count("image sealed"), sum(hub.counters.bytes_sent.values())
    with starts.next() as operator:
        watched = _Watched(cluster, operator)
        time.sleep(_IDLE_SECONDS)
        phases[f"started where all are Available, {_IDLE_SECONDS:.0f} s"] = watched.spent()
    again = sum(hub.counters.bytes_sent.values()) - sent
    return [_used(phases), _called(phases), _filled(sealed, sent, again)]


@contextmanager
def _killed(starts: _Starts) -> Iterator[OperatorProgram]:
    """An operator that is killed at the end of the block; its workers end with it."""
    operator = starts.next().__enter__()
    try:
        yield operator
    finally:
        assert operator.process
        operator.process.kill()
        operator.process.wait()


def _create(cluster: ApiServer) -> None:
    def one(number: int) -> None:
        source = {"type": "URL", "options": hub_parameters(f"org/model-{number % IMAGES}")}
        thing = {
            "apiVersion": "eci.aliyun.com/v1alpha1",
            "kind": "DataCache",
            "metadata": {"name": f"cache-{number}"},
        }
        cluster.client().call(
            "POST", DATA_CACHES, body={**thing, "spec": {"path": f"/models/{number}", "dataSource": source}}
        )

    with ThreadPoolExecutor(_CALLERS) as callers:
        list(callers.map(one, range(CACHES)))
    say(f"{CACHES} DataCaches made")


def _wait(caches: KubernetesDataCacheRegistry, count: int) -> None:
    def there() -> bool:
        found = sum(cache.state.phase is Phase.AVAILABLE for cache in caches.find())
        say(f"{found} Available")
        time.sleep(1.0)
        return found >= count

    assert wait_until(there, _LONGEST), "they are not Available"


def _cpu_seconds(pid: int) -> float:
    """utime, stime, cutime and cstime of proc_pid_stat(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS


def _memory(pid: int, key: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def _used(phases: dict[str, _Spent]) -> Table:
    table = Table(f"datacache-operator and {CACHES} DataCaches", "MB", 1)
    for what, spent in phases.items():
        table.row(f"{what}: most memory", Series((spent.peak / 1e6,)), _MEMORY)
        table.notes.append(
            f"{what}: {spent.seconds:.0f} s, {spent.cpu:.1f} s of CPU ({spent.cpu / spent.seconds:.2f} "
            f"cores); workers {spent.workers / 1e6:.0f} MB"
        )
    return table


def _called(phases: dict[str, _Spent]) -> Table:
    table = Table(f"API calls of datacache-operator for each of {CACHES} DataCaches", "calls", 2)
    for what, spent in phases.items():
        table.row(what, Series((spent.calls.total() / CACHES,)), _CALLS)
        table.notes.append(
            f"{what}: {', '.join(f'{count} {call}' for call, count in spent.calls.most_common())}"
        )
    return table


def _filled(sealed: int, sent: int, again: int) -> Table:
    table = Table(f"{IMAGES} images of {CACHES} DataCaches", "images")
    table.compare(
        "filled", Series((float(sealed),)), [("images that there are", Series((float(IMAGES),)), at_most(1))]
    )
    table.notes.append(
        f"bytes that the hub sent: {sent}, of {IMAGES * BYTES} that there are; {again} after the last start"
    )
    return table
