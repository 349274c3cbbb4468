"""CacheSpec: where a volume's data lives, in one form whatever dialect it was written in. Holds no secret."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

REPO_SOURCES = ("HuggingFace/Model", "HuggingFace/DataSet")


@dataclass(frozen=True)
class HubSpec:
    """A repository of a model hub.

    `repo_source` is one of REPO_SOURCES, `repo_id` "org/name" or "name", `revision` a branch, tag or (pinned) commit.
    `allow_patterns` and `ignore_patterns` are shell patterns over repository paths, as `hf download` has them; empty
    means all and none.
    """

    repo_source: str
    repo_id: str
    revision: str = "main"
    allow_patterns: tuple[str, ...] = ()
    ignore_patterns: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        """The source as messages name it."""
        return f"{self.repo_source} {self.repo_id}@{self.revision}"


@dataclass(frozen=True)
class NasSpec:
    """A folder of an NFS export.

    `server` is a host name or address, `path` the absolute path on the server (export and sub-folder together),
    `version` "3" or "4.0". `port` and `mount_port` are TCP ports, 0 to ask the server's portmapper (v3) or for 2049
    (v4). `timeout` is for one call, in seconds; `retries` how often a call that timed out is sent again.
    `uid` and `gid` are the AUTH_SYS identity that reads.
    """

    server: str
    path: str
    version: str = "3"
    port: int = 0
    mount_port: int = 0
    timeout: float = 60.0
    retries: int = 2
    uid: int = 0
    gid: int = 0

    @property
    def shown(self) -> str:
        """The source as messages name it."""
        return f"NAS {self.server}:{self.path}"


@dataclass(frozen=True)
class CacheSpec:
    """A source and how its files look in the image (`preserve_ownership`: keep uid, gid and mode)."""

    source: HubSpec | NasSpec
    preserve_ownership: bool = False
