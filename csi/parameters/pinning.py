"""What a pin of a source may change: which revision is read, and nothing of where it is."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.composite import CompositeSpec
from csi.parameters.dialects.hub import HubSpec
from csi.parameters.dialects.keys import SourceSpec


def content_spec(spec: CacheSpec) -> CacheSpec:
    """The part of `spec` that decides what is read, without whose word it is and the way it comes: specs of one content have one answer."""
    return CacheSpec(spec.source, spec.preserve_ownership)


def pin_name(spec: CacheSpec) -> str:
    """The name of the pin of what `spec` asks for: "pin-" and 40 hex digits of the SHA-256 of its content."""
    return "pin-" + hashlib.sha256(content_spec(spec).canonical_text().encode()).hexdigest()[:40]


def is_pinned_form_of(requested: SourceSpec, pinned: SourceSpec) -> bool:
    """Whether `pinned` is `requested` with revisions alone made firm. Whoever may write pins can lead nobody elsewhere."""
    if isinstance(requested, HubSpec) and isinstance(pinned, HubSpec):
        return replace(pinned, revision=requested.revision) == requested
    if isinstance(requested, CompositeSpec) and isinstance(pinned, CompositeSpec):
        folders = [folder for folder, _ in requested.parts] == [
            folder for folder, _ in pinned.parts
        ] and requested.limits == pinned.limits
        return folders and all(
            is_pinned_form_of(one, other)
            for (_, one), (_, other) in zip(requested.parts, pinned.parts, strict=True)
        )
    return requested == pinned


def get_revision(spec: CacheSpec) -> str:
    """The revision that a spec names, "" for a source without."""
    return spec.source.revision if isinstance(spec.source, HubSpec) else ""


def display_name_without_revision(spec: CacheSpec) -> str:
    """The source as messages name it, but for its revision."""
    return spec.source.display_name.removesuffix(f"@{get_revision(spec)}")
