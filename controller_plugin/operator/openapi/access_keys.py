"""The access keys of the OpenAPI: a Secret that is mounted as a folder, one file an AccessKeyId with its secret."""

from __future__ import annotations

import re
from pathlib import Path

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class AccessKeys:
    """Read at each use, since a Secret may be replaced; no folder is no key."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def find_secret(self, key_id: str) -> str | None:
        """The secret of an access key, None for one that there is not."""
        if self._folder is None or not _ID.fullmatch(key_id):
            return None
        try:
            return (self._folder / key_id).read_text().strip() or None
        except OSError:
            return None
