"""What the guest runs: the working tree as git sees it, the virtual environment, and a script that runs
pytest, on a disk of their own."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tests.guest import ext4

_ROOM = 512 * 2**20
_PYTHON = re.compile(r"python[\d.]*")
# pytest's output and its exit status leave on serial lines of their own; the first one is the console's.
_START = """#!/bin/sh
set -eu
bring() {{ mkdir -p "$2"; mount --bind "/payload/$1" "$2"; }}
bring tree {tree}
bring venv {venv}
cd {tree}
export HOME=/root LANG=C.UTF-8 PATH={venv}/bin:/usr/sbin:/usr/bin PY_COLORS={colours} COLUMNS={columns} PYTHONUNBUFFERED=1 IN_TEST_GUEST=1
exec 3<>/dev/ttyS1 4<>/dev/ttyS2
stty raw -echo <&3
stty raw -echo <&4
status=0
pytest {arguments} </dev/null >&3 2>&1 3<&- 4<&- || status=$?
# stty waits until all is out; what a test left running may hold the line open.
stty -echo <&3
echo "pytest ended with $status" >&4
stty -echo <&4
"""  # noqa: E501


def write(folder: Path, tree: Path, venv: Path, arguments: Sequence[str], colours: bool = False) -> Path:
    """The disk (ext4), made in `folder`, which must be on the file system of `tree` and `venv`: `pytest
    arguments` at the same paths as here.

    Raises CalledProcessError, and OSError for files that cannot be linked.
    """
    stage = folder / "payload"
    link_tree(tree, stage / "tree")
    link_venv(venv, stage / "venv")
    places = {
        "tree": shlex.quote(str(tree)),
        "venv": shlex.quote(str(venv)),
        "arguments": shlex.join(arguments),
    }
    (stage / "start").write_text(
        _START.format(**places, colours=int(colours), columns=shutil.get_terminal_size().columns)
    )
    disk = folder / "payload.img"
    ext4.write(stage, disk, _ROOM)
    return disk


def link_tree(tree: Path, target: Path) -> None:
    """The files that git tracks or would, as they are now (hard links)."""
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"],
        cwd=tree,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        # Git still lists what was removed without telling it.
        with suppress(FileNotFoundError):
            os.link(tree / name, target / name, follow_symlinks=False)


def _link(source: str, target: str) -> None:
    # What runs beside this compiles modules under names that are gone a moment later.
    with suppress(FileNotFoundError):
        os.link(source, target, follow_symlinks=False)


def link_venv(venv: Path, target: Path) -> None:
    """The virtual environment, for the guest's own python: packages and console scripts stay as they are,
    since its path does too."""
    (target / "bin").mkdir(parents=True)
    shutil.copytree(venv / "lib", target / "lib", symlinks=True, copy_function=_link)
    # A script that is a module (jp.py) has its byte code in a folder beside it.
    for program in filter(Path.is_file, (venv / "bin").iterdir()):
        if _PYTHON.fullmatch(program.name):
            (target / "bin" / program.name).symlink_to("/usr/bin/python3")
        else:
            os.link(program, target / "bin" / program.name, follow_symlinks=False)
    (target / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
