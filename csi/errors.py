"""Error classes that a user of the driver can see.

Every message says what was wrong, where, and what to do about it, and holds no secret. The gRPC code of each
class is defined once, in `csi.server.grpc_server`. Errors cross the worker's pipe under the names in
`_WIRE_NAMES` (see `to_wire` and `from_wire`).
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any


class DataCacheError(Exception):
    """Base of all errors of this driver; raised directly it means a defect of the driver (INTERNAL)."""


class InvalidParameter(DataCacheError):
    """A key or value given by the caller cannot be used; the message names the key and the fix."""


class OutOfRange(DataCacheError):
    """The requested size does not fit the size of the content; the message has both numbers."""


class NotFound(DataCacheError):
    """The object of the call does not exist."""


class VolumeNotFound(NotFound):
    """There is no volume with this id."""


class SourceNotFound(NotFound):
    """The origin has no such repository, revision, export or folder."""


class AlreadyExists(DataCacheError):
    """The name or path is taken by something that differs from what is requested."""


class Unauthenticated(DataCacheError):
    """The origin requires a credential, or rejects the one it was given."""


class PermissionDenied(DataCacheError):
    """The origin denies read access to this caller, or the operator's policy forbids the request."""


class OriginUnavailable(DataCacheError):
    """The origin cannot be reached or reports a transient fault; retrying may help."""


class OriginThrottled(OriginUnavailable):
    """The origin rate-limits the driver (429, 503).

    `retry_after` is in seconds, 0 if the origin named no time.
    """

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class OriginTimedOut(OriginUnavailable):
    """The origin sent no byte within the timeout."""


class OriginUntrusted(OriginUnavailable):
    """The origin's TLS certificate is not trusted.

    Retrying does not help until the trust configuration changes.
    """


class RangesIgnored(OriginUnavailable):
    """The origin sends whole files where a range was requested.

    Retrying helps for sources that one reader can read in order.
    """


class Busy(DataCacheError):
    """Work on this volume is still running; a later call finds it further along."""


class FillStopped(DataCacheError):
    """A fill was stopped on request.

    What it has written and verified stays, and the next fill continues from there.
    """


class InvalidToken(DataCacheError):
    """A page token that this controller did not issue (CSI requires ABORTED)."""


class NoSpace(DataCacheError):
    """The node's store has too little space; the message names the space needed and the space available."""


class FailedPrecondition(DataCacheError):
    """The call is valid but the state of the system is not; the message says what has to change first."""


class SourceChanged(FailedPrecondition):
    """The source differs from what the volume was created from."""


class UnsafeContent(FailedPrecondition):
    """The source holds something that must not reach a node.

    Examples are special files and paths that leave the tree.
    """


class UnsupportedByNode(FailedPrecondition):
    """The node's kernel or system lacks something the driver needs."""


class ClusterUnavailable(DataCacheError):
    """The Kubernetes API server cannot be reached or reports a transient fault; retrying may help."""


class ClusterForbids(FailedPrecondition):
    """The Kubernetes API server denies this program the request; the message names the missing permission."""


class ClusterConflict(Busy):
    """An object of the cluster was changed concurrently; a later call sees its new state."""


class CorruptContent(DataCacheError):
    """The origin sent bytes that do not match its own digest."""


class WorkerDied(DataCacheError):
    """A worker process ended before it finished its work."""


ORIGIN_LOST = (OriginUnavailable, SourceChanged, SourceNotFound)
"""Errors that mean the origin is gone or has changed."""
STORE_FALLBACK_ERRORS = (*ORIGIN_LOST, Unauthenticated, PermissionDenied)
"""Errors that reading from an image store can work around.

Hubs report a deleted repository as one that requires a login, hence the last two.
"""
_WIRE_NAMES: dict[type[DataCacheError], str] = {
    DataCacheError: "DataCacheError",
    InvalidParameter: "InvalidParameter",
    OutOfRange: "OutOfRange",
    NotFound: "NotFound",
    VolumeNotFound: "VolumeNotFound",
    SourceNotFound: "SourceNotFound",
    AlreadyExists: "AlreadyExists",
    Unauthenticated: "Unauthenticated",
    PermissionDenied: "PermissionDenied",
    OriginUnavailable: "OriginUnavailable",
    OriginThrottled: "OriginThrottled",
    OriginTimedOut: "OriginTimedOut",
    OriginUntrusted: "OriginUntrusted",
    RangesIgnored: "RangesIgnored",
    Busy: "Busy",
    FillStopped: "FillStopped",
    InvalidToken: "InvalidToken",
    NoSpace: "NoSpace",
    FailedPrecondition: "FailedPrecondition",
    SourceChanged: "SourceChanged",
    UnsafeContent: "UnsafeContent",
    UnsupportedByNode: "UnsupportedByNode",
    ClusterUnavailable: "ClusterUnavailable",
    ClusterForbids: "ClusterForbids",
    ClusterConflict: "ClusterConflict",
    CorruptContent: "CorruptContent",
    WorkerDied: "WorkerDied",
}
"""Name of each class on the worker's pipe, independent of renames in this module."""
_OF_WIRE_NAME = {name: kind for kind, name in _WIRE_NAMES.items()}


def as_disk_full_error(error: BaseException) -> BaseException:
    """Return NoSpace if `error` is the kernel's report of a full disk, else `error`.

    Any write may raise ENOSPC or EDQUOT.
    """
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" (writing {error.filename})" if error.filename else ""
        return NoSpace(f"a disk of this machine is full{where}; free or add space on the node")
    return error


def with_message(error: DataCacheError, message: str) -> DataCacheError:
    """Return an error of the same class with another message; other attributes of the class are kept."""
    if isinstance(error, OriginThrottled):
        return type(error)(message, error.retry_after)
    return type(error)(message)


def to_wire(error: BaseException) -> dict[str, Any]:
    """Return `{"kind": wire name, "message": text}`, with `retry_after` (seconds) for OriginThrottled.

    A class without a wire name uses that of its nearest base. Of a foreign exception only the class name
    crosses the pipe, since its text is not vetted for secrets.
    """
    if not isinstance(error, DataCacheError):
        return {
            "kind": "DataCacheError",
            "message": f"unexpected {type(error).__name__} in a worker; its log has the place",
        }
    name = next(_WIRE_NAMES[base] for base in type(error).__mro__ if base in _WIRE_NAMES)
    wire: dict[str, Any] = {"kind": name, "message": str(error)}
    return wire | ({"retry_after": error.retry_after} if isinstance(error, OriginThrottled) else {})


def from_wire(wire: Mapping[str, Any]) -> DataCacheError:
    """Return the error that `to_wire` serialized; an unknown kind becomes the base class."""
    kind = _OF_WIRE_NAME.get(wire["kind"], DataCacheError)
    if issubclass(kind, OriginThrottled):
        return kind(wire["message"], wire.get("retry_after", 0.0))
    return kind(wire["message"])
