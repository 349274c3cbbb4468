"""What plugin and worker say to each other: one JSON object a line, requests on the worker's input, events on its output.

Secrets travel in requests only. A worker answers a request with any number of progress events and then one result or
one error; the end of its input orders it to stop at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from csi.parameters.cache_spec import CacheSpec
from csi.parameters.volume_parameters import parse

Operation = Literal[
    "pin",
    "resolve",
    "fill",
    "vouch",
    "store",
    "stored",
    "stored-manifest",
    "stored-images",
    "collect",
    "unstore",
    "copy",
    "announce",
    "announced",
    "withdraw",
]


@dataclass(frozen=True)
class Request:
    """One order. `spec` is a cache spec as flat parameters; a fill or vouch whose `spec` is empty takes the manifest's.

    `allowed` are the operator's destinations (`csi.destinations.destinations`), put in by the pool.
    Paths are absolute, "" where an operation has no use for them.
    pin: result is the pinned spec. resolve: list, prove and, where `manifest` is given, write the manifest there.
    fill: read `manifest`, fill `partial` (with its `journal`) over `connections` connections and seal it as `image`; copy what
    the images in the folders `donors` hold of it. vouch: compare the sealed `image` of `manifest` with the source at ranges
    that `seed` (hex) decides.

    `image_store` is the URL of the image store, "" for none, `store_secrets` the driver's own credential for it; a fill takes the image from
    there where it has it, and one without it says `store_said` too when it fails: why the image does not come from there.
    store: bring the image in the folder `image` there, as filled from `access`. stored: result are the facts of the image of the digest or
    snapshot id `digest`, empty where there is none. stored-manifest: write the manifest of `digest` to `manifest`. stored-images: write the
    facts of all to `manifest`, one JSON object a line. collect: remove what is not among the digests in the file `manifest`, one a line, and
    was not for `grace` seconds; result are the digests of what is gone. unstore: remove `digest`. copy: bring the image `digest` to the image
    store `target` (with `target_secrets`). announce, withdraw: of one `announcement`.
    announced: result are all of them, and what is wrong with those that are `damaged`.
    """

    operation: Operation
    spec: dict[str, str]
    secrets: dict[str, str] = field(repr=False)
    manifest: str = ""
    partial: str = ""
    journal: str = ""
    image: str = ""
    connections: int = 4
    allowed: tuple[str, ...] = ()
    donors: tuple[str, ...] = ()
    seed: str = field(default="", repr=False)
    image_store: str = ""
    store_secrets: dict[str, str] = field(default_factory=dict, repr=False)
    store_said: str = ""
    access: dict[str, str] = field(default_factory=dict)
    digest: str = ""
    grace: float = 0.0
    target: str = ""
    target_secrets: dict[str, str] = field(default_factory=dict, repr=False)
    announcement: dict[str, Any] = field(default_factory=dict)

    @property
    def profile(self) -> str:
        """The egress profile that all of it goes through, "" for none."""
        return self.spec.get("egressProfile", "")

    def encode(self) -> bytes:
        """The request as one line."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @staticmethod
    def decode(line: bytes) -> Request:
        """The request in one line."""
        return Request(**json.loads(line))


@dataclass(frozen=True)
class Resolution:
    """What a resolve found: the pinned `spec`, the manifest's `digest` and sizes in bytes; `unverifiable` counts files without an origin digest."""

    spec: CacheSpec
    digest: str
    content_bytes: int
    image_bytes: int
    files: int
    unverifiable: int

    def encode(self) -> dict[str, Any]:
        """The resolution as JSON values."""
        return {**asdict(self), "spec": self.spec.to_context()}

    @staticmethod
    def decode(wire: Mapping[str, Any]) -> Resolution:
        """The resolution that `encode` wrote."""
        return Resolution(**{**wire, "spec": parse(wire["spec"]).spec})
