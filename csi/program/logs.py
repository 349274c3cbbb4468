"""Log lines on standard error, as text to read or JSON for collectors.

Fields are passed as `extra={"fields": {...}}`.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any, Literal

LogFormat = Literal["text", "json"]


def _fields_of(record: logging.LogRecord) -> dict[str, Any]:
    return getattr(record, "fields", {})


class TextFormatter(logging.Formatter):
    """Formatter of `2026-01-31T12:00:00.123Z INFO message key=value ...`; values never break the line."""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """Return the time in UTC with milliseconds."""
        return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, followed by the traceback if there is one."""
        pairs = "".join(f" {key}={_quote_value(value)}" for key, value in _fields_of(record).items())
        line = f"{self.formatTime(record)} {record.levelname} {_escape_line(record.getMessage())}{pairs}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(TextFormatter):
    """Formatter of one JSON object per line: time, level, message and the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        line = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **_fields_of(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _escape_line(text: str) -> str:
    return text if text.isprintable() else json.dumps(text)[1:-1]


def _quote_value(value: object) -> str:
    text = str(value)
    # Line ends of every alphabet and terminal control codes are escaped: whoever names a volume could forge
    # log lines.
    return (
        text
        if text and text.isprintable() and not set(text) & set(' "=')
        else json.dumps(text, ensure_ascii=not text.isprintable())
    )


def configure(format: LogFormat, level: str = "INFO") -> None:
    """Send all logging to standard error in `format`. Libraries log from WARNING on only."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("datacache").setLevel(level)
