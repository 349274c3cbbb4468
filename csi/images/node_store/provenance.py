"""From which places the bytes of an image are known to come.

A listing that claims a digest proves nothing: whoever writes a pointer to another tenant's file would have that file's
image. So an image keeps, beside its manifest, in `places.json`: `filled`, the places that its fill has read from, and
`vouched`, those whose bytes were compared with the image since. A fill that read from one place alone has had every byte
from there; where several gave a part each, none of them is known to hold the rest. A place is the sha256 of what a
credential opens (`place` of a source's spec) and of the network that it is reached through.
"""

from __future__ import annotations

from csi.errors import DataCacheError
from csi.images.node_store.records import ImagePaths
from csi.linux.durable_files import read_json, write_json
from csi.manifest.manifest import Manifest
from csi.parameters.origin_scope import compute_origin_scope

PROVENANCE_FORMAT = 1
MAX_VERIFIED_SCOPES = 256
"""An image remembers so many places beside the first; one that was forgotten is compared again."""
_UNKNOWN_SCOPE = "unknown"
IMAGE_STORE_SCOPE = "image-store"
"""The place of bytes that came from the image store, where nobody knows that the volume's own place holds them."""


def read_provenance(paths: ImagePaths) -> tuple[str, ...]:
    """The places known to hold a sealed image, the last vouched first; none where the record is damaged."""
    filled, verified = _read(paths)
    return (*reversed(verified), *(filled if len(filled) == 1 else ()))


def mark_filling_from(paths: ImagePaths, origin_scope: str) -> None:
    """Write down, durably, that a fill is going to read from `origin_scope`, before it does; raises OSError."""
    filled, _ = _read(paths) if paths.partial.exists() else ((), ())
    # More than two tell no more than two.
    _write(paths, tuple(dict.fromkeys((*filled, origin_scope)))[:2], ())


def mark_verified(paths: ImagePaths, origin_scope: str) -> None:
    """Write down, durably, that the bytes of `origin_scope` are those of the sealed image; raises OSError."""
    filled, verified = _read(paths)
    others = tuple(other for other in verified if other != origin_scope)
    _write(paths, filled, (*others, origin_scope)[-MAX_VERIFIED_SCOPES:])


def _read(paths: ImagePaths) -> tuple[tuple[str, ...], tuple[str, ...]]:
    try:
        record = read_json(paths.provenance, PROVENANCE_FORMAT)
        return tuple(map(str, record["filled"])), tuple(map(str, record["vouched"]))
    except FileNotFoundError:
        return (_origin_scope_of_manifest(paths),), ()
    except (DataCacheError, KeyError, TypeError):
        return (_UNKNOWN_SCOPE, _UNKNOWN_SCOPE), ()


def _origin_scope_of_manifest(paths: ImagePaths) -> str:
    """Images of version 0.1.0 have no record; they were filled from where their manifest says, or a place that proved as much."""
    try:
        with paths.manifest.open("rb") as stream:
            return compute_origin_scope(Manifest.read_access(stream))
    except (OSError, DataCacheError):
        return _UNKNOWN_SCOPE


def _write(paths: ImagePaths, filled: tuple[str, ...], verified: tuple[str, ...]) -> None:
    write_json(
        paths.provenance, {"format": PROVENANCE_FORMAT, "filled": list(filled), "vouched": list(verified)}
    )
