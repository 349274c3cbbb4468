"""Provenance: the origin scopes that the bytes of an image are known to come from.

A listing that claims a digest proves nothing: otherwise, whoever writes a pointer to another tenant's file
would get that file's image. So an image records in `places.json`, next to its manifest: `filled`, the origin
scopes that its fill read from, and `vouched`, those whose bytes were compared with the image later. A fill
that read from a single scope got every byte from there; if several scopes gave a part each, none of them is
known to have the rest. An origin scope is the sha256 of what a credential opens (`origin_scope` of a source's
spec) and the network it is reached through.
"""

from __future__ import annotations

from csi.errors import DataCacheError
from csi.images.node_store.records import ImagePaths
from csi.linux.durable_files import read_json, write_json
from csi.manifest.manifest import Manifest
from csi.parameters.origin_scope import compute_origin_scope

PROVENANCE_FORMAT = 1
MAX_VERIFIED_SCOPES = 256
"""Number of verified scopes recorded for an image; one that was dropped is verified again."""
_UNKNOWN_SCOPE = "unknown"
IMAGE_STORE_SCOPE = "image-store"
"""The scope of bytes from the image store, which prove nothing about the volume's own origin."""


def read_provenance(paths: ImagePaths) -> tuple[str, ...]:
    """Return the scopes known to have a sealed image, the last verified first.

    Empty if the record is damaged.
    """
    filled, verified = _read(paths)
    return (*reversed(verified), *(filled if len(filled) == 1 else ()))


def mark_filling_from(paths: ImagePaths, origin_scope: str) -> None:
    """Record durably that a fill will read from `origin_scope`; must be called before it does.

    Raises OSError.
    """
    filled, _ = _read(paths) if paths.partial.exists() else ((), ())
    # Two scopes already mean that none of them is known to have everything; more add nothing.
    _write(paths, tuple(dict.fromkeys((*filled, origin_scope)))[:2], ())


def mark_verified(paths: ImagePaths, origin_scope: str) -> None:
    """Record durably that the bytes of `origin_scope` are those of the sealed image; raises OSError."""
    filled, verified = _read(paths)
    others = tuple(other for other in verified if other != origin_scope)
    _write(paths, filled, (*others, origin_scope)[-MAX_VERIFIED_SCOPES:])


def _read(paths: ImagePaths) -> tuple[tuple[str, ...], tuple[str, ...]]:
    try:
        record = read_json(paths.provenance, PROVENANCE_FORMAT)
        # "vouched" and the file name places.json are former words for "verified" and "provenance". They stay,
        # since stores of earlier versions have them.
        return tuple(map(str, record["filled"])), tuple(map(str, record["vouched"]))
    except FileNotFoundError:
        return (_origin_scope_of_manifest(paths),), ()
    except (DataCacheError, KeyError, TypeError):
        # Two scopes, so that the image counts as coming from none: see `read_provenance`.
        return (_UNKNOWN_SCOPE, _UNKNOWN_SCOPE), ()


def _origin_scope_of_manifest(paths: ImagePaths) -> str:
    """Return the scope of an image of version 0.1.0, which has no record.

    Such images were filled from the source in their manifest, or from one that was verified against it.
    """
    try:
        with paths.manifest.open("rb") as stream:
            return compute_origin_scope(Manifest.read_access(stream))
    except (OSError, DataCacheError):
        return _UNKNOWN_SCOPE


def _write(paths: ImagePaths, filled: tuple[str, ...], verified: tuple[str, ...]) -> None:
    write_json(
        paths.provenance, {"format": PROVENANCE_FORMAT, "filled": list(filled), "vouched": list(verified)}
    )
