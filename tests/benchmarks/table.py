"""What was measured, as tables: medians with their spread, ratios against a baseline of the same rounds,
goals met or missed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Series:
    """The figures of one thing, one a round, in the order of the rounds."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle figure."""
        return statistics.median(self.values)

    def percentile(self, share: float) -> float:
        """The smallest figure that at least `share` (0 to 1) of all do not exceed."""
        ordered = sorted(self.values)
        return ordered[max(0, math.ceil(len(ordered) * share) - 1)]

    def over(self, baseline: Series) -> Series:
        """Round by round, this over `baseline`."""
        return Series(tuple(mine / other for mine, other in zip(self.values, baseline.values, strict=True)))

    def shown(self, digits: int) -> str:
        """Median and spread, for people."""
        spread = (
            f" ({min(self.values):.{digits}f}..{max(self.values):.{digits}f})" if len(self.values) > 1 else ""
        )
        return f"{self.median:.{digits}f}{spread}"


@dataclass(frozen=True)
class Goal:
    """What a figure should be: at least `least` or at most `most`.

    Printed beside the figure, never asserted.
    """

    least: float | None = None
    most: float | None = None
    unit: str = ""

    def verdict(self, figure: float) -> str:
        """The goal in words, and whether `figure` meets it."""
        met = figure >= self.least if self.least is not None else figure <= (self.most or 0)
        sign, bound = (">=", self.least) if self.least is not None else ("<=", self.most)
        return f"{sign} {bound:g}{self.unit}: {'met' if met else 'MISSED'}"


def at_least(ratio: float) -> Goal:
    """A goal for a ratio."""
    return Goal(least=ratio, unit="x")


def at_most(bound: float, unit: str = "x") -> Goal:
    """A goal for a ratio (unit "x") or an absolute figure."""
    return Goal(most=bound, unit=unit)


@dataclass
class Table:
    """One benchmark's result; figures are in `unit`."""

    title: str
    unit: str
    digits: int = 0
    rows: list[tuple[str, str, str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def row(self, what: str, series: Series, goal: Goal | None = None, unit: str = "") -> None:
        """A figure without a baseline, or a baseline itself; `goal` is for its median."""
        self.rows.append(
            (
                what,
                f"{series.shown(self.digits)} {unit or self.unit}",
                "",
                goal.verdict(series.median) if goal else "",
            )
        )

    def compare(
        self, what: str, series: Series, baselines: Sequence[tuple[str, Series, Goal | None]]
    ) -> None:
        """A figure and its ratio to each baseline (label, figures, goal for the ratio), one line each."""
        shown = f"{series.shown(self.digits)} {self.unit}"
        for label, baseline, goal in baselines:
            ratio = series.over(baseline)
            self.rows.append(
                (what, shown, f"{ratio.shown(2)} x {label}", goal.verdict(ratio.median) if goal else "")
            )
            what = shown = ""

    def markdown(self) -> str:
        """The table as people paste it."""
        rows = [("what", "median (min..max)", "ratio, median (min..max)", "goal"), *self.rows]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = [
            "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
            for row in rows
        ]
        lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        return "\n".join([f"### {self.title}", "", *lines, *[f"- {note}" for note in self.notes], ""])
