"""Pool of worker processes on the plugin's side.

Workers start on demand and stay warm for a minute. Idle ones are ended by closing their input, busy ones by
SIGTERM.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from csi.errors import Busy, DataCacheError, WorkerDied, from_wire
from csi.images.progress import FillProgress
from csi.linux import processes
from csi.program import logs
from csi.program.egress_profiles import EgressProfile, get_profile
from csi.worker.operations import Operation, Result
from csi.worker.protocol import encode_request

# -P: a module in the working directory must not shadow one of the worker's.
_WORKER_COMMAND = (sys.executable, "-P", "-m", "csi.worker_process")
# Seconds between closing a worker's input and SIGKILL.
_STOP_TIMEOUT = 5.0
# Prefixes of variables that the hubs' and buckets' clients would read by themselves.
_CREDENTIAL_VARIABLES = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "MODELSCOPE_API_TOKEN",
    "AWS_",
    "OSS_",
    "ALIBABA_CLOUD_ACCESS_KEY",
    "ALIBABA_CLOUD_SECURITY_TOKEN",
)


class WorkerCall:
    """Handle of a running request, to stop it from another thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._worker: _WorkerProcess | None = None
        self.stopped = False

    def stop(self) -> None:
        """Stop the worker, so that the call raises Busy.

        Without effect on a call that has ended; one that has not started raises Busy when it does.
        """
        with self._lock:
            self.stopped = True
            if self._worker:
                self._worker.terminate()

    def set_worker(self, worker: _WorkerProcess | None) -> None:
        """Set the worker that executes the request, or None; raises Busy if `stop` was called before."""
        with self._lock:
            self._worker = worker
            if self.stopped and worker:
                raise Busy("the work was stopped; call again to go on")


class _WorkerProcess:
    def __init__(self, command: Sequence[str], profile: EgressProfile) -> None:
        self._process = processes.spawn(
            [*command, profile.netns, str(profile.rate or 0)], _clean_environment()
        )
        self.profile = profile
        self.idle_since = 0.0

    def execute(self, request: bytes, on_progress: Callable[[FillProgress], None]) -> dict[str, Any]:
        """Send an encoded request and return its encoded result; raises its error, or WorkerDied."""
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(request)
            self._process.stdin.flush()
        except (OSError, ValueError) as error:
            raise WorkerDied("the worker process ended before it read its request") from error
        for line in self._process.stdout:
            if not line.endswith(b"\n"):
                break  # killed while writing an event
            event = json.loads(line)
            match event.pop("event"):
                case "progress":
                    on_progress(FillProgress.from_json(event))
                case "result":
                    return dict(event)
                case "error":
                    raise from_wire(event)
        raise WorkerDied(f"the worker process ended during a request (exit status {self._process.wait()})")

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def terminate(self) -> None:
        """Terminate the process from any thread.

        `close` closes the pipe, which must not happen while another thread reads from it.
        """
        self._process.terminate()

    def close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        try:
            # The worker ends with its input.
            self._process.stdin.close()
        except OSError:
            self._process.kill()
        try:
            self._process.wait(_STOP_TIMEOUT)
        except processes.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def _clean_environment() -> dict[str, str]:
    """Return the environment without credentials: those of the machine must not be used for volumes."""
    return {key: value for key, value in os.environ.items() if not key.startswith(_CREDENTIAL_VARIABLES)}


def build_worker_command(log_format: logs.LogFormat = "text", log_level: str = "INFO") -> Sequence[str]:
    """Return the command of a worker whose log lines look like those of the plugin."""
    return (*_WORKER_COMMAND, log_format, log_level)


