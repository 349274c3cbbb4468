"""Findings of a doctor: severity, message and fix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice

_MAX_LISTED = 10


class Verdict(StrEnum):
    """Severity of a finding. FAULT means that volumes fail, WARNING that something promised does not hold."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"


@dataclass(frozen=True)
class Finding:
    """Result of a check; `fix` is "" if there is nothing to do."""

    check: str
    verdict: Verdict
    message: str
    fix: str = ""

    def to_json(self) -> dict[str, str]:
        """Return the finding as JSON values."""
        return {"check": self.check, "verdict": self.verdict.value, "what": self.message, "fix": self.fix}


def ok_finding(check: str, what: str) -> Finding:
    """Build a finding that everything is fine."""
    return Finding(check, Verdict.OK, what)


def warning_finding(check: str, what: str, fix: str) -> Finding:
    """Build a finding that something promised does not hold."""
    return Finding(check, Verdict.WARNING, what, fix)


def fault_finding(check: str, what: str, fix: str) -> Finding:
    """Build a finding that volumes fail."""
    return Finding(check, Verdict.FAULT, what, fix)


def limit_findings(check: str, findings: Iterable[Finding], count: int) -> Iterator[Finding]:
    """Yield the first ten of `count` findings, then one that counts the others. Only these ten are
    generated."""
    shown = list(islice(findings, _MAX_LISTED))
    yield from shown
    if count > len(shown):
        yield Finding(
            check,
            max(shown, key=lambda finding: list(Verdict).index(finding.verdict)).verdict,
            f"and {count - len(shown)} more",
            shown[-1].fix,
        )
