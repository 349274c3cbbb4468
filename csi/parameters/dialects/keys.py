"""What a key is: the one table from which parsing, refusals, the inline policy and docs/parameters.md are made."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


class KeySetter(enum.StrEnum):
    """Who may set a key; the value is what documents say."""

    ANYONE = "StorageClass, PV, inline"
    ADMINISTRATOR = "StorageClass, PV"
    VOLUME = "inline, PV"
    CLASS = "StorageClass"
    CONTROLLER = "the controller"


@dataclass(frozen=True)
class Key:
    """A parameter in its canonical spelling. `default` is in words, beginning with "required" where there is none; `aliases` are other spellings."""

    name: str
    meaning: str
    default: str = ""
    setter: KeySetter = KeySetter.ANYONE
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class SecretKey:
    """A key of a Kubernetes Secret that a source reads; refused, by this name, among parameters."""

    name: str
    meaning: str


class SourceSpec(Protocol):
    """Where data lives, in one form whatever dialect it was written in; a frozen dataclass that holds no secret."""

    @property
    def display_name(self) -> str:
        """The source as messages name it."""

    @property
    def origin_scope(self) -> str:
        """What a credential opens: the source, whatever its revision. Files are copied between images of one place only."""

    @property
    def grants_whole_scope(self) -> bool:
        """Whether a credential that reads some of the files reads all of them."""

    @property
    def is_pinned(self) -> bool:
        """Whether the same spec means the same content for ever (a commit)."""

    @property
    def is_unpinnable(self) -> bool:
        """Whether no pin can hold the source still; what it held is then told by the manifest's digest alone."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """What the writer of the spec has a node connect to, as "host" or "host:port"; empty where the operator named it (a hub)."""

    def to_context(self) -> dict[str, str]:
        """The flat parameters that parse to this spec."""


class MutableSource:
    """What specs have in common whose files are replaced where they are: a NAS's, a bucket's, a URL's."""

    @property
    def grants_whole_scope(self) -> bool:
        """Rights are of the export, the bucket, or proven for each file."""
        return True

    @property
    def is_pinned(self) -> bool:
        """Never: the same spec means other files tomorrow."""
        return False

    @property
    def is_unpinnable(self) -> bool:
        """Always: there is no revision to hold."""
        return True


ParseSource = Callable[[Mapping[str, str], Sequence[str]], SourceSpec]


@dataclass(frozen=True)
class Dialect:
    """One way to name a source.

    `types` are the values of `type` that mean it (upper case), `noun` names it in messages, `keys` are its own. `parse`
    reads values (canonical keys) and mount flags, and raises InvalidParameter. `secrets` are what it reads of a Secret.
    """

    name: str
    noun: str
    types: tuple[str, ...]
    keys: tuple[Key, ...]
    parse: ParseSource
    secrets: tuple[SecretKey, ...] = ()

    @property
    def key_names(self) -> frozenset[str]:
        """The names of its keys."""
        return frozenset(key.name for key in self.keys)
