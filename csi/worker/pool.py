"""Worker processes on the plugin's side: started on demand, kept warm for a minute, stopped by closing their input."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from csi.errors import Busy, DataCacheError, WorkerDied, from_wire
from csi.images.progress import FillProgress
from csi.linux import processes
from csi.program import logs
from csi.program.egress_profiles import EgressProfile, profile_of
from csi.worker.protocol import Request

COMMAND = (sys.executable, "-P", "-m", "csi.worker_process")
_STOP_SECONDS = 5.0
_CREDENTIALS = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "MODELSCOPE_API_TOKEN",
    "AWS_",
    "OSS_",
    "ALIBABA_CLOUD_ACCESS_KEY",
    "ALIBABA_CLOUD_SECURITY_TOKEN",
)


class Call:
    """A request under way, for whoever wants to stop it from another thread."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._worker: _Worker | None = None
        self.stopped = False

    def stop(self) -> None:
        """Order the worker to stop; the call then raises Busy. Harmless when the call is over or has not begun."""
        with self._guard:
            self.stopped = True
            if self._worker:
                self._worker.terminate()

    def hand_to(self, worker: _Worker | None) -> None:
        """Say which worker has the request now, None for none; raises Busy when `stop` came first."""
        with self._guard:
            self._worker = worker
            if self.stopped and worker:
                raise Busy("the work was stopped; call again to go on")


class _Worker:
    def __init__(self, command: Sequence[str], profile: EgressProfile) -> None:
        self._process = processes.start([*command, profile.netns, str(profile.rate or 0)], _environment())
        self.profile = profile
        self.idle_since = 0.0

    def ask(self, request: Request, on_progress: Callable[[FillProgress], None]) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(request.encode())
            self._process.stdin.flush()
        except (OSError, ValueError) as error:
            raise WorkerDied("a worker process ended before it took its work") from error
        for line in self._process.stdout:
            if not line.endswith(b"\n"):
                break  # it was killed in the middle of saying something
            event = json.loads(line)
            match event.pop("event"):
                case "progress":
                    on_progress(FillProgress.from_json(event))
                case "result":
                    return dict(event)
                case "error":
                    raise from_wire(event)
        raise WorkerDied(f"the worker process ended in the middle of its work (exit status {self._process.wait()})")

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def terminate(self) -> None:
        """End it from another thread than the one that asks, whose file object must not be closed under it."""
        self._process.terminate()

    def stop(self) -> None:
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.close()
        except OSError:
            self._process.kill()
        try:
            self._process.wait(_STOP_SECONDS)
        except Exception:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def _environment() -> dict[str, str]:
    """Without credentials that are of the machine, not of a volume."""
    return {key: value for key, value in os.environ.items() if not key.startswith(_CREDENTIALS)}


class WorkerPool:
    """At most `lanes[name]` workers at a time for each kind of work. Thread-safe; a warm worker serves any lane, in one egress profile."""

    def __init__(
        self,
        lanes: dict[str, int],
        idle_seconds: float = 60.0,
        command: Sequence[str] = COMMAND,
        log_format: logs.Format = "text",
        log_level: str = "INFO",
        profiles: Mapping[str, EgressProfile] = MappingProxyType({}),
        allowed: Sequence[str] = (),
    ) -> None:
        self._lanes = {name: threading.BoundedSemaphore(count) for name, count in lanes.items()}
        self._idle_seconds = idle_seconds
        self._command = (*command, log_format, log_level)
        self._profiles, self._allowed = profiles, tuple(allowed)
        self._guard = threading.Lock()
        self._idle: list[_Worker] = []
        self._reaper: threading.Timer | None = None
        self._closed = False

    def call(
        self, lane: str, request: Request, call: Call | None = None, on_progress: Callable[[FillProgress], None] = lambda _: None
    ) -> dict[str, Any]:
        """Have a worker carry out `request` and return its result; waits for a place in `lane`.

        Raises what the worker raised, WorkerDied when it died twice, Busy when `call` was stopped, FailedPrecondition
        for an egress profile that there is not.
        """
        profile = profile_of(self._profiles, request.profile)
        request = replace(request, allowed=self._allowed)
        call = call or Call()
        with self._lanes[lane]:
            try:
                return self._once(request, profile, call, on_progress)
            except WorkerDied:
                if call.stopped or self._closed:
                    raise Busy("the work was stopped; call again to go on") from None
                return self._once(request, profile, call, on_progress)

    def _once(self, request: Request, profile: EgressProfile, call: Call, on_progress: Callable[[FillProgress], None]) -> dict[str, Any]:
        worker = self._take(profile)
        healthy = False
        try:
            call.hand_to(worker)
            result = worker.ask(request, on_progress)
            healthy = True
            return result
        except DataCacheError as error:
            healthy = not call.stopped and not isinstance(error, WorkerDied)
            raise
        finally:
            call.hand_to(None)
            self._give_back(worker, healthy)

    def _take(self, profile: EgressProfile) -> _Worker:
        with self._guard:
            if self._closed:
                raise Busy("the plugin is leaving; its successor goes on")
            for worker in [idle for idle in reversed(self._idle) if idle.profile == profile]:
                self._idle.remove(worker)
                if worker.alive:
                    return worker
                worker.stop()
        return _Worker(self._command, profile)

    def _give_back(self, worker: _Worker, healthy: bool) -> None:
        with self._guard:
            if healthy and not self._closed:
                worker.idle_since = time.monotonic()
                self._idle.append(worker)
                self._watch_idle()
                return
        worker.stop()

    def _watch_idle(self) -> None:
        if self._idle and self._reaper is None:
            expires = min(worker.idle_since for worker in self._idle) + self._idle_seconds
            self._reaper = threading.Timer(max(0.0, expires - time.monotonic()), self._reap)
            self._reaper.daemon = True
            self._reaper.start()

    def _reap(self) -> None:
        limit = time.monotonic() - self._idle_seconds + 0.1
        with self._guard:
            self._reaper = None
            old = [worker for worker in self._idle if worker.idle_since <= limit]
            self._idle = [worker for worker in self._idle if worker.idle_since > limit]
            self._watch_idle()
        for worker in old:
            worker.stop()

    def close(self) -> None:
        """Stop the idle workers and start no more; a worker at work is stopped through its Call."""
        with self._guard:
            self._closed = True
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.stop()
