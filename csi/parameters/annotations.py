"""Keys of a volume that its PVC may give in annotations (`datacache.csi.io/repoId`), as far as the StorageClass lets it (`pvcAnnotations`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from csi.errors import InvalidParameter
from csi.parameters.dialects.keys import Setter
from csi.parameters.dialects.table import TYPE, source_keys
from csi.parameters.volume_parameters import ANNOTATED, KEYS, SPELLING, canonical_keys
from csi.values import shown, split_list

PREFIX = "datacache.csi.io/"
# How a claim is mounted is agreed between its access modes and the StorageClass.
_CLASS_ALONE = frozenset(("writerAccessModes",))


@dataclass(frozen=True)
class Annotated:
    """A StorageClass's parameters completed by a PVC's annotations, all keys canonical; `from_claim` are those that the PVC gave."""

    parameters: Mapping[str, str]
    from_claim: frozenset[str]
    missing: tuple[str, ...] = ()
    """Keys that a source may need and that neither gives, though the PVC might."""

    @property
    def names_the_source(self) -> bool:
        """Whether where the data lives is, in part at least, the word of the PVC's author."""
        return not self.from_claim.isdisjoint(source_keys() | {TYPE.name})


def annotated_keys(text: str) -> tuple[str, ...]:
    """The keys that a StorageClass lists in `pvcAnnotations`; raises InvalidParameter naming one that no PVC may give."""
    found = tuple(_listed(item) for item in split_list(text))
    if not found:
        raise InvalidParameter(f"{ANNOTATED} lists no key; list those that a PVC may give, as repoId,revision, or remove it")
    return found


def _listed(item: str) -> str:
    try:
        name = next(iter(canonical_keys({item: ""})), "")
    except InvalidParameter as error:
        raise InvalidParameter(f"{ANNOTATED} lists {shown(item)}, which no PVC may give: {error}") from None
    if not name:
        raise InvalidParameter(f"{ANNOTATED} lists {shown(item)}, which is no key of this driver; remove it")
    if KEYS[name].setter is not Setter.ANYONE or name in _CLASS_ALONE:
        raise InvalidParameter(f"{ANNOTATED} lists {name}, which only an administrator may set; give it in the StorageClass itself")
    return name


def completed(parameters: Mapping[str, str], annotations: Mapping[str, str], claim: str) -> Annotated:
    """A StorageClass's `parameters`, which list `pvcAnnotations`, with what the annotations of `claim` ("namespace/name") give over them.

    Raises InvalidParameter for an annotation of ours that is a credential, no key, or not listed; its value is never shown.
    """
    given = canonical_keys(parameters)
    listed = annotated_keys(given.pop(ANNOTATED))
    own = {key.removeprefix(PREFIX): value for key, value in annotations.items() if key.startswith(PREFIX)}
    for key in own:
        _check_annotation(key, listed, claim)
    said = canonical_keys(own)
    whole = {**given, **said}
    missing = tuple(key for key in listed if key not in whole and KEYS[key].default.startswith("required"))
    return Annotated(whole, frozenset(said), missing)


def _check_annotation(key: str, listed: tuple[str, ...], claim: str) -> None:
    where = f"PVC {claim} has the annotation {shown(PREFIX + key, 80)}"
    name = SPELLING.name_of(key)
    if name is None and key.lower() in SPELLING.secret_names:
        raise InvalidParameter(f"{where}, which is a credential; remove it, put it into a Secret and name that in the StorageClass")
    if name not in listed:
        raise InvalidParameter(
            f"{where}, which its StorageClass does not allow: {ANNOTATED} there lists {', '.join(listed)}; "
            f"remove the annotation, or have an administrator add {name or key} to {ANNOTATED}"
            if name
            else f"{where}, which is no key of this driver; {ANNOTATED} of its StorageClass lists {', '.join(listed)}"
        )


def hint(asked: Annotated, claim: str) -> str:
    """What the author of a PVC can do about a source that is not whole; "" where that is not theirs."""
    if not asked.missing:
        return ""
    return f"; the StorageClass leaves that to PVC {claim}: give it the annotation {' or '.join(PREFIX + key for key in asked.missing)}"
