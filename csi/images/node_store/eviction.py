"""Who has to go so that an image fits: arithmetic over what there is, nothing is touched here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from csi.errors import NoSpace
from csi.values import format_size


@dataclass(frozen=True)
class ImageUsage:
    """What an image takes of the store, in bytes: `reserved_bytes` in the end (its reservation), `allocated_bytes` on disk by now.

    `in_use` images stay: they are mounted, prewarmed or being filled. `last_used` is in seconds since 1970.
    """

    digest: str
    reserved_bytes: int
    allocated_bytes: int
    last_used: float = 0.0
    in_use: bool = False


def select_victims(
    requested: ImageUsage, others: Iterable[ImageUsage], budget_bytes: int, free_bytes: int
) -> list[str]:
    """The digests to evict, least recently used first, so that `requested` fits `budget_bytes` and the `free_bytes` bytes of the file system.

    Raises NoSpace, with what is needed and what there could be, when evicting all that may go is not enough.
    """
    usages = list(others)
    in_budget = budget_bytes - sum(claim.reserved_bytes for claim in usages)
    # Other fills will still take what they reserved; what `wanted` allocated before is its own.
    on_disk = (
        free_bytes
        + requested.allocated_bytes
        - sum(max(0, claim.reserved_bytes - claim.allocated_bytes) for claim in usages)
    )
    victims = []
    for claim in sorted((c for c in usages if not c.in_use), key=lambda c: c.last_used):
        if min(in_budget, on_disk) >= requested.reserved_bytes:
            break
        victims.append(claim.digest)
        in_budget += claim.reserved_bytes
        on_disk += max(claim.reserved_bytes, claim.allocated_bytes)
    if min(in_budget, on_disk) < requested.reserved_bytes:
        raise _no_space_error(requested, usages, budget_bytes, in_budget, on_disk)
    return victims


def _no_space_error(
    requested: ImageUsage, usages: list[ImageUsage], budget_bytes: int, in_budget: int, on_disk: int
) -> NoSpace:
    in_use_bytes = sum(claim.reserved_bytes for claim in usages if claim.in_use)
    limit, remedy = f"its budget is {format_size(budget_bytes)}", "raise --store-size"
    if on_disk < in_budget:
        limit, remedy = "its file system has no more", "add disk space"
    return NoSpace(
        f"the image needs {format_size(requested.reserved_bytes)}, the node's store has room for {format_size(max(0, min(in_budget, on_disk)))}: {limit}, "
        f"{format_size(in_use_bytes)} are mounted, prewarmed or being filled; delete pods that mount other caches, or CachePrewarms, or {remedy}"
    )
