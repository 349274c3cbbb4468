"""The driver's image, built from a checkout's own Dockerfile: without a registry, on a Debian from this
machine's own package sources.

A build with the same Dockerfile, the same files and the same base is done once; the archives of the last few
are kept in the cache.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.images import Archive
from tests.guest.cache import alone
from tests.guest.root import SUITE, mirrors

DOCKERFILE = Path("deploy/Dockerfile")
_NAME = "localhost/datacache-csi"
_KEPT = 4
_CERTIFICATES = Path(os.environ.get("PIP_CERT", "/etc/ssl/certs/ca-certificates.crt"))
_APT = Path("/etc/apt/apt.conf.d")
# As in Debian's own slim images: no documentation, no packages kept.
_EXCLUDED = (
    "/usr/share/doc/* /usr/share/info/* /usr/share/lintian/* /usr/share/locale/* /usr/share/man/*".split()
)
_NOTHING_KEPT = 'APT::Keep-Downloaded-Packages "false"; Dir::Cache::pkgcache ""; Dir::Cache::srcpkgcache "";'
_SLIM = [
    *(f"--dpkgopt=path-exclude={path}" for path in _EXCLUDED),
    "--dpkgopt=path-include=/usr/share/doc/*/copyright",
    f"""--customize-hook=echo '{_NOTHING_KEPT}' > "$1/etc/apt/apt.conf.d/99slim\"""",
]
# Mounts and processes of a build go with it, should it be killed.
_APART = "unshare --mount --pid --fork --kill-child --mount-proc".split()


def ready(tree: Path, cache: Path) -> Archive:
    """The image of the checkout at `tree`, its tag being a digest of what it is made from.

    CalledProcessError where it cannot be built.
    """
    folder = cache / "images"
    folder.mkdir(parents=True, exist_ok=True)
    base = _Base(_base_image(tree), folder)
    key = _digest(base.key, *_content(tree))
    archive = Archive(folder / f"driver-{key}.tar", f"{_NAME}:{key}")
    with alone(folder):
        if not archive.path.exists():
            print(f"cluster: building the image {archive.name}", flush=True)
            _Build(folder, base).driver(tree, archive)
        archive.path.touch()
        _forget(sorted(folder.glob("driver-*.tar"), key=lambda path: path.stat().st_mtime)[:-_KEPT])
    return archive


def context(tree: Path) -> list[Path]:
    """The files and folders that the Dockerfile copies."""
    copied = re.findall(r"^COPY (?!--)(.+) \S+$", (tree / DOCKERFILE).read_text(), re.MULTILINE)
    return [tree / name for names in copied for name in names.split()]


@dataclass(frozen=True)
class _Base:
    """The image that the Dockerfile is based on, under its own name."""

    name: str
    folder: Path

    @property
    def argv(self) -> list[str]:
        """What makes its tree, the target left out."""
        return ["mmdebstrap", "--quiet", "--variant=minbase", *_SLIM, SUITE]

    @property
    def key(self) -> str:
        return _digest(self.name, *self.argv, *mirrors())

    @property
    def storage(self) -> Path:
        """Where buildah keeps it, and the layers of what was built on it."""
        return self.folder / f"storage-{self.key}"


@dataclass(frozen=True)
class _Build:
    folder: Path
    base: _Base

    def driver(self, tree: Path, archive: Archive) -> None:
        if not self.base.storage.exists():
            self._base()
        self._buildah(self.base.storage, "rm", "--all")  # Those of a build that was killed.
        network = [
            "-v",
            f"{_CERTIFICATES}:/run/certificates.crt:ro",
            "--build-arg",
            "PIP_CERT=/run/certificates.crt",
        ]
        network += ["-v", f"{_APT}:{_APT}:ro"]
        network += ["--build-arg", "PIP_INDEX_URL"] if "PIP_INDEX_URL" in os.environ else []
        how = ["--quiet", "--layers", "--pull-never", *network]
        self._buildah(
            self.base.storage, "bud", *how, "-f", str(DOCKERFILE), "-t", archive.name, ".", cwd=tree
        )
        half = archive.path.with_suffix(".half")
        half.unlink(missing_ok=True)
        self._buildah(
            self.base.storage, "push", "--quiet", archive.name, f"docker-archive:{half}:{archive.name}"
        )
        half.rename(archive.path)
        built = self._buildah(
            self.base.storage, "images", "--quiet", "--filter", f"reference={_NAME}"
        ).split()
        for old in list(dict.fromkeys(built))[_KEPT:]:
            self._buildah(self.base.storage, "rmi", old)

    def _base(self) -> None:
        for old in self.folder.glob("storage-*"):
            shutil.rmtree(old)
        half = self.base.storage.with_suffix(".partial")
        half.mkdir()
        tree = half / "base.tar"
        subprocess.run([*_APART, *self.base.argv, str(tree), *mirrors()], check=True)
        container = self._buildah(half, "from", "scratch").strip()
        self._buildah(half, "add", "--quiet", container, str(tree), "/")
        self._buildah(half, "config", "--cmd", "bash", container)
        self._buildah(half, "commit", "--quiet", container, self.base.name)
        self._buildah(half, "rm", container)
        tree.unlink()
        half.rename(self.base.storage)

    def _buildah(self, storage: Path, *words: str, cwd: Path | None = None) -> str:
        places = ["--root", str(storage), "--runroot", str(self.folder / "run.partial")]
        places += ["--storage-driver", "overlay", "--registries-conf", "/dev/null"]
        environment = {**os.environ, "BUILDAH_ISOLATION": "chroot"}
        done = subprocess.run(
            [*_APART, "buildah", *places, *words], cwd=cwd, env=environment, stdout=subprocess.PIPE, text=True
        )
        done.check_returncode()
        return done.stdout


def _base_image(tree: Path) -> str:
    (name,) = set(re.findall(r"^FROM (\S+)", (tree / DOCKERFILE).read_text(), re.MULTILINE))
    return str(name)


def _content(tree: Path) -> Iterator[str]:
    for path in [tree / DOCKERFILE, *context(tree)]:
        for file in sorted(_files(path)):
            yield f"{file.relative_to(tree)} {file.stat().st_mode:o}"
            yield hashlib.sha256(file.read_bytes()).hexdigest()


def _files(path: Path) -> Iterator[Path]:
    below = path.rglob("*") if path.is_dir() else [path]
    return (file for file in below if file.is_file() and "__pycache__" not in file.parts)


def _digest(*parts: str) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def _forget(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink()
