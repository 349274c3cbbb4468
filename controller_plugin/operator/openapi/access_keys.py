"""Access keys of the OpenAPI, in a Secret mounted as a folder.

A file per AccessKeyId holds its secret.
"""

from __future__ import annotations

import re
from pathlib import Path

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class AccessKeys:
    """Access keys, read at each use since a Secret may be replaced.

    Without a folder there are none.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def find_secret(self, key_id: str) -> str | None:
        """Return the secret of an access key, or None."""
        if self._folder is None or not _ID.fullmatch(key_id):
            return None
        try:
            return (self._folder / key_id).read_text().strip() or None
        except OSError:
            return None
