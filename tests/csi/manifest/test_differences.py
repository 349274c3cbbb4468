"""What a message says about a source that changed."""

from __future__ import annotations

import pytest

from csi.manifest.differences import describe_changes
from csi.manifest.manifest import Entry, EntryKind, build_manifest


def tree(**sizes: int):
    return build_manifest(
        [
            Entry(name, EntryKind.FILE, size=size, digest=f"token:{name} {size}")
            for name, size in sizes.items()
        ],
        {},
    )


@pytest.mark.parametrize(
    ("now", "words"),
    [
        ({"a": 1, "b": 2}, ""),
        ({"a": 1, "b": 3}, "'b' changed"),
        ({"a": 1}, "'b' is gone"),
        ({"a": 1, "b": 2, "c": 3}, "'c' is new"),
        ({"a": 9, "c": 3}, "'a' changed (and 2 more)"),
    ],
)
def test_the_first_path_that_differs_is_named(now: dict[str, int], words: str) -> None:
    assert describe_changes(tree(a=1, b=2), tree(**now)) == words
