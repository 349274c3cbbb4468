"""NAS sources whose files change and whose servers end, hang and come back."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from csi.errors import OriginUnavailable, SourceChanged, UnsupportedByNode
from csi.manifest.manifest import Entry
from csi.parameters.dialects.nas import NasSpec
from csi.sources.nfs import libnfs
from csi.sources.nfs.source import NasReader
from tests.csi.sources.nfs.origin import contents, opened, resolved, write
from tests.origins.ganesha import Export, Ganesha
from tests.origins.onc_rpc import free_port

MIB = 1 << 20


@contextmanager
def reading(spec: NasSpec, path: str) -> Iterator[tuple[NasReader, Entry]]:
    """A reader of `spec` and the entry of `path`."""
    with opened(spec) as source:
        manifest = source.resolve(source.pin())
        with source.open_reader(manifest) as reader:
            yield reader, next(e for e in manifest.files if e.path == path)


def part(reader: NasReader, entry: Entry, offset: int, length: int) -> bytes:
    """Bytes of an entry."""
    data = bytearray(length)
    reader.read_into(entry, offset, memoryview(data))
    return bytes(data)


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def _truncate(path: Path) -> None:
    os.truncate(path, MIB)


def _rewrite(path: Path) -> None:
    path.write_bytes(os.urandom(4 * MIB))


def _replace(path: Path) -> None:
    """Another file of the same size and time: only its file id tells."""
    times = path.stat()
    write(path.with_name("new"), os.urandom(4 * MIB)).rename(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def _remove(path: Path) -> None:
    path.unlink()


def _become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _become_a_symlink(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


CHANGES = [_append, _truncate, _rewrite, _replace, _remove, _become_a_folder, _become_a_symlink]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.strip("_"))
def test_a_file_that_changed_before_it_was_opened_is_noticed(
    nas: Ganesha, folder: Path, version: str, change
) -> None:  # type: ignore[no-untyped-def]
    path = write(folder / "sub/f", os.urandom(4 * MIB))
    with reading(nas.spec(folder, version), "sub/f") as (reader, entry):
        change(path)
        with pytest.raises(SourceChanged, match=r"'sub/f' is not the one.*a new or updated cache picks up"):
            part(reader, entry, 0, MIB)


@pytest.mark.parametrize(
    "change", [_append, _truncate, _rewrite], ids=lambda change: change.__name__.strip("_")
)
def test_a_file_that_changes_while_it_is_read_is_noticed(
    nas: Ganesha, folder: Path, version: str, change
) -> None:  # type: ignore[no-untyped-def]
    path = write(folder / "f", os.urandom(4 * MIB))
    with reading(nas.spec(folder, version), "f") as (reader, entry):
        part(reader, entry, 0, MIB)
        change(path)
        with pytest.raises(SourceChanged):
            part(reader, entry, MIB, MIB)


def test_a_file_that_is_replaced_while_it_is_open_is_whole_or_noticed(
    nas: Ganesha, folder: Path, version: str
) -> None:
    path = write(folder / "f", os.urandom(4 * MIB))
    old = path.read_bytes()
    with reading(nas.spec(folder, version), "f") as (reader, entry):
        got = part(reader, entry, 0, MIB)
        _replace(path)
        try:
            got += part(reader, entry, MIB, 3 * MIB)
        except SourceChanged:
            return
        assert got == old


def test_many_files_are_read_in_turn_by_one_reader(nas: Ganesha, folder: Path, version: str) -> None:
    data = {f"f{n}": os.urandom(3 * MIB // 2) for n in range(9)}
    for name, content in data.items():
        write(folder / name, content)
    with opened(nas.spec(folder, version)) as source:
        manifest = source.resolve(source.pin())
        with source.open_reader(manifest) as reader:
            got = dict.fromkeys(data, b"")
            for offset in range(0, 3 * MIB // 2, MIB // 2):
                for entry in manifest.files:
                    got[entry.path] += part(reader, entry, offset, MIB // 2)
    assert got == data


def test_eight_readers_read_at_once(nas: Ganesha, folder: Path, version: str) -> None:
    data = os.urandom(16 * MIB)
    write(folder / "f", data)
    with opened(nas.spec(folder, version)) as source:
        manifest = source.resolve(source.pin())
        entry = next(manifest.files)
        got: dict[int, bytes] = {}

        def read(turn: int) -> None:
            with source.open_reader(manifest) as reader:
                for n in range(turn, 16, 8):
                    got[n] = part(reader, entry, n * MIB, MIB)

        threads = [threading.Thread(target=read, args=(turn,)) for turn in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert b"".join(got[n] for n in sorted(got)) == data


def test_a_server_that_is_down_is_unavailable_at_once(nas: Ganesha, folder: Path, version: str) -> None:
    nas.stop()
    try:
        with pytest.raises(
            OriginUnavailable,
            match=rf"{nas.server} does not accept connections on port ({nas.port}|{nas.mount_port})",
        ):
            resolved(nas.spec(folder, version))
    finally:
        nas.start()


def test_a_server_without_an_address_is_unavailable(version: str) -> None:
    with pytest.raises(OriginUnavailable, match=r"'nas.invalid' has no address; check `server`"):
        resolved(NasSpec("nas.invalid", "/x", version, timeout=1))


def test_a_server_that_hangs_is_unavailable_within_its_bound(
    nas: Ganesha, folder: Path, version: str
) -> None:
    write(folder / "f", b"1")
    nas.pause()
    try:
        with pytest.raises(OriginUnavailable, match=r"did not answer within 1 s, 3 times"):
            resolved(nas.spec(folder, version, timeout=1, retries=2))
    finally:
        nas.resume()


def test_a_server_that_hangs_in_a_read_is_unavailable_within_its_bound(
    nas: Ganesha, folder: Path, version: str
) -> None:
    write(folder / "f", os.urandom(4 * MIB))
    with reading(nas.spec(folder, version, timeout=1, retries=1), "f") as (reader, entry):
        part(reader, entry, 0, MIB)
        nas.pause()
        try:
            with pytest.raises(OriginUnavailable, match="did not answer within 1 s, 2 times"):
                part(reader, entry, MIB, MIB)
        finally:
            nas.resume()


def test_a_listing_is_bounded_too_when_the_server_hangs(nas: Ganesha, folder: Path, version: str) -> None:
    write(folder / "f", b"1")
    with opened(nas.spec(folder, version, timeout=1, retries=0)) as source:
        source.resolve(source.pin())
        nas.pause()
        try:
            with pytest.raises(OriginUnavailable, match="did not answer within 1 s, 1 times"):
                source.resolve(source.pin())
        finally:
            nas.resume()


def test_a_server_that_answers_again_in_time_is_waited_for(nas: Ganesha, folder: Path, version: str) -> None:
    data = os.urandom(2 * MIB)
    write(folder / "f", data)
    with reading(nas.spec(folder, version, timeout=1, retries=4), "f") as (reader, entry):
        got = part(reader, entry, 0, MIB)
        nas.pause()
        waker = threading.Timer(1.6, nas.resume)
        waker.start()
        got += part(reader, entry, MIB, MIB)
        waker.join()
    assert got == data


def test_a_read_goes_on_after_the_server_was_killed_and_started(
    nas: Ganesha, folder: Path, version: str
) -> None:
    data = os.urandom(2 * MIB)
    write(folder / "f", data)
    with reading(nas.spec(folder, version, retries=0), "f") as (reader, entry):
        got = part(reader, entry, 0, MIB)
        nas.kill()
        with pytest.raises(OriginUnavailable):
            part(reader, entry, MIB, MIB)
        nas.start()
        got += part(reader, entry, MIB, MIB)
    assert got == data


def test_a_server_that_was_restarted_between_two_reads_is_not_noticed(
    nas: Ganesha, folder: Path, version: str
) -> None:
    data = os.urandom(2 * MIB)
    write(folder / "f", data)
    with reading(nas.spec(folder, version, retries=0), "f") as (reader, entry):
        got = part(reader, entry, 0, MIB)
        nas.stop()
        nas.start()
        got += part(reader, entry, MIB, MIB)
    assert got == data


def test_a_host_that_drops_what_it_is_sent_is_unavailable_within_its_bound(version: str) -> None:
    """A listening socket whose queue is full swallows further connections, as a firewall would."""
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        port = full.getsockname()[1]
        with pytest.raises(OriginUnavailable, match="timed out"):
            resolved(NasSpec("127.0.0.1", "/x", version, port=port, mount_port=port, timeout=1, retries=1))


def test_something_that_is_no_nfs_server_is_unavailable(version: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def talk() -> None:
            # Until the test closes the socket.
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

        threading.Thread(target=talk, daemon=True).start()
        port = server.getsockname()[1]
        with pytest.raises(OriginUnavailable):
            resolved(NasSpec("127.0.0.1", "/x", version, port=port, mount_port=port, timeout=1, retries=0))


def test_a_portmapper_is_asked_where_no_ports_are_given(tmp_path: Path) -> None:
    """ganesha registers with the portmapper; the server that started last is the one it names."""
    write(tmp_path / "f", b"1")
    with Ganesha([Export(tmp_path)]) as last:
        assert contents(NasSpec(last.server, str(tmp_path), "3", timeout=5)) == {"f": b"1"}


def test_no_connection_stays_after_close(nas: Ganesha, folder: Path, version: str) -> None:
    write(folder / "f", b"1")
    before = set(Path("/proc/self/fd").iterdir())
    for _ in range(5):
        contents(nas.spec(folder, version))
        with pytest.raises(OriginUnavailable):
            resolved(NasSpec("127.0.0.1", "/x", version, port=free_port(), mount_port=free_port()))
    assert len(set(Path("/proc/self/fd").iterdir()) - before) == 0


def test_a_node_without_libnfs_is_told_which_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libnfs, "_SONAMES", ("libnfs.so.999",))
    libnfs._load_library.cache_clear()
    try:
        with pytest.raises(UnsupportedByNode, match="libnfs13"):
            libnfs.NfsContext(libnfs.ContextOptions(3, 0, 0, 0, 0, 1.0))
    finally:
        libnfs._load_library.cache_clear()
