"""Make csi/pb from proto/*.proto, or (`--check`) tell whether csi/pb is what it would make.

The output depends on those files and on the pinned grpcio-tools and mypy-protobuf alone.
"""

from __future__ import annotations

import argparse
import importlib.resources
import sys
import sysconfig
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path("csi/pb")
INTERFACES = ("csi", "registration")
MADE = tuple(
    f"{name}{suffix}"
    for name in INTERFACES
    for suffix in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")
)


def generate(out: Path) -> None:
    """Write the files to `out`/csi/pb; raises SystemExit when protoc fails (it has said why)."""
    scripts = Path(sysconfig.get_path("scripts"))
    arguments = [
        "protoc",
        # A virtual path: a file in proto/ is known as csi/pb/csi.proto, so the code imports `csi.pb`.
        f"-I{PACKAGE}={ROOT / 'proto'}",
        f"-I{importlib.resources.files('grpc_tools') / '_proto'}",
        *(f"--plugin=protoc-gen-{name}={scripts / f'protoc-gen-{name}'}" for name in ("mypy", "mypy_grpc")),
        *(f"--{kind}_out={out}" for kind in ("python", "grpc_python")),
        f"--mypy_out=quiet,generate_concrete_servicer_stubs:{out}",
        f"--mypy_grpc_out=quiet,only_sync,generate_concrete_servicer_stubs:{out}",
        *(f"{PACKAGE}/{name}.proto" for name in INTERFACES),
    ]
    if protoc.main(arguments):
        raise SystemExit("proto/*.proto did not compile")


def stale() -> list[str]:
    """Return the files of csi/pb that differ from what would be made now."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        return [
            f"{PACKAGE}/{name}"
            for name in MADE
            if _bytes(ROOT / PACKAGE / name) != _bytes(Path(folder) / PACKAGE / name)
        ]


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 and name what is stale")
    if not parser.parse_args().check:
        generate(ROOT)
        return
    if names := stale():
        sys.exit(f"stale: {', '.join(names)}; run `make proto` and commit the result")


if __name__ == "__main__":
    main()
