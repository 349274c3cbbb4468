"""What a doctor finds: how bad it is, what it is, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice

_MAX_LISTED = 10


class Verdict(StrEnum):
    """How bad it is: FAULT means that volumes fail, WARNING that something they promise does not hold."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"


@dataclass(frozen=True)
class Finding:
    """What one check found; `fix` is "" where there is nothing to do."""

    check: str
    verdict: Verdict
    message: str
    fix: str = ""

    def to_json(self) -> dict[str, str]:
        """Return it for programs."""
        return {"check": self.check, "verdict": self.verdict.value, "what": self.message, "fix": self.fix}


def ok_finding(check: str, what: str) -> Finding:
    """All is well."""
    return Finding(check, Verdict.OK, what)


def warning_finding(check: str, what: str, fix: str) -> Finding:
    """Something that is promised does not hold."""
    return Finding(check, Verdict.WARNING, what, fix)


def fault_finding(check: str, what: str, fix: str) -> Finding:
    """Volumes fail."""
    return Finding(check, Verdict.FAULT, what, fix)


def limit_findings(check: str, findings: Iterable[Finding], count: int) -> Iterator[Finding]:
    """The first ten of `count` findings of a kind, no more of which are made; then one that says how many there are beside."""
    shown = list(islice(findings, _MAX_LISTED))
    yield from shown
    if count > len(shown):
        yield Finding(
            check,
            max(shown, key=lambda one: list(Verdict).index(one.verdict)).verdict,
            f"and {count - len(shown)} more",
            shown[-1].fix,
        )
