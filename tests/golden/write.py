"""Writes the golden files of formats that have none yet: `python -m tests.golden.write`.

What is there stays as it is.
"""

from __future__ import annotations

import shutil

from tests.golden.writers import DATA, FORMATS, fixed


def main() -> None:
    """Write each format whose folder is missing."""
    for name, write in FORMATS.items():
        folder = DATA / name
        if not folder.exists():
            unfinished = DATA / f".{name}"
            shutil.rmtree(unfinished, ignore_errors=True)
            with fixed():
                write(unfinished)
            unfinished.rename(folder)
            print(f"written: {folder}")


if __name__ == "__main__":
    main()
