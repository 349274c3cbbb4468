"""One HTTP request to the OpenAPI, as its parts are signed and read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class ApiCall:
    """A request. `headers` are by their lower-case names; `query` and `form` as they were sent, `body` the bytes that the form was in."""

    method: str
    path: str
    query: Pairs
    form: Pairs = ()
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)

    @property
    def parameters(self) -> dict[str, str]:
        """All parameters; those of the form count over the query's."""
        return dict([*self.query, *self.form])

    @property
    def action(self) -> str:
        """What is asked for."""
        return self.headers.get("x-acs-action") or self.parameters.get("Action", "")

    @property
    def version(self) -> str:
        """Of which version of the API."""
        return self.headers.get("x-acs-version") or self.parameters.get("Version", "")
