"""Resolve and prove on the plugin's side: in a worker, once for all who ask the same, longer than a call may last if need be."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from csi.concurrency.deadline import Patience
from csi.concurrency.wait_limiter import WaitingRoom
from csi.errors import Busy, OriginUnavailable, PermissionDenied, SourceNotFound, Unauthenticated
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.volume_parameters import parse
from csi.resolve.proof_memory import ProofMemory
from csi.worker.pool import Call, WorkerPool
from csi.worker.protocol import Request, Resolution

log = logging.getLogger("datacache.resolve")

_ERROR_KEPT_SECONDS = 60.0
# external-provisioner comes back within five minutes, kubelet within two and a half.
_GRACE_SECONDS = 600.0
Keep = Callable[[Resolution, Path], None]


@dataclass
class _Pending:
    """One resolve under way and all who wait for it."""

    waiters: set[Patience] = field(default_factory=set)
    call: Call = field(default_factory=Call)
    unwanted: threading.Timer | None = None
    result: Resolution | None = None
    error: Exception | None = None

    ended: float = 0.0

    @property
    def done(self) -> bool:
        return self.ended > 0

    @property
    def stale(self) -> bool:
        """An error nobody came to hear is told to the next caller, but not to one that comes much later."""
        return self.done and time.monotonic() - self.ended > _ERROR_KEPT_SECONDS


class Resolver:
    """Resolves specs for one plugin. `scratch` names new files for manifests on their way to `keep`, who moves them where they belong.

    A resolve that nobody has waited for during ten minutes is stopped: there are origins that never end.

    `ask_moving`: a spec that can move (a branch, a NAS) is asked for anew each time, as one creating a volume expects;
    otherwise a fresh proof answers for it too, as one mounting a volume expects.
    """

    def __init__(
        self, pool: WorkerPool, proofs: ProofMemory, room: WaitingRoom, *, ask_moving: bool, scratch: Callable[[], Path] | None = None
    ) -> None:
        self._pool, self._proofs, self._room, self._ask_moving, self._scratch = pool, proofs, room, ask_moving, scratch
        self._guard = threading.Lock()
        self._pending: dict[str, _Pending] = {}

    def resolve(
        self,
        key: str,
        spec: CacheSpec,
        secrets: Mapping[str, str],
        patience: Patience,
        has: Callable[[str], bool] = lambda _: True,
        keep: Keep | None = None,
        anew: bool = False,
    ) -> Resolution:
        """What `spec` holds, after this credential has read bytes of it.

        `key` is the volume whose call waits. `has` says whether the manifest of a digest is at hand; where it is not, the
        origin is asked whatever is remembered and `keep` gets the manifest's file. `anew` is `ask_moving` for this call. Raises
        Busy when `patience` ends first (the work goes on and the next call finds it), else the errors of a Source.
        """
        if not ((self._ask_moving or anew) and spec.moving):
            known = self._proofs.fresh(secrets, spec)
            if known and has(known.digest):
                return known
        name = self._proofs.name(secrets, spec)
        with self._room.seat(key, patience):
            return self._await(name, self._join(name, spec, dict(secrets), patience, has, keep), spec, patience)

    def _join(
        self, name: str, spec: CacheSpec, secrets: dict[str, str], patience: Patience, has: Callable[[str], bool], keep: Keep | None
    ) -> _Pending:
        with self._guard:
            # An error that nobody comes back for would stay for ever, and with it what its traceback holds.
            self._pending = {other: kept for other, kept in self._pending.items() if not kept.stale}
            pending = self._pending.get(name)
            if pending is None:
                pending = self._pending[name] = _Pending()
                arguments = (name, pending, spec, secrets, has, keep)
                threading.Thread(target=self._run, args=arguments, name="resolve", daemon=True).start()
            pending.waiters.add(patience)
            if pending.unwanted:
                pending.unwanted.cancel()
            return pending

    def _await(self, name: str, pending: _Pending, spec: CacheSpec, patience: Patience) -> Resolution:
        while not pending.done and not patience.over:
            patience.sleep()
        with self._guard:
            pending.waiters.discard(patience)
            if pending.done and self._pending.get(name) is pending:
                del self._pending[name]
            if not pending.done and not pending.waiters:
                pending.unwanted = self._stop_later(pending)
        if pending.error:
            raise pending.error
        if pending.result is None:
            raise Busy(patience.cancelled or f"still resolving {spec.source.shown}; call again, the work goes on")
        return pending.result

    def _stop_later(self, pending: _Pending) -> threading.Timer:
        timer = threading.Timer(_GRACE_SECONDS, self._stop, (pending,))
        timer.daemon = True
        timer.start()
        return timer

    def _stop(self, pending: _Pending) -> None:
        with self._guard:
            if not pending.waiters:
                pending.call.stop()

    def _run(self, name: str, pending: _Pending, spec: CacheSpec, secrets: dict[str, str], has: Callable[[str], bool], keep: Keep | None) -> None:
        result, error = None, None
        try:
            result = self._ask(pending.call, spec, secrets, has, keep)
        except Exception as raised:
            error = raised
        with self._guard:
            pending.result, pending.error, pending.ended = result, error, time.monotonic()
            if pending.unwanted:
                pending.unwanted.cancel()
            for patience in pending.waiters:
                patience.wake()
            if (result or pending.call.stopped) and not pending.waiters and self._pending.get(name) is pending:
                del self._pending[name]

    def _ask(self, call: Call, spec: CacheSpec, secrets: dict[str, str], has: Callable[[str], bool], keep: Keep | None) -> Resolution:
        asked = {spec}
        try:
            pinned = self._pin(call, spec, secrets)
            asked.add(pinned)
            known = None if pinned.source_moves else self._proofs.fresh(secrets, pinned)
            if known and has(known.digest):
                self._proofs.share(secrets, pinned, spec)
                return known
            found = self._resolve(call, pinned, secrets, keep)
        except OriginUnavailable as error:
            known = self._proofs.lasting(secrets, spec)
            if known is None or not has(known.digest):
                raise
            log.warning("origin unreachable, taking what was proven before", extra={"fields": {"source": spec.source.shown, "reason": error}})
            return known
        except (Unauthenticated, PermissionDenied, SourceNotFound):
            for refused in asked:
                self._proofs.forget(secrets, refused)
            raise
        for proven in asked | {found.spec}:
            self._proofs.remember(secrets, proven, found)
        return found

    def _pin(self, call: Call, spec: CacheSpec, secrets: dict[str, str]) -> CacheSpec:
        if not spec.moving or spec.source_moves:
            return spec
        return parse(self._pool.call("resolve", Request("pin", spec.to_context(), secrets), call)["spec"]).spec

    def _resolve(self, call: Call, pinned: CacheSpec, secrets: dict[str, str], keep: Keep | None) -> Resolution:
        request = Request("resolve", pinned.to_context(), secrets)
        if keep is None or self._scratch is None:
            return Resolution.decode(self._pool.call("resolve", request, call))
        manifest = self._scratch()
        try:
            found = Resolution.decode(self._pool.call("resolve", replace(request, manifest=str(manifest)), call))
            keep(found, manifest)
            return found
        finally:
            manifest.unlink(missing_ok=True)
