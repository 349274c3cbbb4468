"""The buffer ring: a fixed number of buffers shared by the reading threads and the hashing thread.

Every chunk is read into a buffer, then written to the image and hashed at the same time, by different
threads. A buffer is free again after both. Chunks are handed out and hashed in order, so the finished chunks
are always a prefix.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

from csi.images.layout.chunks import Chunk, ChunkPlan
from csi.linux.aligned_memory import AlignedBuffer


@dataclass(slots=True)
class ChunkJob:
    """A chunk and the buffer it is in; `view` is as long as the chunk."""

    chunk: Chunk
    buffer: AlignedBuffer
    written: bool = False
    hashed: bool = False

    @property
    def view(self) -> memoryview:
        """The chunk's bytes."""
        return self.buffer.view[: self.chunk.length]


class BufferRing:
    """State shared by the threads of one fill, from chunk `first` of `plan`.

    `max_unsynced` is how many chunks may be handed out that are not durable yet: what a kill can cost. After
    `fail`, every method that waits raises that error.
    """

    def __init__(self, plan: ChunkPlan, first: int, buffers: int, max_unsynced: int) -> None:
        self._plan, self._max_unsynced = plan, max_unsynced
        self._next_index = self._durable_index = self.done_chunks = first
        self.content_bytes_done = plan.content_bytes_before(plan.get_offset(first))
        self._free = [AlignedBuffer(plan.chunk_bytes) for _ in range(min(buffers, plan.count - first))]
        self._jobs: dict[int, ChunkJob] = {}
        self._condition = threading.Condition()
        self._failed_event = threading.Event()
        self._error: BaseException | None = None

    def take(self) -> ChunkJob | None:
        """Take the next chunk to read, with a buffer, waiting for one.

        Return None if all chunks are handed out.
        """
        with self._condition:
            self._condition.wait_for(self._can_take)
            self.raise_if_failed()
            if self._next_index == self._plan.count:
                return None
            index, buffer = self._next_index, self._free.pop()
            self._next_index += 1
        return ChunkJob(self._plan.build_chunk(index), buffer)

    def _can_take(self) -> bool:
        is_within_limit = self._next_index < self._durable_index + self._max_unsynced
        return (
            self._failed_event.is_set()
            or self._next_index == self._plan.count
            or (bool(self._free) and is_within_limit)
        )

    def add_filled(self, job: ChunkJob) -> None:
        """Hand a chunk whose buffer is filled to the hashing thread."""
        with self._condition:
            self._jobs[job.chunk.index] = job
            self._condition.notify_all()

    def iter_in_order(self) -> Iterator[ChunkJob]:
        """Yield the filled chunks in order, for the hashing thread.

        Asking for the next marks the last as hashed.
        """
        for index in range(self.done_chunks, self._plan.count):
            with self._condition:
                while not self._failed_event.is_set() and index not in self._jobs:
                    self._condition.wait()
                self.raise_if_failed()
                job = self._jobs[index]
            yield job
            job.hashed = True
            self._free_done_buffers()

    def mark_written(self, job: ChunkJob) -> None:
        """Record that the chunk is written to the image file."""
        job.written = True
        self._free_done_buffers()

    def wait_written(self, job: ChunkJob) -> None:
        """Wait until this chunk and all before it are written to the image file."""
        with self._condition:
            self._condition.wait_for(
                lambda: (
                    self._failed_event.is_set()
                    or all(j.written for i, j in self._jobs.items() if i <= job.chunk.index)
                )
            )
            self.raise_if_failed()

    def _free_done_buffers(self) -> None:
        # `written` and `hashed` are set without the lock, each by one thread only, before this is called:
        # whichever thread comes second sees both.
        with self._condition:
            while (job := self._jobs.get(self.done_chunks)) is not None and job.written and job.hashed:
                self.content_bytes_done += job.chunk.content_bytes
                self._free.append(self._jobs.pop(self.done_chunks).buffer)
                self.done_chunks += 1
            self._condition.notify_all()

    def set_max_unsynced(self, max_unsynced: int) -> None:
        """Change how many chunks may be handed out that are not durable yet."""
        with self._condition:
            if max_unsynced != self._max_unsynced:
                self._max_unsynced = max_unsynced
                self._condition.notify_all()

    def mark_durable(self, index: int) -> None:
        """Record that all chunks before `index` are synced and in the journal."""
        with self._condition:
            self._durable_index = index
            self._condition.notify_all()

    def wait_done(self, chunks: int, seconds: float) -> bool:
        """Wait at most `seconds` until `chunks` chunks are finished; return whether the whole plan is."""
        with self._condition:
            self._condition.wait_for(
                lambda: self._failed_event.is_set() or self.done_chunks >= min(chunks, self._plan.count),
                seconds,
            )
            self.raise_if_failed()
            return self.done_chunks == self._plan.count

    def fail(self, error: BaseException) -> None:
        """End the fill with `error`; only the first error counts."""
        with self._condition:
            self._error = self._error or error
            self._failed_event.set()
            self._condition.notify_all()

    def raise_if_failed(self) -> None:
        """Raise the error that ended the fill, if any."""
        if self._error is not None:
            raise self._error

    def sleep(self, seconds: float) -> None:
        """Sleep; raises as soon as the fill has failed."""
        self._failed_event.wait(seconds)
        self.raise_if_failed()
