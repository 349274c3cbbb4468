"""The rate of a fill is what its line gives, also where chunks end seldom and several at once."""

from __future__ import annotations

import pytest

from csi.images.progress import FillProgress, ProgressMeter

MIB = 2**20


class Told:
    """What a meter over 1 GiB tells when it is asked five times a second."""

    def __init__(self) -> None:
        self.now, self.done = 0.0, 0
        self.progress = FillProgress()
        self._meter = ProgressMeter(2**30, self._take, lambda: self.now)

    def _take(self, progress: FillProgress) -> None:
        self.progress = progress

    def wait(self, seconds: float) -> None:
        """Nothing comes for so long."""
        for _ in range(round(seconds * 5)):
            self._meter.update(self.done, self.done)
            self.now += 0.2

    def runs(self, seconds: float, count: int, every: float) -> list[float]:
        """`count` bytes come every so many seconds; the rates that are told from the second time on."""
        rates = []
        for number in range(round(seconds / every)):
            self.wait(every)
            self.done += count
            self._meter.update(self.done, self.done)
            rates += [self.progress.rate] if number else []
        return rates


@pytest.mark.parametrize(("chunks", "every"), [(1, 0.2), (1, 2.0), (4, 8.4), (6, 18.0)])
def test_the_rate_is_the_lines_however_seldom_chunks_end(chunks: int, every: float) -> None:
    told, line = Told(), chunks * 4 * MIB / every
    rates = told.runs(10 * every, chunks * 4 * MIB, every)
    told.wait(every * 0.8)
    assert [*rates, told.progress.rate] == pytest.approx([line] * (len(rates) + 1), rel=0.15)
    assert told.progress.seconds_left == pytest.approx((2**30 - told.done) / line, rel=0.15)


def test_a_line_that_gives_nothing_any_more_has_no_rate_after_five_seconds() -> None:
    told = Told()
    told.runs(10, 4 * MIB, 0.2)
    told.wait(3)
    assert 0 < told.progress.rate < 20 * MIB
    told.wait(3)
    assert (told.progress.rate, told.progress.seconds_left) == (0, None)
    told.runs(7, 4 * MIB, 0.2)
    assert told.progress.rate > 10 * MIB


def test_a_slow_line_is_not_said_to_give_nothing() -> None:
    assert FillProgress(0, 8 * MIB, 0, 300_000.0, 27.0).format() == "0 of 8 MiB, 293.0 KiB/s, about 27 s left"
