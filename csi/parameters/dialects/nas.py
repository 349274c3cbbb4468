"""Folders of NFS exports, with the keys of Alibaba's NAS CSI driver and of csi-driver-nfs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from csi.errors import InvalidParameter
from csi.parameters.dialects import nfs_options
from csi.parameters.dialects.keys import Dialect, Key, MutableSource
from csi.values import integer_value, redact

_HOST = re.compile(
    r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?|\[?[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(%[A-Za-z0-9]+)?\]?"
)


@dataclass(frozen=True)
class NasSpec(MutableSource):
    """A folder of an NFS export.

    `server` is a host name or address, `path` the absolute path on the server (export and sub-folder
    together), `version` "3" or "4.0". `port` and `mount_port` are TCP ports; 0 means the one that the
    server's portmapper reports (v3) or 2049 (v4). `timeout` is for one call, in seconds; `retries` how often
    a call that timed out is sent again. `uid` and `gid` are the AUTH_SYS identity that reads.
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
    def display_name(self) -> str:
        return f"NAS {self.server}:{self.path}"

    @property
    def origin_scope(self) -> str:
        """The folder as read by that uid and gid."""
        return f"{self.display_name} as {self.uid}:{self.gid}"

    @property
    def addresses(self) -> tuple[str, ...]:
        """The server without a port, since NFS negotiates its ports."""
        return (self.server,)

    def to_context(self) -> dict[str, str]:
        """Return the flat parameters that parse to this spec; the timeout is in nfs(5)'s deciseconds."""
        options = [f"timeo={round(self.timeout * 10)}", f"retrans={self.retries}"]
        options += [
            f"{key}={port}" for key, port in (("port", self.port), ("mountport", self.mount_port)) if port
        ]
        context = {
            "type": "NAS",
            "server": self.server,
            "path": self.path,
            "vers": self.version,
            "options": ",".join(options),
        }
        return context | {key: str(value) for key, value in (("uid", self.uid), ("gid", self.gid)) if value}


def _parse_nas_source(values: Mapping[str, str], flags: Sequence[str]) -> NasSpec:
    server, path = _parse_server_and_path(values)
    # Later ones win: the StorageClass's mountOptions, then the keys of the volume.
    options = nfs_options.NfsOptions()
    for key, text in (
        ("mountOptions", ",".join(flags)),
        ("mountOptions", values.get("mountOptions", "")),
        ("options", values.get("options", "")),
    ):
        options = options.with_overrides(nfs_options.parse_nfs_options(text, key))
    version = nfs_options.parse_version(values["vers"]) if values.get("vers") else options.version or "3"
    return NasSpec(
        server=server,
        path=path,
        version=version,
        port=options.port or 0,
        mount_port=options.mount_port or 0,
        timeout=60.0 if options.timeout is None else options.timeout,
        retries=2 if options.retries is None else options.retries,
        uid=integer_value("uid", values.get("uid", "0"), 0, 2**32 - 2),
        gid=integer_value("gid", values.get("gid", "0"), 0, 2**32 - 2),
    )


def _parse_server_and_path(values: Mapping[str, str]) -> tuple[str, str]:
    server_text = values.get("server", "")
    server, colon, path_after_colon = server_text.partition(":/")
    path = values.get("path", "") or values.get("share", "") or (colon and "/" + path_after_colon)
    if not server:
        raise InvalidParameter("server is missing; give the NAS's host name or address")
    # With a scheme or a user, "host:/path" would be split at the wrong colon and a password end up in the
    # path.
    if not _HOST.fullmatch(server) or "://" in server_text or "@" in server_text:
        raise InvalidParameter(
            f"server is {redact(server_text, 100)}; "
            "it is a host name or address, without scheme, port or user"
        )
    if values.get("path") and values.get("share"):
        raise InvalidParameter("path and share are both given; they are two spellings of one thing, keep one")
    if not path:
        raise InvalidParameter(
            "path is missing; give the export (and folder) on the NAS, such as /share/models"
        )
    return server.strip("[]"), _join_absolute(path, values.get("subDir", ""))


def _join_absolute(path: str, sub_dir: str) -> str:
    parts = [part for part in (path + "/" + sub_dir).split("/") if part]
    if not path.startswith("/") or ".." in parts or "." in parts:
        raise InvalidParameter(
            f"path is {redact(path, 100)} with subDir {redact(sub_dir, 100)}; "
            "together they are an absolute path without '.' or '..'"
        )
    return "/" + "/".join(parts)


DIALECT = Dialect(
    "nas",
    "a NAS",
    "A NAS",
    ("NAS",),
    (
        Key("server", "host name or address; `host:/path` is taken too", is_required=True),
        Key("path", "absolute path on the server, export and folder together", is_required=True),
        Key("share", "another spelling of `path`"),
        Key("subDir", "a folder below `path` or `share`"),
        Key("vers", "`3`, `4` or `4.0`; `4.1` and `4.2` are read over 4.0", "`3`"),
        Key(
            "options",
            "options of nfs(5), by commas: `vers`, `port`, `mountport`, `timeo`, "
            "`retrans` and `proto=tcp` count, those that steer a kernel client "
            "are taken without effect, others are refused",
        ),
        Key("mountOptions", "the same; a StorageClass's or PV's own `mountOptions` are read too"),
        Key("uid", "who reads (AUTH_SYS)", "`0`"),
        Key("gid", "the group that reads (AUTH_SYS)", "`0`"),
    ),
    _parse_nas_source,
)
