"""What the tests of the ranged engine ask a scripted server for, and how it answers."""

from __future__ import annotations

from csi.manifest.manifest import Entry, EntryKind
from csi.sources.http.file_urls import FileUrls
from csi.sources.http.range_reader import RangeReader
from tests.origins.scripted import Answer

DATA = bytes(range(256)) * 4096
FILE = Entry("folder/file.bin", EntryKind.FILE, size=len(DATA))
ORIGIN = ("http", "origin.invalid", 80)
SECRET = {"Authorization": "Bearer very-secret"}


def ranged(answer: Answer) -> None:
    start, end = answer.span()
    answer.say(206, DATA[start:end], Content_Range=f"bytes {start}-{end - 1}/{len(DATA)}")


def whole(answer: Answer) -> None:
    answer.say(200, DATA)


def chunked(answer: Answer) -> None:
    answer.send_response(200)
    answer.send_header("Transfer-Encoding", "chunked")
    answer.end_headers()
    for start in range(0, len(DATA), 70_000):
        part = DATA[start : start + 70_000]
        answer.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
    answer.wfile.write(b"0\r\n\r\n")


def at(url: str) -> FileUrls:
    return FileUrls(lambda entry: url, SECRET)


def read(reader: RangeReader, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    reader.read_into(FILE, offset, memoryview(buffer))
    return bytes(buffer)


def redirect(location: str) -> object:
    return lambda answer: answer.say(302, b"over there", Location=location)
