"""Volume keys that a PVC sets by annotation (`datacache.csi.io/repoId`), if its StorageClass allows them.

The StorageClass lists the allowed keys in `pvcAnnotations`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from csi.errors import InvalidParameter
from csi.parameters.dialects.keys import KeySetter
from csi.parameters.dialects.table import TYPE, source_key_names
from csi.parameters.volume_parameters import KEYS, PVC_ANNOTATIONS_KEY, SPELLING, canonicalize_parameters
from csi.values import redact, split_list

PREFIX = "datacache.csi.io/"
# Whether writer modes are accepted is the administrator's decision, whoever names the source.
_STORAGE_CLASS_ONLY = frozenset(("writerAccessModes",))


@dataclass(frozen=True)
class AnnotatedParameters:
    """Parameters of a StorageClass completed by the annotations of a PVC; all keys are canonical.

    `from_pvc` are the keys that the PVC gave.
    """

    parameters: Mapping[str, str]
    from_pvc: frozenset[str]
    missing_keys: tuple[str, ...] = ()
    """Allowed keys that a source may require and that neither the StorageClass nor the PVC gives."""

    @property
    def pvc_names_source(self) -> bool:
        """Whether the author of the PVC decides, at least in part, where the data is."""
        return not self.from_pvc.isdisjoint(source_key_names() | {TYPE.name})


def parse_allowed_keys(text: str) -> tuple[str, ...]:
    """Parse the value of `pvcAnnotations` into canonical keys.

    Raises InvalidParameter naming a key that no PVC may give, or if the list is empty.
    """
    allowed_keys = tuple(_parse_allowed_key(item) for item in split_list(text))
    if not allowed_keys:
        raise InvalidParameter(
            f"{PVC_ANNOTATIONS_KEY} lists no key; "
            "list those that a PVC may give, as repoId,revision, or remove it"
        )
    return allowed_keys


def _parse_allowed_key(item: str) -> str:
    try:
        name = next(iter(canonicalize_parameters({item: ""})), "")
    except InvalidParameter as error:
        raise InvalidParameter(
            f"{PVC_ANNOTATIONS_KEY} lists {redact(item)}, which no PVC may give: {error}"
        ) from None
    if not name:
        raise InvalidParameter(
            f"{PVC_ANNOTATIONS_KEY} lists {redact(item)}, which is not a key of this driver; remove it"
        )
    if KEYS[name].setter is not KeySetter.ANYONE or name in _STORAGE_CLASS_ONLY:
        raise InvalidParameter(
            f"{PVC_ANNOTATIONS_KEY} lists {name}, which only an administrator may set; "
            "give it in the StorageClass itself"
        )
    return name


def apply_annotations(
    parameters: Mapping[str, str], annotations: Mapping[str, str], claim: str
) -> AnnotatedParameters:
    """Merge the annotations of the PVC `claim` ("namespace/name") over the `parameters` of its StorageClass.

    `parameters` must contain `pvcAnnotations`. Raises InvalidParameter for an annotation with our prefix that
    is a credential, unknown, or not allowed; the message never contains its value.
    """
    parameters_by_name = canonicalize_parameters(parameters)
    allowed_keys = parse_allowed_keys(parameters_by_name.pop(PVC_ANNOTATIONS_KEY))
    annotated = {
        key.removeprefix(PREFIX): value for key, value in annotations.items() if key.startswith(PREFIX)
    }
    for key in annotated:
        _check_annotation(key, allowed_keys, claim)
    from_pvc = canonicalize_parameters(annotated)
    merged = {**parameters_by_name, **from_pvc}
    missing = tuple(key for key in allowed_keys if key not in merged and KEYS[key].is_required)
    return AnnotatedParameters(merged, frozenset(from_pvc), missing)


def _check_annotation(key: str, allowed_keys: tuple[str, ...], claim: str) -> None:
    where = f"PVC {claim} has the annotation {redact(PREFIX + key, 80)}"
    name = SPELLING.find_name(key)
    if name is None and key.lower() in SPELLING.secret_names:
        raise InvalidParameter(
            f"{where}, which is a credential; remove it, "
            "put it into a Secret and name that in the StorageClass"
        )
    if name not in allowed_keys:
        raise InvalidParameter(
            f"{where}, which its StorageClass does not allow: "
            f"{PVC_ANNOTATIONS_KEY} there lists {', '.join(allowed_keys)}; "
            f"remove the annotation, or have an administrator add {name or key} to {PVC_ANNOTATIONS_KEY}"
            if name
            else f"{where}, which is not a key of this driver; "
            f"{PVC_ANNOTATIONS_KEY} of its StorageClass lists {', '.join(allowed_keys)}"
        )


def missing_keys_hint(annotated: AnnotatedParameters, claim: str) -> str:
    """Return what the author of the PVC can do about an incomplete source, "" if nothing."""
    if not annotated.missing_keys:
        return ""
    annotations = " or ".join(PREFIX + key for key in annotated.missing_keys)
    return f"; the StorageClass leaves that to PVC {claim}: give it the annotation {annotations}"
