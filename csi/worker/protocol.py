"""The protocol between plugin and worker: one JSON object per line.

Requests arrive on the worker's standard input, events leave on its standard output. Secrets are in requests
only. A request is answered by any number of progress events, then one result or one error. A worker whose
input ends stops at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from csi.linux.durable_files import check_keys
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.volume_parameters import parse_volume_parameters

Operation = Literal[
    "pin",
    "resolve",
    "fill",
    "verify",
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
class WorkerRequest:
    """One operation for a worker. Paths are absolute, "" where an operation does not use them.

    `spec` is a cache spec as flat parameters; a fill or verify whose `spec` is empty takes the manifest's.
    `allowed_destinations` are the operator's (`csi.destinations.destinations`); the pool adds them.

    - pin: return the pinned spec.
    - resolve: list the source, check read access and write the manifest to `manifest`, if given.
    - fill: read `manifest`, fill `partial` (journal: `journal`) over `connections` connections and seal it as
      `image`. Extents of the images in the folders `reuse_candidates` are copied. The image store is tried
      first; if there is none to try, `image_store_error` is the reason, and is part of the fill's own error.
    - verify: compare the sealed `image` of `manifest` with the source, at ranges chosen by `seed` (hex).

    `image_store` is the URL of the image store, "" for none; `store_secrets` is the driver's own credential
    for it. Operations on the image store:

    - store: upload the image in the folder `image`, recorded as filled from `access`.
    - stored: return the facts of the image named by `digest`, a digest or snapshot id; empty if there is
    none.
    - stored-manifest: write the manifest of `digest` to `manifest`.
    - stored-images: write the facts of all images to `manifest`, one JSON object per line.
    - collect: remove images whose digest is not in the file `manifest` (one per line) and was not for `grace`
      seconds; return the removed digests.
    - unstore: remove `digest`.
    - copy: copy the image `digest` to the image store `target_store`, with `target_secrets`.
    - announce, withdraw: publish or remove one `announcement`.
    - announced: return all announcements, and the errors of those that are `damaged`.
    """

    operation: Operation
    spec: dict[str, str]
    secrets: dict[str, str] = field(repr=False)
    manifest: str = ""
    partial: str = ""
    journal: str = ""
    image: str = ""
    connections: int = 4
    allowed_destinations: tuple[str, ...] = ()
    reuse_candidates: tuple[str, ...] = ()
    # Secret: an origin that knew it could send the right bytes in the compared ranges only.
    seed: str = field(default="", repr=False)
    image_store: str = ""
    store_secrets: dict[str, str] = field(default_factory=dict, repr=False)
    image_store_error: str = ""
    access: dict[str, str] = field(default_factory=dict)
    digest: str = ""
    grace: float = 0.0
    target_store: str = ""
    target_secrets: dict[str, str] = field(default_factory=dict, repr=False)
    announcement: dict[str, Any] = field(default_factory=dict)

    @property
    def egress_profile(self) -> str:
        """The egress profile of all connections, "" for none."""
        return self.spec.get("egressProfile", "")

    def encode(self) -> bytes:
        """Return the request as one line."""
        # Some keys differ from the fields' names; plugin and worker are of the same version.
        wire = {
            "operation": self.operation,
            "spec": self.spec,
            "secrets": self.secrets,
            "manifest": self.manifest,
            "partial": self.partial,
            "journal": self.journal,
            "image": self.image,
            "connections": self.connections,
            "allowed": self.allowed_destinations,
            "donors": self.reuse_candidates,
            "seed": self.seed,
            "image_store": self.image_store,
            "store_secrets": self.store_secrets,
            "store_said": self.image_store_error,
            "access": self.access,
            "digest": self.digest,
            "grace": self.grace,
            "target": self.target_store,
            "target_secrets": self.target_secrets,
            "announcement": self.announcement,
        }
        return json.dumps(wire).encode() + b"\n"

    @staticmethod
    def decode(line: bytes) -> WorkerRequest:
        """Return the request in one line."""
        wire = json.loads(line)
        return WorkerRequest(
            operation=wire["operation"],
            spec=wire["spec"],
            secrets=wire["secrets"],
            manifest=wire["manifest"],
            partial=wire["partial"],
            journal=wire["journal"],
            image=wire["image"],
            connections=wire["connections"],
            allowed_destinations=tuple(wire["allowed"]),
            reuse_candidates=tuple(wire["donors"]),
            seed=wire["seed"],
            image_store=wire["image_store"],
            store_secrets=wire["store_secrets"],
            image_store_error=wire["store_said"],
            access=wire["access"],
            digest=wire["digest"],
            grace=wire["grace"],
            target_store=wire["target"],
            target_secrets=wire["target_secrets"],
            announcement=wire["announcement"],
        )


@dataclass(frozen=True)
class Resolution:
    """Result of a resolve: the pinned `spec`, the manifest's `digest` and sizes in bytes.

    `unverifiable_count` is the number of files for which the origin gives no digest.
    """

    spec: CacheSpec
    digest: str
    content_bytes: int
    image_bytes: int
    file_count: int
    unverifiable_count: int

    def encode(self) -> dict[str, Any]:
        """Return the resolution as JSON values, for the worker's pipe and `ProofMemory`."""
        # These keys are stored by `ProofMemory`: a changed key would void all proofs.
        return {
            "spec": self.spec.to_context(),
            "digest": self.digest,
            "content_bytes": self.content_bytes,
            "image_bytes": self.image_bytes,
            "files": self.file_count,
            "unverifiable": self.unverifiable_count,
        }

    @staticmethod
    def decode(wire: Mapping[str, Any]) -> Resolution:
        """Return the resolution that `encode` wrote; raise KeyError or TypeError for anything else."""
        check_keys(wire, "spec", "digest", "content_bytes", "image_bytes", "files", "unverifiable")
        return Resolution(
            spec=parse_volume_parameters(wire["spec"]).spec,
            digest=wire["digest"],
            content_bytes=wire["content_bytes"],
            image_bytes=wire["image_bytes"],
            file_count=wire["files"],
            unverifiable_count=wire["unverifiable"],
        )
