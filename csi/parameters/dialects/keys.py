"""Keys and dialects of sources.

From this one table come parsing, refusals, the policy for inline volumes, and docs/parameters.md.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


class KeySetter(enum.StrEnum):
    """Who may set a key; the value appears in the documentation."""

    ANYONE = "StorageClass, PV, inline"
    ADMINISTRATOR = "StorageClass, PV"
    VOLUME = "inline, PV"
    CLASS = "StorageClass"
    CONTROLLER = "the controller"


@dataclass(frozen=True)
class Key:
    """A parameter in its canonical spelling.

    `default` is prose for the documentation. A key with `is_required` has to be given if its dialect is to be
    chosen by its keys alone. `aliases` are other spellings.
    """

    name: str
    meaning: str
    default: str = ""
    setter: KeySetter = KeySetter.ANYONE
    aliases: tuple[str, ...] = ()
    is_required: bool = False


@dataclass(frozen=True)
class SecretKey:
    """A key of a Kubernetes Secret that a source reads; refused, by this name, among parameters."""

    name: str
    meaning: str


class SourceSpec(Protocol):
    """Where data is, independent of dialect; a frozen dataclass that holds no secret."""

    @property
    def display_name(self) -> str:
        """The source as messages name it."""

    @property
    def origin_scope(self) -> str:
        """What a credential opens: the source, whatever its revision.

        Files are copied only between images of one scope.
        """

    @property
    def grants_whole_scope(self) -> bool:
        """Whether a credential that reads some of the files reads all of them."""

    @property
    def is_pinned(self) -> bool:
        """Whether the same spec means the same content for ever (a commit)."""

    @property
    def is_unpinnable(self) -> bool:
        """Whether no pin can fix the content; then only the manifest's digest identifies it."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """Hosts that the author of the spec makes a node connect to, as "host" or "host:port".

        Empty if the operator configured the host (a hub).
        """

    def to_context(self) -> dict[str, str]:
        """Return the flat parameters that parse to this spec."""


class MutableSource(SourceSpec):
    """Base of specs whose files are replaced in place: those of a NAS, a bucket or a URL."""

    @property
    def grants_whole_scope(self) -> bool:
        """True: rights are granted for the export or bucket, or verified for each file."""
        return True

    @property
    def is_pinned(self) -> bool:
        """False: the same spec may mean other files tomorrow."""
        return False

    @property
    def is_unpinnable(self) -> bool:
        """True: there is no revision to pin."""
        return True


ParseSource = Callable[[Mapping[str, str], Sequence[str]], SourceSpec]


@dataclass(frozen=True)
class Dialect:
    """One way to name a source.

    `types` are the values of `type` that select it (upper case), `noun` names it in messages, `title` in the
    documentation, `keys` are its own. `parse` takes values (canonical keys) and mount flags, and raises
    InvalidParameter. `secrets` are the keys it reads from a Secret.
    """

    name: str
    noun: str
    title: str
    types: tuple[str, ...]
    keys: tuple[Key, ...]
    parse: ParseSource
    secrets: tuple[SecretKey, ...] = ()

    @property
    def key_names(self) -> frozenset[str]:
        """The names of its keys."""
        return frozenset(key.name for key in self.keys)
