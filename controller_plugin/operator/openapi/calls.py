"""HTTP request to the OpenAPI, split into the parts that signatures cover."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class ApiCall:
    """A request.

    `headers` have lower-case names; `query` and `form` are in the order sent; `body` is the raw form.
    """

    method: str
    path: str
    query: Pairs
    form: Pairs = ()
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)

    @property
    def parameters(self) -> dict[str, str]:
        """All parameters; those of the form override those of the query."""
        return dict([*self.query, *self.form])

    @property
    def action(self) -> str:
        """Name of the call."""
        return self.headers.get("x-acs-action") or self.parameters.get("Action", "")

    @property
    def version(self) -> str:
        """Version of the API."""
        return self.headers.get("x-acs-version") or self.parameters.get("Version", "")
