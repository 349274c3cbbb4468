"""The export list of an NFSv3 server, queried from its MOUNT service (RFC 1813, appendix I) over TCP.

libnfs can only query the MOUNT service that the portmapper names. The list distinguishes a missing export
from a forbidden one: servers refuse both with MNT3ERR_ACCES.
"""

from __future__ import annotations

import socket
import struct

# ONC RPC program and version numbers: RFC 1833 (portmapper, version 2) and RFC 1813, appendix I (MOUNT,
# version 3).
_PORTMAPPER_PROGRAM, _GET_PORT_PROCEDURE = (100000, 2), 3
_MOUNT_PROGRAM, _EXPORT_PROCEDURE = (100005, 3), 5
_PORTMAPPER_PORT, _TCP = 111, 6
# RFC 5531, 11 (record marking): the highest bit of a fragment header marks the last fragment.
_LAST_FRAGMENT = 0x8000_0000
_MAX_REPLY_BYTES = 4 << 20


def list_exports(server: str, mount_port: int, timeout: float) -> list[str]:
    """Return the exported paths in the server's order; `mount_port` 0 queries the portmapper.

    Raises OSError if the server does not answer as specified.
    """
    try:
        port = mount_port or _query_mount_port(server, timeout)
        return _parse_exports(_call(server, port, _MOUNT_PROGRAM, _EXPORT_PROCEDURE, b"", timeout))
    except (struct.error, IndexError) as error:
        raise OSError(f"the MOUNT service of {server} does not answer as RFC 1813 specifies") from error


def _query_mount_port(server: str, timeout: float) -> int:
    arguments = struct.pack(">4I", *_MOUNT_PROGRAM, _TCP, 0)
    port: int = struct.unpack(
        ">I",
        _call(server, _PORTMAPPER_PORT, _PORTMAPPER_PROGRAM, _GET_PORT_PROCEDURE, arguments, timeout)[:4],
    )[0]
    if not 0 < port < 65536:
        raise OSError(f"the portmapper of {server} knows no MOUNT service")
    return port


def _call(
    server: str, port: int, program: tuple[int, int], procedure: int, arguments: bytes, timeout: float
) -> bytes:
    """Return the results of one ONC RPC call without credentials (RFC 5531)."""
    call = struct.pack(">10I", 1, 0, 2, *program, procedure, 0, 0, 0, 0) + arguments
    with socket.create_connection((server, port), timeout) as connection:
        connection.sendall(struct.pack(">I", _LAST_FRAGMENT | len(call)) + call)
        reply = _read_record(connection)
    # Transaction id, reply, accepted, verifier (flavour AUTH_NONE, length 0), success.
    if struct.unpack(">6I", reply[:24])[1:] != (1, 0, 0, 0, 0):
        raise OSError(f"{server}:{port} refuses the call")
    return reply[24:]


def _read_record(connection: socket.socket) -> bytes:
    record = b""
    while True:
        (header,) = struct.unpack(">I", _read_exactly(connection, 4))
        record += _read_exactly(connection, header & ~_LAST_FRAGMENT)
        if header & _LAST_FRAGMENT:
            return record


def _read_exactly(connection: socket.socket, count: int) -> bytes:
    if count > _MAX_REPLY_BYTES:
        raise OSError("the reply is too long")
    data = b""
    while len(data) < count:
        received = connection.recv(count - len(data))
        if not received:
            raise OSError("the reply is cut")
        data += received
    return data


def _parse_exports(body: bytes) -> list[str]:
    paths, offset = [], 0
    while body[offset + 3]:
        text, offset = _parse_string(body, offset + 4)
        paths.append(text)
        while body[offset + 3]:
            _, offset = _parse_string(body, offset + 4)
        offset += 4
    return paths


def _parse_string(body: bytes, offset: int) -> tuple[str, int]:
    (length,) = struct.unpack(">I", body[offset : offset + 4])
    end = offset + 4 + length
    return body[offset + 4 : end].decode(errors="replace"), end + -length % 4
