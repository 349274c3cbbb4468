"""Make docs/parameters.md from the table of keys in csi/parameters/dialects, or (`--check`) tell whether it is what would be made."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from csi.parameters.dialects.keys import Key, KeySetter, SecretKey
from csi.parameters.dialects.table import DIALECTS
from csi.parameters.performance_keys import KEY_TABLE
from csi.parameters.volume_parameters import VOLUME_KEYS

TARGET = Path(__file__).resolve().parent / "parameters.md"
_INTRODUCTION = """# Parameters

Made from the code by `make docs`; do not edit.

A StorageClass has them as `parameters`, a static PV and an inline volume as `volumeAttributes`. Keys are taken in any case. An unknown key
is refused, with the nearest known one named. "Who may set it": a StorageClass and a PV are an administrator's words, an inline volume is a
pod author's; what an administrator alone may set is refused in an inline volume.

Where the controller runs with `--registry kubernetes` and external-provisioner with `--extra-create-metadata`, a PVC may give keys too: as
annotations `datacache.csi.io/KEY`, which count over those of the StorageClass. Its `pvcAnnotations` lists which. Those that all may set can be
listed, `writerAccessModes` apart; where such a key names the source, that is judged as an inline volume's is, by the controller's
`--allow-origins` and `--allow-inline-nas`.

None of these keys is secret: a key that is a credential is refused and pointed to a Secret, and so is a URL with a login or with a parameter
that is named as signatures, keys and tokens are. What a source reads from its Secret stands in a table of its own; those values are all
secret, and are never written into a volume, a log, an error or a file.
"""
_FORMS = {
    "hub": "A repository: Hugging Face or ModelScope",
    "nas": "A NAS",
    "oss": "A bucket of Alibaba Cloud OSS",
    "s3": "A bucket of an S3 store",
    "url": "Plain files by URL",
    "several": "Several sources in one volume",
}


def document() -> str:
    """The whole text of docs/parameters.md."""
    parts = [_INTRODUCTION, "## Every volume\n", _table(VOLUME_KEYS)]
    parts += [
        "## Performance\n",
        'What they mean together: README.md, "Performance". All can be changed on a live volume.\n',
        _table(KEY_TABLE),
    ]
    for dialect in DIALECTS:
        types = " or ".join(f"`{name}`" for name in dialect.types)
        parts += [f"## {_FORMS[dialect.name]}\n", f"`type`: {types}.\n", _table(dialect.keys)]
        if dialect.secrets:
            parts += ["In its Secret:\n", _secrets(dialect.secrets)]
        if dialect.name == "several":
            parts += [_within()]
    return "\n".join(parts)


def _within() -> str:
    """Who may set the keys of the sources within `sources`."""
    refused = dict.fromkeys(
        f"`{key.name}`"
        for dialect in DIALECTS
        for key in dialect.keys
        if key.setter is KeySetter.ADMINISTRATOR
    )
    return (
        "Within `sources` a source has the keys of its own table, and whom that table names may set them: "
        f"in an inline volume,\nall but {', '.join(refused)}. The keys of every volume and of performance stand beside `sources`.\n"
    )


def _table(keys: Iterable[Key]) -> str:
    head = ("Key", "Meaning", "Default", "Who may set it", "Secret")
    return _rows(head, ((_names(key), key.meaning, _default(key), key.setter.value, "no") for key in keys))


def _secrets(keys: Iterable[SecretKey]) -> str:
    return _rows(
        ("Key of the Secret", "Meaning", "Secret"), ((f"`{key.name}`", key.meaning, "yes") for key in keys)
    )


def _names(key: Key) -> str:
    return ", ".join(f"`{name}`" for name in (key.name, *key.aliases))


def _default(key: Key) -> str:
    return "written by the controller" if key.setter is KeySetter.CONTROLLER else key.default


def _rows(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [
        head,
        tuple("---" for _ in head),
        *(tuple(cell.replace("|", "\\|") for cell in row) for row in rows),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 when the document is stale"
    )
    if not parser.parse_args().check:
        TARGET.write_text(document())
    elif not TARGET.exists() or TARGET.read_text() != document():
        sys.exit("stale: docs/parameters.md; run `make docs` and commit the result")


if __name__ == "__main__":
    main()
