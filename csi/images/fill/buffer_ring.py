"""The ring: a fixed number of buffers that go from the reading threads to the hashing thread and back.

Every chunk is read into a buffer, then written to the image and hashed at the same time, by different threads. A
buffer is free again when both are done. Chunks are given out and hashed in order, so the chunks done are always a prefix.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

from csi.images.layout.chunks import Chunk, ChunkPlan
from csi.linux.aligned_memory import Buffer


@dataclass(slots=True)
class Job:
    """A chunk and the buffer it is in; `view` is as long as the chunk."""

    chunk: Chunk
    buffer: Buffer
    written: bool = False
    hashed: bool = False

    @property
    def view(self) -> memoryview:
        """The chunk's bytes."""
        return self.buffer.view[: self.chunk.length]


class Ring:
    """What the threads of one fill share, from chunk `first` of `plan` on.

    `ahead` is how many chunks may be given out that are not durable yet: what a kill can cost. When `fail` was called, every
    method that waits raises that error.
    """

    def __init__(self, plan: ChunkPlan, first: int, buffers: int, ahead: int) -> None:
        self._plan, self._ahead = plan, ahead
        self._next = self._durable = self.done = first
        self.content_done = plan.content_before(plan.offset(first))
        self._free = [Buffer(plan.chunk_bytes) for _ in range(min(buffers, plan.count - first))]
        self._jobs: dict[int, Job] = {}
        self._changed = threading.Condition()
        self._failed = threading.Event()
        self._error: BaseException | None = None

    def take(self) -> Job | None:
        """The next chunk to read, with a buffer; waits for one. None when all chunks are given out."""
        with self._changed:
            self._changed.wait_for(self._can_take)
            self.check()
            if self._next == self._plan.count:
                return None
            index, buffer = self._next, self._free.pop()
            self._next += 1
        return Job(self._plan.chunk(index), buffer)

    def _can_take(self) -> bool:
        within = self._next < self._durable + self._ahead
        return self._failed.is_set() or self._next == self._plan.count or (bool(self._free) and within)

    def filled(self, job: Job) -> None:
        """The chunk's bytes are in its buffer: the hashing thread may have it."""
        with self._changed:
            self._jobs[job.chunk.index] = job
            self._changed.notify_all()

    def in_order(self) -> Iterator[Job]:
        """The filled chunks, one after the other, for the hashing thread; each is done with when the next is asked for."""
        for index in range(self.done, self._plan.count):
            with self._changed:
                self._changed.wait_for(lambda index=index: self._failed.is_set() or index in self._jobs)  # type: ignore[misc]
                self.check()
                job = self._jobs[index]
            yield job
            job.hashed = True
            self._settle()

    def wrote(self, job: Job) -> None:
        """The chunk is in the image file."""
        job.written = True
        self._settle()

    def wait_written(self, job: Job) -> None:
        """Wait until this chunk and all before it are in the image file."""
        with self._changed:
            self._changed.wait_for(lambda: self._failed.is_set() or all(j.written for i, j in self._jobs.items() if i <= job.chunk.index))
            self.check()

    def _settle(self) -> None:
        with self._changed:
            while (job := self._jobs.get(self.done)) is not None and job.written and job.hashed:
                self.content_done += job.chunk.content_bytes
                self._free.append(self._jobs.pop(self.done).buffer)
                self.done += 1
            self._changed.notify_all()

    def reach(self, ahead: int) -> None:
        """Change how many chunks may be given out that are not durable yet."""
        with self._changed:
            if ahead != self._ahead:
                self._ahead = ahead
                self._changed.notify_all()

    def durable(self, index: int) -> None:
        """All chunks before `index` are synced and in the journal."""
        with self._changed:
            self._durable = index
            self._changed.notify_all()

    def wait_done(self, chunks: int, seconds: float) -> bool:
        """Wait at most `seconds` until `chunks` chunks are done; whether all of the plan are."""
        with self._changed:
            self._changed.wait_for(lambda: self._failed.is_set() or self.done >= min(chunks, self._plan.count), seconds)
            self.check()
            return self.done == self._plan.count

    def fail(self, error: BaseException) -> None:
        """End the fill; the first error counts."""
        with self._changed:
            self._error = self._error or error
            self._failed.set()
            self._changed.notify_all()

    def check(self) -> None:
        """Raise the error that ended the fill, if one did."""
        if self._error is not None:
            raise self._error

    def pause(self, seconds: float) -> None:
        """Sleep; raises as soon as the fill has ended."""
        self._failed.wait(seconds)
        self.check()
