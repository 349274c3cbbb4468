"""Description of the differences between two manifests of one source."""

from __future__ import annotations

from csi.manifest.manifest import Manifest


def describe_changes(old: Manifest, new: Manifest) -> str:
    """Describe the first differing path, such as "'a/b' is gone", and count the others.

    "" if there are none.
    """
    before, after = ({entry.path: entry for entry in manifest.entries} for manifest in (old, new))
    differing = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    if not differing:
        return ""
    first = differing[0]
    change = "is new" if first not in before else "is gone" if first not in after else "changed"
    remainder = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
    return f"{first!r} {change}{remainder}"
