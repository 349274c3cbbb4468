"""Who has to go so that an image fits: arithmetic over what there is, nothing is touched here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from csi.errors import NoSpace
from csi.values import human


@dataclass(frozen=True)
class Claim:
    """What an image takes of the store, in bytes: `size` in the end (its reservation), `allocated` on disk by now.

    `fixed` images stay: they are mounted, prewarmed or being filled. `last_used` is in seconds since 1970.
    """

    digest: str
    size: int
    allocated: int
    last_used: float = 0.0
    fixed: bool = False


def victims(wanted: Claim, others: Iterable[Claim], budget: int, free: int) -> list[str]:
    """The digests to evict, least recently used first, so that `wanted` fits `budget` and the `free` bytes of the file system.

    Raises NoSpace, with what is needed and what there could be, when evicting all that may go is not enough.
    """
    claims = list(others)
    in_budget = budget - sum(claim.size for claim in claims)
    # Other fills will still take what they reserved; what `wanted` allocated before is its own.
    on_disk = free + wanted.allocated - sum(max(0, claim.size - claim.allocated) for claim in claims)
    gone = []
    for claim in sorted((c for c in claims if not c.fixed), key=lambda c: c.last_used):
        if min(in_budget, on_disk) >= wanted.size:
            break
        gone.append(claim.digest)
        in_budget += claim.size
        on_disk += max(claim.size, claim.allocated)
    if min(in_budget, on_disk) < wanted.size:
        raise _no_space(wanted, claims, budget, in_budget, on_disk)
    return gone


def _no_space(wanted: Claim, claims: list[Claim], budget: int, in_budget: int, on_disk: int) -> NoSpace:
    pinned = sum(claim.size for claim in claims if claim.fixed)
    limit, way_out = f"its budget is {human(budget)}", "raise --store-size"
    if on_disk < in_budget:
        limit, way_out = "its file system has no more", "add disk space"
    return NoSpace(
        f"the image needs {human(wanted.size)}, the node's store has room for {human(max(0, min(in_budget, on_disk)))}: {limit}, "
        f"{human(pinned)} are mounted, prewarmed or being filled; delete pods that mount other caches, or CachePrewarms, or {way_out}"
    )
