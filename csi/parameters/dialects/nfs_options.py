"""NFS mount options as in nfs(5): which of them a copying reader honours, ignores or refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from csi.errors import InvalidParameter
from csi.values import integer_value, redact

# Options of the kernel's client (caching, locking, write-back, mounting), without effect on a reader that
# copies every byte once.
_WITHOUT_EFFECT = frozenset(
    "nolock lock noresvport resvport rsize wsize bsize hard soft softerr intr nointr ac noac actimeo "
    "acregmin acregmax acdirmin acdirmax cto nocto "
    "rdirplus nordirplus local_lock fsc nofsc sharecache nosharecache nconnect max_connect lookupcache "
    "noatime nodiratime relatime atime ro sync "
    "async rw defaults tcp tcp6 suid nosuid dev nodev exec noexec _netdev nofail auto noauto mountvers retry "
    "bg fg namlen acl noacl softreval "
    "nosoftreval migration nomigration clientaddr posix noposix".split()
)
# The reader speaks v3 and v4.0; a server of 4.1 or 4.2 accepts 4.0 too.
_VERSIONS = {"3": "3", "3.0": "3", "4": "4.0", "4.0": "4.0", "4.1": "4.0", "4.2": "4.0"}


@dataclass(frozen=True)
class NfsOptions:
    """Options that change how the server is read; None if not given.

    `timeout` is in seconds (nfs(5)'s timeo is in tenths of a second).
    """

    version: str | None = None
    port: int | None = None
    mount_port: int | None = None
    timeout: float | None = None
    retries: int | None = None

    def with_overrides(self, overrides: NfsOptions) -> NfsOptions:
        """Return a copy in which the options given in `overrides` replace these."""
        return NfsOptions(
            version=self.version if overrides.version is None else overrides.version,
            port=self.port if overrides.port is None else overrides.port,
            mount_port=self.mount_port if overrides.mount_port is None else overrides.mount_port,
            timeout=self.timeout if overrides.timeout is None else overrides.timeout,
            retries=self.retries if overrides.retries is None else overrides.retries,
        )


def parse_version(text: str) -> str:
    """Parse an NFS version into "3" or "4.0"; 4.1 and 4.2 are read over 4.0. Raises InvalidParameter."""
    if text not in _VERSIONS:
        raise InvalidParameter(f"vers is {redact(text)}; it is one of {', '.join(_VERSIONS)}")
    return _VERSIONS[text]


def parse_nfs_options(text: str, key: str) -> NfsOptions:
    """Parse a comma separated option list.

    Raises InvalidParameter naming `key` and the option that cannot be honoured.
    """
    options = NfsOptions()
    for item in filter(None, (part.strip() for part in text.split(","))):
        options = _apply_option(options, item, key)
    return options


def _apply_option(options: NfsOptions, item: str, key: str) -> NfsOptions:
    name, _, value = item.partition("=")
    name = name.lower()
    if name in _OPTION_PARSERS:
        return _OPTION_PARSERS[name](options, value)
    if name in ("proto", "mountproto"):
        return _check_value(options, name, value, ("tcp", "tcp6"))
    if name == "sec":
        return _check_value(options, name, value, ("sys",))
    if name in _WITHOUT_EFFECT:
        return options
    # Only the name: the value may be a secret (CIFS has password=).
    raise InvalidParameter(
        f"{key} has the NFS option {redact(name)}, which this driver cannot honour; remove it"
    )


def _check_value(options: NfsOptions, name: str, value: str, allowed: tuple[str, ...]) -> NfsOptions:
    if value.lower() not in allowed:
        raise InvalidParameter(
            f"the NFS option {redact(f'{name}={value}')} cannot be honoured; use {name}={allowed[0]}"
        )
    return options


_OPTION_PARSERS: dict[str, Callable[[NfsOptions, str], NfsOptions]] = {
    "vers": lambda o, v: replace(o, version=parse_version(v)),
    "nfsvers": lambda o, v: replace(o, version=parse_version(v)),
    "minorversion": lambda o, v: replace(o, version=parse_version(f"4.{v}")),
    "port": lambda o, v: replace(o, port=integer_value("port", v, 0, 65535)),
    "mountport": lambda o, v: replace(o, mount_port=integer_value("mountport", v, 0, 65535)),
    "timeo": lambda o, v: replace(o, timeout=integer_value("timeo", v, 1, 36000) / 10),
    "retrans": lambda o, v: replace(o, retries=integer_value("retrans", v, 0, 100)),
}
