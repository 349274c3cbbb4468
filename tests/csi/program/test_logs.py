"""Log lines for people and for collectors: one line a record, whatever is in it."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi.program.logs import JsonFormatter, TextFormatter

HOSTILE = "v1\n2026-01-01T00:00:00.000Z INFO forged code=OK\r\u2028\x85\x1b[31m\x0b"


def record(message: str, exc_info: object = None, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("datacache.rpc", logging.WARNING, "x.py", 1, message, None, exc_info)  # type: ignore[arg-type]
    made.created, made.msecs = 1_700_000_000.123, 123.0
    made.fields = fields
    return made


def test_a_text_line_has_time_level_message_and_fields() -> None:
    line = TextFormatter().format(
        record("rpc", method="NodeStage", ms=1.5, empty="", spaced="a b", equals="a=b", name="größe")
    )
    assert (
        line
        == '2023-11-14T22:13:20.123Z WARNING rpc method=NodeStage ms=1.5 empty="" spaced="a b" equals="a=b" name=größe'  # noqa: E501
    )


def test_a_json_line_has_the_same() -> None:
    line = json.loads(
        JsonFormatter().format(record("rpc", method="NodeStage", ms=1.5, error=ValueError("x")))
    )
    assert line == {
        "time": "2023-11-14T22:13:20.123Z",
        "level": "warning",
        "message": "rpc",
        "method": "NodeStage",
        "ms": 1.5,
        "error": "x",
    }


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_nobody_can_forge_a_line_by_the_name_of_a_volume(formatter: logging.Formatter) -> None:
    line = formatter.format(record("rpc " + HOSTILE, volume=HOSTILE))
    assert len(line.splitlines()) == 1
    assert line.isprintable()


@given(st.text(), st.text())
def test_any_text_stays_on_one_line_and_can_be_told_from_the_next_field(message: str, value: str) -> None:
    line = TextFormatter().format(record(message, value=value, code="OK"))
    assert line.isprintable()
    assert line.endswith(" code=OK")
    quoted = re.search(r' value=("(?:[^"\\]|\\.)*"|[^ ]+) code=OK$', line)
    assert quoted
    assert (json.loads(quoted[1]) if quoted[1].startswith('"') else quoted[1]) == value
    assert json.loads(JsonFormatter().format(record(message, value=value)))["value"] == value


def test_a_traceback_follows_a_text_line_and_is_a_field_of_a_json_line() -> None:
    try:
        raise ValueError("here")
    except ValueError:
        made = record("fault", sys.exc_info())
    assert TextFormatter().format(made).splitlines()[-1] == "ValueError: here"
    assert json.loads(JsonFormatter().format(made))["traceback"].endswith("ValueError: here")


@pytest.mark.parametrize(
    ("format_", "level", "shown"), [("text", "INFO", ["info", "warn"]), ("json", "WARNING", ["warn"])]
)
def test_only_our_own_lines_are_shown_below_warning_and_all_go_to_standard_error(
    format_: str, level: str, shown: list[str]
) -> None:
    script = (
        f"import logging; from csi.program import logs; logs.configure({format_!r}, {level!r}); "
        f"logs.configure({format_!r}, {level!r})\n"
        "own, foreign = logging.getLogger('datacache.x'), logging.getLogger('urllib3')\n"
        "own.debug('debug'); own.info('info'); own.warning('warn'); foreign.info('foreign info')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert [
        json.loads(line)["message"] if format_ == "json" else line.split()[-1]
        for line in done.stderr.splitlines()
    ] == shown
