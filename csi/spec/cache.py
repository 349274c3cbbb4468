"""CacheSpec: where a volume's data lives, in one form whatever dialect it was written in. Holds no secret."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

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
        return f"{self.place}@{self.revision}"

    @property
    def place(self) -> str:
        """What a credential opens: the repository, whatever its revision."""
        return f"{self.repo_source} {self.repo_id}"

    def to_context(self) -> dict[str, str]:
        """The flat parameters that parse to this spec."""
        context = {"type": "URL", "repoSource": self.repo_source, "repoId": self.repo_id, "revision": self.revision}
        patterns = {"allowPatterns": self.allow_patterns, "ignorePatterns": self.ignore_patterns}
        return context | {key: join_list(value) for key, value in patterns.items() if value}


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

    @property
    def place(self) -> str:
        """What a credential opens: the folder."""
        return self.shown

    def to_context(self) -> dict[str, str]:
        """The flat parameters that parse to this spec; the timeout is written as nfs(5)'s deciseconds."""
        options = [f"timeo={round(self.timeout * 10)}", f"retrans={self.retries}"]
        options += [f"{key}={port}" for key, port in (("port", self.port), ("mountport", self.mount_port)) if port]
        context = {"type": "NAS", "server": self.server, "path": self.path, "vers": self.version, "options": ",".join(options)}
        return context | {key: str(value) for key, value in (("uid", self.uid), ("gid", self.gid)) if value}


@dataclass(frozen=True)
class CacheSpec:
    """A source and how its files look in the image (`preserve_ownership`: keep uid, gid and mode)."""

    source: HubSpec | NasSpec
    preserve_ownership: bool = False

    @property
    def moving(self) -> bool:
        """Whether the same spec can mean other content tomorrow: all but a commit."""
        return not (isinstance(self.source, HubSpec) and is_commit(self.source.revision))

    @property
    def source_moves(self) -> bool:
        """Whether no pin can hold the source still (a NAS); what it held is then told by the manifest's digest alone."""
        return isinstance(self.source, NasSpec)

    def to_context(self) -> dict[str, str]:
        """The spec as flat string parameters; `csi.spec.parameters.parse` of it gives an equal spec."""
        extra = {"preserveOwnership": "true"} if self.preserve_ownership else {}
        return self.source.to_context() | extra

    def canonical(self) -> str:
        """One text for each spec: the key under which answers about it are remembered."""
        return json.dumps(self.to_context(), sort_keys=True)


def is_commit(revision: str) -> bool:
    """Whether `revision` is a full commit id (40 hex digits), which never moves."""
    return re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def join_list(items: tuple[str, ...]) -> str:
    """Write a list into one parameter: by commas, or by line ends where an item holds a comma itself."""
    if any("," in item for item in items):
        return "\n".join(items) + ("\n" if len(items) == 1 else "")
    return ",".join(items)


def split_list(text: str) -> tuple[str, ...]:
    """Read what `join_list` wrote: lines if there is a line end in it, else comma separated; blanks trimmed."""
    parts = text.splitlines() if "\n" in text else text.split(",")
    return tuple(part.strip() for part in parts if part.strip())
