"""proto/csi.proto against the published interface, where Go's module cache has it (`make test` fetches it
when Go is there)."""

from __future__ import annotations

import importlib.resources
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from grpc_tools import protoc

from csi.pb import csi_pb2

ROOT = Path(__file__).resolve().parent.parent.parent
PUBLISHED = "github.com/container-storage-interface/spec@v1.12.0/csi.proto"


def published() -> Path:
    if shutil.which("go") is None:
        pytest.skip("not compared with the published CSI 1.12 interface: Go is not installed")
    cache = subprocess.run(
        ["go", "env", "GOMODCACHE"], check=True, capture_output=True, text=True
    ).stdout.strip()
    path = Path(cache) / PUBLISHED
    if not path.exists():
        pytest.skip(
            f"not compared with the published CSI 1.12 interface: {path} is not there; `make test` fetches it"
        )
    return path


def compiled(proto: Path, tmp_path: Path) -> descriptor_pb2.FileDescriptorProto:
    out = tmp_path / "descriptors"
    system = importlib.resources.files("grpc_tools") / "_proto"
    assert (
        protoc.main(["protoc", f"-I{proto.parent}", f"-I{system}", f"--descriptor_set_out={out}", str(proto)])
        == 0
    )
    return descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file[0]


def facts(file: descriptor_pb2.FileDescriptorProto) -> dict[str, bytes]:
    """Every message, enum, service and extension by its kind and name, as bytes.

    `rpc X() {}` and `rpc X();` are one.
    """
    for service in file.service:
        for method in service.method:
            if not method.options.SerializeToString():
                method.ClearField("options")
    kinds = {"message": file.message_type, "enum": file.enum_type, "service": file.service}
    named = {
        f"{kind} {item.name}": item.SerializeToString(deterministic=True)
        for kind, items in kinds.items()
        for item in items
    }
    extensions = {
        f"extension {e.extendee} {e.name}": e.SerializeToString(deterministic=True) for e in file.extension
    }
    return named | extensions


def test_every_message_field_enum_and_service_is_as_published(tmp_path: Path) -> None:
    theirs, ours = compiled(published(), tmp_path), compiled(ROOT / "proto" / "csi.proto", tmp_path)
    assert ours.package == theirs.package == "csi.v1"
    assert ours.syntax == theirs.syntax
    expected, found = facts(theirs), facts(ours)
    assert len(expected) > 90
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if expected[name] != found[name]] == []


def test_a_changed_field_number_or_option_would_be_noticed(tmp_path: Path) -> None:
    text = (ROOT / "proto" / "csi.proto").read_text()
    edits = (
        (" [(csi_secret) = true];", ";"),
        ("string node_id = 2;", "string node_id = 12;"),
        ("SINGLE_NODE_WRITER = 1;", "SINGLE_WRITER = 1;"),
    )
    for before, after in edits:
        changed = tmp_path / "csi.proto"
        changed.write_text(text.replace(before, after, 1))
        assert facts(compiled(changed, tmp_path)) != facts(compiled(ROOT / "proto" / "csi.proto", tmp_path))


def test_secrets_are_marked_in_the_generated_code() -> None:
    marked = [
        f"{message.name}.{field.name}"
        for message in csi_pb2.DESCRIPTOR.message_types_by_name.values()
        for field in message.fields
        if field.GetOptions().Extensions[csi_pb2.csi_secret]
    ]
    assert "NodePublishVolumeRequest.secrets" in marked
    assert "CreateVolumeRequest.secrets" in marked
    assert all(name.endswith(".secrets") for name in marked)


def test_the_generated_code_is_not_stale() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "proto" / "generate.py", "--check"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_stale_code_is_named(tmp_path: Path) -> None:
    for folder in ("proto", "csi/pb"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    (tmp_path / "csi/pb/csi_pb2_grpc.py").write_text("# changed by hand\n")
    done = subprocess.run(
        [sys.executable, tmp_path / "proto" / "generate.py", "--check"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "csi/pb/csi_pb2_grpc.py" in done.stderr
    assert "csi_pb2.pyi" not in done.stderr
