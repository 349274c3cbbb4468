"""A public class name stands for one thing in the whole product."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("csi", "node_plugin", "controller_plugin", "datacache")


def test_no_public_class_name_is_defined_twice() -> None:
    files_by_name: dict[str, list[str]] = defaultdict(list)
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if "pb" in path.parts:
                continue  # generated
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    files_by_name[node.name].append(str(path.relative_to(ROOT)))
    assert len(files_by_name) > 200
    assert {name: files for name, files in files_by_name.items() if len(files) > 1} == {}