class WorkerPool:
    """Workers, at most `lane_sizes[lane]` of them busy for each lane (kind of work). Thread-safe.

    A warm worker serves any lane, but one egress profile alone: its network namespace is set at its start.
    """

    def __init__(
        self,
        lane_sizes: dict[str, int],
        idle_timeout: float = 60.0,
        command: Sequence[str] | None = None,
        profiles: Mapping[str, EgressProfile] = MappingProxyType({}),
        allowed_destinations: Sequence[str] = (),
    ) -> None:
        self._lanes = {name: threading.BoundedSemaphore(count) for name, count in lane_sizes.items()}
        self._idle_timeout = idle_timeout
        self._command = command or build_worker_command()
        self._profiles = profiles
        self._allowed_destinations = tuple(allowed_destinations)
        self._lock = threading.Lock()
        self._idle: list[_WorkerProcess] = []
        self._reaper: threading.Timer | None = None
        self._is_closed = False

    def call(
        self,
        lane: str,
        operation: Operation[Result],
        call: WorkerCall | None = None,
        on_progress: Callable[[FillProgress], None] = lambda _: None,
    ) -> Result:
        """Execute `operation` in a worker and return its result, waiting until `lane` has a free slot.

        Raises what the worker raised, WorkerDied if two workers died, Busy if `call` was stopped,
        FailedPrecondition for an unknown egress profile.
        """
        profile = get_profile(self._profiles, operation.egress_profile)
        request = encode_request(operation, self._allowed_destinations)
        call = call or WorkerCall()
        with self._lanes[lane]:
            try:
                result = self._call_once(request, profile, call, on_progress)
            except WorkerDied:
                # One retry: a warm worker may have died just before it got the request.
                result = self._call_once(request, profile, call, on_progress)
        return operation.decode_result(result)

    def _call_once(
        self,
        request: bytes,
        profile: EgressProfile,
        call: WorkerCall,
        on_progress: Callable[[FillProgress], None],
    ) -> dict[str, Any]:
        worker = self._acquire(profile)
        is_healthy = False
        try:
            call.set_worker(worker)
            result = worker.execute(request, on_progress)
            is_healthy = True
            return result
        except DataCacheError as error:
            has_died = isinstance(error, WorkerDied)
            if has_died and (call.stopped or self._is_closed):
                raise Busy("the work was stopped; call again to go on") from None
            # An error event ends a request in order: the worker can serve the next one.
            is_healthy = not call.stopped and not has_died
            raise
        finally:
            call.set_worker(None)
            self._release(worker, is_healthy)

    def _acquire(self, profile: EgressProfile) -> _WorkerProcess:
        with self._lock:
            if self._is_closed:
                raise Busy("plugin is shutting down; retry")
            worker, dead_workers = self._take_idle(profile)
        # Without the lock: a stop may wait for seconds, and no other call has to.
        for dead_worker in dead_workers:
            dead_worker.close()
        return worker or _WorkerProcess(self._command, profile)

    def _take_idle(self, profile: EgressProfile) -> tuple[_WorkerProcess | None, list[_WorkerProcess]]:
        """Remove a live worker from the idle ones; return it, or None, and the dead ones that it met."""
        dead_workers: list[_WorkerProcess] = []
        # The one used last first, so that the others reach their idle timeout.
        for worker in [idle for idle in reversed(self._idle) if idle.profile == profile]:
            self._idle.remove(worker)
            if worker.is_alive:
                return worker, dead_workers
            dead_workers.append(worker)
        return None, dead_workers

    def _release(self, worker: _WorkerProcess, is_healthy: bool) -> None:
        with self._lock:
            if is_healthy and not self._is_closed:
                worker.idle_since = time.monotonic()
                self._idle.append(worker)
                self._schedule_reaper()
                return
        worker.close()

    def _schedule_reaper(self) -> None:
        if self._idle and self._reaper is None:
            expires = min(worker.idle_since for worker in self._idle) + self._idle_timeout
            self._reaper = threading.Timer(max(0.0, expires - time.monotonic()), self._reap)
            self._reaper.daemon = True
            self._reaper.start()

    def _reap(self) -> None:
        # 0.1 s more, so that workers that expire almost together do not need a timer each.
        idle_before = time.monotonic() - self._idle_timeout + 0.1
        with self._lock:
            self._reaper = None
            expired = [worker for worker in self._idle if worker.idle_since <= idle_before]
            self._idle = [worker for worker in self._idle if worker.idle_since > idle_before]
            self._schedule_reaper()
        for worker in expired:
            worker.close()

    def close(self) -> None:
        """Stop the idle workers and start no new ones; busy workers are stopped through their WorkerCall."""
        with self._lock:
            self._is_closed = True
            idle_workers = self._idle
            self._idle = []
        for worker in idle_workers:
            worker.close()
