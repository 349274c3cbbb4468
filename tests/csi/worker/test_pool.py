"""Worker processes on the plugin's side: warm, reaped, retried once, stopped."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from csi.errors import Busy, DataCacheError, InvalidParameter, PermissionDenied, WorkerDied
from csi.images.progress import FillProgress
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.content_ref import Secrets
from csi.parameters.dialects.hub import HubSpec
from csi.worker.operations import Operation, PinSource
from csi.worker.pool import WorkerCall, WorkerPool, build_worker_command
from csi.worker.protocol import OPERATIONS

SCRIPTED = (sys.executable, str(Path(__file__).with_name("scripted_worker.py")))
PINNED = CacheSpec(HubSpec("HuggingFace/Model", "org/name", "0123456789abcdef0123456789abcdef01234567"))


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    made = WorkerPool({"resolve": 2, "fill": 1}, command=SCRIPTED)
    yield made
    made.close()


@dataclass(frozen=True)
class Scripted(Operation[dict]):
    """An operation of the scripted worker alone."""

    name = "scripted"
    do: str
    secrets: Secrets
    more: Mapping[str, str]

    @staticmethod
    def encode_result(result: dict) -> dict:
        return result

    @staticmethod
    def decode_result(wire: Mapping[str, Any]) -> dict:
        return dict(wire)


def ask(do: str, secrets: dict[str, str] | None = None, **more: str) -> Scripted:
    return Scripted(do, Secrets(secrets or {}), more)


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def eventually(holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.01)
    return False


def in_thread(work: Callable[[], object]) -> queue.SimpleQueue[object]:
    """What `work` returned or raised, when it has."""
    answers: queue.SimpleQueue[object] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put(work())
        except BaseException as error:
            answers.put(error)

    threading.Thread(target=run, daemon=True).start()
    return answers


def test_a_warm_worker_is_used_again_in_any_lane(pool: WorkerPool) -> None:
    pids = {pool.call(lane, ask("answer"))["pid"] for lane in ("resolve", "fill", "resolve")}
    assert len(pids) == 1


def test_a_lane_has_so_many_workers_at_a_time(pool: WorkerPool, tmp_path: Path) -> None:
    started: queue.SimpleQueue[FillProgress] = queue.SimpleQueue()
    ends = [tmp_path / "one", tmp_path / "two"]
    answers = [
        in_thread(lambda end=end: pool.call("fill", ask("wait", until=str(end)), on_progress=started.put))
        for end in ends
    ]
    started.get(timeout=20)
    # The other lane is free, the second call of this one has not begun.
    assert pool.call("resolve", ask("answer"))["pid"]
    assert started.empty()
    for end in ends:
        end.touch()
    assert len({answer.get(timeout=20)["pid"] for answer in answers}) == 1  # type: ignore[index]


def test_an_idle_worker_is_stopped_after_its_time() -> None:
    pool = WorkerPool({"resolve": 1}, idle_timeout=0.2, command=SCRIPTED)
    pid = pool.call("resolve", ask("answer"))["pid"]
    assert eventually(lambda: not alive(pid))
    other = pool.call("resolve", ask("answer"))["pid"]
    assert other != pid
    pool.close()
    assert not alive(other)


def test_progress_is_heard_before_the_result(pool: WorkerPool) -> None:
    heard: list[FillProgress] = []
    pool.call("fill", ask("progress"), on_progress=heard.append)
    assert heard == [FillProgress(done, 3) for done in (1, 2, 3)]


def test_an_error_has_the_class_it_had_in_the_worker_which_stays_warm(pool: WorkerPool) -> None:
    pid = pool.call("resolve", ask("answer"))["pid"]
    with pytest.raises(PermissionDenied, match="not for you"):
        pool.call("resolve", ask("refuse"))
    assert pool.call("resolve", ask("answer"))["pid"] == pid


def test_a_crash_costs_one_retry(pool: WorkerPool, tmp_path: Path) -> None:
    assert pool.call("resolve", ask("die once", marker=str(tmp_path / "marker")))["pid"]


@pytest.mark.parametrize("death", ["die", "die in a word"])
def test_a_second_crash_is_told(pool: WorkerPool, death: str) -> None:
    with pytest.raises(WorkerDied, match="exit status 3"):
        pool.call("resolve", ask(death))
    assert pool.call("resolve", ask("answer"))


def test_a_stop_during_the_retry_is_busy_too(pool: WorkerPool, tmp_path: Path) -> None:
    started: queue.SimpleQueue[FillProgress] = queue.SimpleQueue()
    call = WorkerCall()
    request = ask("die once", marker=str(tmp_path / "marker"), until=str(tmp_path / "never"))
    answer = in_thread(lambda: pool.call("resolve", request, call, started.put))
    started.get(timeout=20)
    call.stop()
    assert isinstance(answer.get(timeout=20), Busy)


def test_workers_that_died_idle_cost_nothing(pool: WorkerPool, tmp_path: Path) -> None:
    end = tmp_path / "end"
    started: queue.SimpleQueue[FillProgress] = queue.SimpleQueue()
    waiting = in_thread(lambda: pool.call("resolve", ask("wait", until=str(end)), on_progress=started.put))
    started.get(timeout=20)
    pids = {pool.call("resolve", ask("answer"))["pid"]}
    end.touch()
    pids.add(waiting.get(timeout=20)["pid"])  # type: ignore[index]
    assert len(pids) == 2
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert eventually(
        lambda: all(Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] == "Z" for pid in pids)
    )
    with pytest.raises(PermissionDenied):
        pool.call("resolve", ask("refuse"))


def test_a_dead_worker_is_stopped_while_other_calls_go_on(
    pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = pool.call("resolve", ask("answer"))["pid"]
    (dead,) = pool._idle
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: not dead.is_alive)
    stopping, go_on = threading.Event(), threading.Event()
    stop = dead.close

    def stop_slowly() -> None:
        stopping.set()
        assert go_on.wait(60)
        stop()

    monkeypatch.setattr(dead, "close", stop_slowly)
    waiting = in_thread(lambda: pool.call("resolve", ask("answer")))
    assert stopping.wait(60)
    assert pool.call("fill", ask("answer"))["pid"] != pid
    go_on.set()
    assert waiting.get(timeout=20)["pid"] != pid  # type: ignore[index]


def test_a_worker_that_does_not_end_is_killed(pool: WorkerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("csi.worker.pool._STOP_TIMEOUT", 0.05)
    pid = pool.call("resolve", ask("answer"))["pid"]
    os.kill(pid, signal.SIGSTOP)
    pool.close()
    assert not alive(pid)


def test_a_call_that_is_stopped_ends_its_worker_and_says_busy(pool: WorkerPool, tmp_path: Path) -> None:
    call, started = WorkerCall(), queue.SimpleQueue[FillProgress]()
    answer = in_thread(
        lambda: pool.call("fill", ask("wait", until=str(tmp_path / "never")), call, started.put)
    )
    pid = started.get(timeout=20).bytes_done
    call.stop()
    assert isinstance(answer.get(timeout=20), Busy)
    assert not alive(pid)
    call.stop()
    assert pool.call("fill", ask("answer"))["pid"] != pid


def test_a_call_that_was_stopped_before_it_began_does_nothing(pool: WorkerPool) -> None:
    call = WorkerCall()
    call.stop()
    with pytest.raises(Busy, match="stopped"):
        pool.call("fill", ask("die"), call)


def test_a_closed_pool_has_no_idle_worker_and_starts_none(pool: WorkerPool) -> None:
    pid = pool.call("resolve", ask("answer"))["pid"]
    pool.close()
    assert not alive(pid)
    with pytest.raises(Busy, match="shutting down"):
        pool.call("resolve", ask("answer"))


def test_a_secret_is_neither_in_the_arguments_nor_in_the_environment(
    pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_plugin")
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "hf_plugin")
    answer = pool.call("resolve", ask("answer", {"token": "hf_secret"}))
    assert answer["secrets"] == ["token"]
    assert not {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"} & set(answer["environment"])
    for name in ("cmdline", "environ"):
        text = Path(f"/proc/{answer['pid']}/{name}").read_bytes()
        assert b"hf_secret" not in text
        assert b"hf_plugin" not in text
    assert "hf_secret" not in repr(ask("answer", {"token": "hf_secret"}))


def test_the_real_worker_answers_stays_warm_and_tells_its_errors_by_class() -> None:
    pool = WorkerPool({"resolve": 1})
    assert pool.call("resolve", PinSource(PINNED, Secrets())) == PINNED
    with pytest.raises(InvalidParameter, match="none of the keys token"):
        pool.call("resolve", PinSource(PINNED, Secrets({"password": "x"})))
    assert Scripted.name not in OPERATIONS
    with pytest.raises(DataCacheError, match="a worker has no operation 'scripted'; it has pin-source, "):
        pool.call("resolve", ask("answer"))
    (worker,) = pool._idle
    pid = worker._process.pid
    assert pool.call("resolve", PinSource(PINNED, Secrets())) == PINNED
    assert pool._idle[0]._process.pid == pid
    assert os.getpriority(os.PRIO_PROCESS, pid) > os.getpriority(os.PRIO_PROCESS, 0)
    pool.close()
    assert not alive(pid)


@pytest.mark.parametrize(("level", "says"), [("DEBUG", True), ("INFO", False)])
def test_a_worker_logs_from_the_plugins_level_on(
    capfd: pytest.CaptureFixture[str], level: str, says: bool
) -> None:
    pool = WorkerPool({"resolve": 1}, command=build_worker_command(log_level=level))
    pool.call(
        "resolve",
        PinSource(PINNED, Secrets({"token": "hf_secret"})),
    )
    pool.close()
    said = capfd.readouterr().err
    assert ("DEBUG request finished operation=pin-source" in said) is says
    assert "hf_secret" not in said


def test_a_worker_ends_with_the_plugin_that_started_it() -> None:
    script = (
        "import time\n"
        "from csi.parameters.content_ref import Secrets\n"
        "from csi.worker.pool import WorkerPool\n"
        "from tests.csi.worker.test_pool import PINNED, PinSource\n"
        "pool = WorkerPool({'resolve': 1})\n"
        "pool.call('resolve', PinSource(PINNED, Secrets()))\n"
        "print(pool._idle[0]._process.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as plugin:
        assert plugin.stdout
        worker = int(plugin.stdout.readline())
        assert alive(worker)
        plugin.kill()
    assert eventually(lambda: not alive(worker))
