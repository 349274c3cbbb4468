"""Responses that libcurl has fetched completely."""

from __future__ import annotations

from collections.abc import Sequence


class ResponseHeaders(dict[str, str]):
    """Response headers, case-insensitive; repeated headers are joined by commas."""

    def __init__(self, lines: Sequence[bytes]) -> None:
        headers: dict[str, str] = {}
        for line in b"".join(lines).decode("iso-8859-1").replace("\r\n", "\n").split("\n"):
            name, _, value = line.partition(":")
            name, value = name.lower(), value.strip()
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        super().__init__(headers)

    def __getitem__(self, key: str) -> str:
        return super().__getitem__(key.lower())

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and super().__contains__(key.lower())

    def get(self, key: str, default: str = "") -> str:  # type: ignore[override]
        """Return the value of the header, else `default`."""
        return super().get(key.lower(), default)


class CurlResponse:
    """A complete response with the read interface of urllib3's.

    A body over the limit has one byte more than the limit.
    """

    def __init__(self, status: int, headers: ResponseHeaders, body: memoryview) -> None:
        self.status, self.headers, self._body = status, headers, body

    def read1(self, count: int) -> memoryview:
        """Return the next bytes, at most `count`; none at the end."""
        data, self._body = self._body[:count], self._body[count:]
        return data

    read = read1

    def release_conn(self) -> None:
        """Do nothing: the connection is free already."""

    close = release_conn
