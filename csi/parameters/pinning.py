"""What a pin may change about a source: which revision is read, never where it is read."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.composite import CompositeSpec
from csi.parameters.dialects.hub import HubSpec
from csi.parameters.dialects.keys import SourceSpec


def content_spec(spec: CacheSpec) -> CacheSpec:
    """Return the part of `spec` that decides what is read, without trust, network and bandwidth.

    Specs of the same content have equal parts, so one pin serves them all.
    """
    return CacheSpec(spec.source, spec.preserve_ownership)


def pin_name(spec: CacheSpec) -> str:
    """Return the name of the pin for `spec`: "pin-" and 40 hex digits of the SHA-256 of its content spec."""
    return "pin-" + hashlib.sha256(content_spec(spec).canonical_text().encode()).hexdigest()[:40]


def is_pinned_form_of(requested: SourceSpec, pinned: SourceSpec) -> bool:
    """Return whether `pinned` differs from `requested` in nothing but revisions.

    This keeps whoever can write pins from redirecting a volume to another source.
    """
    if isinstance(requested, HubSpec) and isinstance(pinned, HubSpec):
        return replace(pinned, revision=requested.revision) == requested
    if isinstance(requested, CompositeSpec) and isinstance(pinned, CompositeSpec):
        has_same_parts = [folder for folder, _ in requested.parts] == [
            folder for folder, _ in pinned.parts
        ] and requested.limits == pinned.limits
        return has_same_parts and all(
            is_pinned_form_of(requested_part, pinned_part)
            for (_, requested_part), (_, pinned_part) in zip(requested.parts, pinned.parts, strict=True)
        )
    return requested == pinned


def get_revision(spec: CacheSpec) -> str:
    """Return the revision that `spec` names, "" if its source has none."""
    return spec.source.revision if isinstance(spec.source, HubSpec) else ""


def display_name_without_revision(spec: CacheSpec) -> str:
    """Return the display name of the source without its revision."""
    return spec.source.display_name.removesuffix(f"@{get_revision(spec)}")
