"""Repositories as a hub keeps them: commits of files, branches and tags, who may see them.

No HTTP in here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

LFS_SUFFIXES = (".bin", ".gguf", ".h5", ".onnx", ".ot", ".parquet", ".pt", ".safetensors")
LFS_OVER = 10 << 20


@dataclass(frozen=True)
class Declared:
    """A file that is only said to be there: listed with `size` bytes and `sha256`, sent as zeros."""

    size: int
    sha256: str = "0" * 64


Content = bytes | Path | Declared
Files = Mapping[str, Content]


@dataclass(frozen=True)
class StoredFile:
    """A file of a commit. `oid` is the git blob id (of the LFS pointer, for an LFS file).

    `sha256` is empty unless LFS.
    """

    content: Content
    size: int
    oid: str
    sha256: str = ""

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid

    @property
    def xet_hash(self) -> str:
        """64 hex digits that only look like Xet's: there is no such store here."""
        return hashlib.sha256(f"xet {self.sha256}".encode()).hexdigest()

    @property
    def pointer_size(self) -> int:
        return len(_pointer(self.sha256, self.size))


@dataclass(frozen=True, eq=False)
class Commit:
    sha: str
    files: dict[str, StoredFile]


@dataclass
class Repository:
    """`kind` is "model" or "dataset". `readers` may see a private one, `granted` may read a gated one's files
    (both: tokens).

    With `xet` its large files are also named by their hash in Xet's store, as the public hub does by now.
    """

    kind: str
    id: str
    private: bool = False
    gated: bool = False
    xet: bool = False
    readers: set[str] = field(default_factory=set)
    granted: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(
        self, files: Files, *, branch: str = "main", lfs_over: int = LFS_OVER, digests: Path | None = None
    ) -> str:
        """Make `files` the whole content of `branch`; returns the commit's id.

        `digests` is a file that remembers what was hashed.
        """
        stored = {
            path: stored_file(path, content, lfs_over, digests) for path, content in sorted(files.items())
        }
        parent = self.branches.get(branch, "")
        tree = json.dumps([[path, f.oid, f.size] for path, f in stored.items()])
        sha = hashlib.sha1(f"{self.kind} {self.id} {parent} {len(self.commits)} {tree}".encode()).hexdigest()
        self.commits[sha] = Commit(sha, stored)
        self.branches[branch] = sha
        return sha

    def update(self, files: Files, *, branch: str = "main", lfs_over: int = LFS_OVER) -> str:
        """A commit on `branch` that adds or replaces `files` and keeps the rest."""
        kept = {path: f.content for path, f in self.commits[self.branches[branch]].files.items()}
        return self.commit({**kept, **files}, branch=branch, lfs_over=lfs_over)

    def tag(self, name: str, revision: str = "main") -> None:
        found = self.at(revision)
        assert found is not None
        self.tags[name] = found.sha

    def at(self, revision: str) -> Commit | None:
        """What a branch, tag or commit id means now."""
        return self.commits.get(self.branches.get(revision) or self.tags.get(revision) or revision)


def stored_file(
    path: str, content: Content, lfs_over: int = LFS_OVER, digests: Path | None = None
) -> StoredFile:
    size = size_of(content)
    if path.endswith(LFS_SUFFIXES) or size > lfs_over:
        sha256 = _sha256(content, digests)
        return StoredFile(content, size, git_blob_id(_pointer(sha256, size)), sha256)
    return StoredFile(
        content, size, git_blob_id(content.read_bytes() if isinstance(content, Path) else _plain(content))
    )


def git_blob_id(data: bytes) -> str:
    """Git's name for `data` (git-hash-object(1))."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def size_of(content: Content) -> int:
    if isinstance(content, Path):
        return content.stat().st_size
    return content.size if isinstance(content, Declared) else len(content)


def files_below(folder: Path) -> dict[str, Content]:
    """Every file below `folder` by its relative path; names that start with ".hub-" are the hub's own."""
    return {
        str(p.relative_to(folder)): p
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not p.name.startswith(".hub-")
    }


def _plain(content: bytes | Declared) -> bytes:
    return bytes(content.size) if isinstance(content, Declared) else content


def _pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def _sha256(content: Content, digests: Path | None) -> str:
    if isinstance(content, Declared):
        return content.sha256
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    key = f"{content.resolve()}:{content.stat().st_size}:{content.stat().st_mtime_ns}"
    known: dict[str, str] = json.loads(digests.read_text()) if digests and digests.exists() else {}
    if key not in known:
        with content.open("rb") as stream:
            known[key] = hashlib.file_digest(stream, "sha256").hexdigest()
        if digests:
            digests.write_text(json.dumps(known))
    return known[key]
