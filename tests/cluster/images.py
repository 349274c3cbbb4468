"""Images of a static program each, as docker-archives that containerd imports."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PAUSE, BUSYBOX = "localhost/pause:1", "localhost/busybox:1"
BUSYBOX_PROGRAM = Path("/bin/busybox")


@dataclass(frozen=True)
class Archive:
    """A file with the image `name` in it, a docker-archive (Docker Image Specification 1.2, `docker
    save`)."""

    path: Path
    name: str


def busybox(folder: Path, name: str = BUSYBOX) -> Archive:
    """An image with busybox under the names of all its applets; it sleeps by default."""
    applets = subprocess.run(
        [BUSYBOX_PROGRAM, "--list"], capture_output=True, text=True, check=True
    ).stdout.split()
    links = {f"bin/{applet}": "busybox" for applet in applets if applet != "busybox"}
    return pack(folder, name, {"bin/busybox": BUSYBOX_PROGRAM}, ["/bin/sleep", "2147483647"], links)


def sidecars(folder: Path, programs: Path) -> list[Archive]:
    """The images of external-provisioner and csi-resizer, with their programs where the published ones
    have them."""
    names = ("csi-provisioner", "csi-resizer")
    return [pack(folder, f"localhost/{name}:1", {name: programs / name}, [f"/{name}"]) for name in names]


def pack(
    folder: Path,
    name: str,
    files: Mapping[str, Path],
    command: Sequence[str],
    links: Mapping[str, str] | None = None,
) -> Archive:
    """An image of `files` (path in it: file) and symbolic `links` (path in it: target) that runs
    `command`, written to `folder`."""
    layer = _layer(files, links or {})
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": list(command), "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    path = folder / f"{name.replace('/', '-').replace(':', '-')}.tar"
    with tarfile.open(path, "w") as archive:
        for part, data in (
            ("layer.tar", layer),
            ("config.json", _json(config)),
            ("manifest.json", _json(manifest)),
        ):
            _add(archive, part, data)
    return Archive(path, name)


def _layer(files: Mapping[str, Path], links: Mapping[str, str]) -> bytes:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as layer:
        for place in ("bin", "tmp", "etc"):
            folder = tarfile.TarInfo(place)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o1777 if place == "tmp" else 0o755
            layer.addfile(folder)
        for path, file in files.items():
            _add(layer, path, file.read_bytes(), 0o755)
        for path, target in links.items():
            link = tarfile.TarInfo(path)
            link.type, link.linkname = tarfile.SYMTYPE, target
            layer.addfile(link)
    return whole.getvalue()


def _add(archive: tarfile.TarFile, path: str, data: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(path)
    entry.size, entry.mode = len(data), mode
    archive.addfile(entry, io.BytesIO(data))


def _json(value: object) -> bytes:
    return json.dumps(value).encode()
