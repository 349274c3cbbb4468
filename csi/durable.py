"""Files that are whole or absent, whatever happens in between: temporary name, fsync, rename, fsync of the folder."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any


def write_bytes(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Put `data` at `path`, replacing what is there, with permission bits `mode`. Raises OSError."""
    temporary = path.with_name(f".{path.name[:200]}.{uuid.uuid4().hex}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(descriptor)
        rename_durably(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def rename_durably(source: Path, target: Path) -> None:
    """Rename on one file system, replacing `target`, and make the new name survive a power cut. Raises OSError."""
    os.rename(source, target)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_durably(path: Path) -> None:
    """Remove a file for good; one that is not there is no error."""
    path.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_json(path: Path, value: Any, mode: int = 0o600) -> None:
    """Put `value` as JSON at `path`, as `write_bytes` does."""
    write_bytes(path, json.dumps(value, sort_keys=True, indent=1).encode() + b"\n", mode)


def read_json(path: Path) -> Any:
    """The JSON value at `path`. Raises FileNotFoundError, or ValueError when it is no JSON."""
    return json.loads(path.read_bytes())
