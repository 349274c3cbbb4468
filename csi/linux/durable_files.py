"""Files that are either complete and on disk, or absent: written to a temporary name, synced, renamed.

A record is a JSON object with its format version under "format".
"""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from csi.errors import DataCacheError

KEY_BYTES = 32
TEMP_SUFFIX = ".tmp"
"""Suffix of the names of unfinished files, which may be removed at start."""
# From <linux/fcntl.h> and <linux/fs.h>. A C library without renameat2 gets a plain rename.
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)


def fsync_folder(folder: Path) -> None:
    """Flush the entries of a folder to disk; raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_file(path: Path) -> None:
    """Flush the bytes of a file to disk; raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def rename_and_sync(source: Path, target: Path) -> None:
    """Rename and flush both folders to disk; raises OSError."""
    source.rename(target)
    fsync_folder(target.parent)
    if source.parent != target.parent:
        fsync_folder(source.parent)


def write_bytes(path: Path, data: bytes | memoryview, mode: int = 0o600) -> None:
    """Replace `path` by a file of exactly `data`, durably.

    Raises OSError, and then leaves no temporary file behind.
    """
    temp = path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMP_SUFFIX}")
    try:
        fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(fd, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(fd)
        rename_and_sync(temp, path)
    except BaseException:
        temp.unlink(missing_ok=True)
        raise


def replace_text_unsynced(path: Path, text: str) -> None:
    """Replace `path` by a file of exactly `text`, atomically but without syncing it. Raises OSError."""
    temp = path.with_name(f".{uuid.uuid4().hex}{TEMP_SUFFIX}")
    try:
        temp.write_text(text)
        # ext4 (auto_da_alloc) flushes the new file when a rename replaces another, behind all data a fill has
        # queued.
        # Exchanging the two names avoids the flush; the old file is then removed under the temporary name.
        if (
            _renameat2 is None
            or _renameat2(_AT_FDCWD, bytes(temp), _AT_FDCWD, bytes(path), _RENAME_EXCHANGE) != 0
        ):
            temp.rename(path)
    finally:
        temp.unlink(missing_ok=True)


def load_or_create_key(path: Path) -> bytes:
    """Return the 32 random bytes at `path`, creating the file (mode 0600) on first use.

    Raises OSError, or DataCacheError if the file is damaged.
    """
    if not path.exists():
        write_bytes(path, secrets.token_bytes(KEY_BYTES))
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise DataCacheError(f"the key {path} is damaged; remove it, and credentials are proven again")
    return key


def write_json(path: Path, record: dict[str, Any], mode: int = 0o600) -> None:
    """Write `record` to `path` durably, as `write_bytes` does."""
    write_bytes(path, json.dumps(record, sort_keys=True).encode() + b"\n", mode)


def read_json(path: Path, format_version: int | None = None) -> dict[str, Any]:
    """Return the record at `path`.

    Raises FileNotFoundError if there is none, and DataCacheError if it is damaged or not of the format
    `format_version`, where one is given.
    """
    try:
        record = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataCacheError(f"the record {path} is damaged; remove it") from error
    if not isinstance(record, dict):
        raise DataCacheError(f"the record {path} is damaged: it is not a JSON object; remove it")
    if format_version is not None and record.get("format") != format_version:
        raise DataCacheError(
            f"the record {path} has format {record.get('format')}, this driver reads {format_version}; "
            "run the version that wrote it, or remove it"
        )
    return record


def check_keys(stored: Mapping[str, Any], *known: str) -> None:
    """Raise TypeError for a key of a record that is not `known`.

    A later version may have written the key, and it may forbid what the rest of the record allows.
    """
    if unknown := stored.keys() - set(known):
        raise TypeError(f"it has {min(unknown)}, which this version of the driver does not know")
