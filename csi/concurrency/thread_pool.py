"""Thread pool that ends idle threads and reports when it has shrunk, so that memory of a burst is freed."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

T = TypeVar("T")

# Seconds without work after which a thread ends.
_IDLE_TIMEOUT = 10.0
# A peak of fewer threads is too small for its end to be worth reporting.
_BUSY_THREADS = 8


class ShrinkingPool(Executor):
    """Executor with at most `max_threads` threads named `name`.

    A thread without work for `idle_seconds` ends.

    `on_shrink()` is called whenever a quarter of the peak since the last call is left, if the peak was high,
    and once more when at most one thread is left, so that the memory of the last threads is freed too.
    """

    def __init__(
        self,
        max_threads: int,
        name: str,
        idle_seconds: float = _IDLE_TIMEOUT,
        on_shrink: Callable[[], object] = lambda: None,
    ) -> None:
        self._max_threads, self._name, self._idle_seconds, self._on_shrink = (
            max_threads,
            name,
            idle_seconds,
            on_shrink,
        )
        self._peak, self._has_been_busy = 0, False
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._threads: set[threading.Thread] = set()
        self._idle, self._closed = 0, False

    @property
    def size(self) -> int:
        """Number of threads now."""
        return len(self._threads)

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Schedule a call of `fn` in one of the threads; raises RuntimeError after `shutdown`."""
        future: Future[T] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("the pool was shut down")
            self._waiting.append((future, lambda: fn(*args, **kwargs)))
            # Idle threads are enough for the queue; otherwise another one is started.
            if self._idle >= len(self._waiting):
                self._changed.notify()
            elif len(self._threads) < self._max_threads:
                thread = threading.Thread(target=self._run_worker, name=self._name, daemon=True)
                self._threads.add(thread)
                self._peak = max(self._peak, len(self._threads))
                thread.start()
        return future

    def _run_worker(self) -> None:
        while (item := self._take_next()) is not None:
            future, work = item
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as error:
                    future.set_exception(error)
            # Drop all references to the last call, or an idle thread would keep its objects alive.
            del item, future, work
        if self._has_shrunk():
            self._on_shrink()

    def _has_shrunk(self) -> bool:
        with self._changed:
            remaining = len(self._threads)
            if self._peak >= _BUSY_THREADS and 4 * remaining <= self._peak:
                self._peak, self._has_been_busy = remaining, remaining > 1
                return True
            if self._has_been_busy and remaining <= 1:
                self._has_been_busy = False
                return True
            return False

    def _take_next(self) -> tuple[Future[Any], Callable[[], Any]] | None:
        """Return the next call, waiting for one if needed; None if this thread is to end."""
        with self._changed:
            self._idle += 1
            is_ready = self._changed.wait_for(lambda: bool(self._waiting) or self._closed, self._idle_seconds)
            self._idle -= 1
            if is_ready and self._waiting:
                return self._waiting.popleft()
            self._threads.discard(threading.current_thread())
            return None

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more calls, and with `wait` join the threads.

        Queued calls still run unless `cancel_futures`.
        """
        with self._changed:
            self._closed = True
            if cancel_futures:
                while self._waiting:
                    self._waiting.popleft()[0].cancel()
            self._changed.notify_all()
            threads = list(self._threads)
        if wait:
            for thread in threads:
                thread.join()
