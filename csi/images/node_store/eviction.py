"""Choice of the images to evict so that a new one fits: pure arithmetic without side effects."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from csi.errors import NoSpace
from csi.values import format_size


@dataclass(frozen=True)
class ImageUsage:
    """Space of an image in bytes: `reserved_bytes` of the budget, `allocated_bytes` on disk now.

    The two differ for the requested image and while a fill runs: then the complete size is reserved.
    `in_use` images are not evicted: they are mounted, prewarmed or being filled. `last_used` is in seconds
    since 1970.
    """

    digest: str
    reserved_bytes: int
    allocated_bytes: int
    last_used: float = 0.0
    in_use: bool = False


def select_victims(
    requested: ImageUsage, others: Iterable[ImageUsage], budget_bytes: int, free_bytes: int
) -> list[str]:
    """Return the digests to evict, least recently used first, so that `requested` fits.

    It has to fit `budget_bytes` and the `free_bytes` of the file system. Raises NoSpace, stating what is
    needed and what is possible, if evicting everything that may go is not enough.
    """
    usages = list(others)
    budget_left = budget_bytes - sum(usage.reserved_bytes for usage in usages)
    # Running fills will still allocate the rest of their reservations; what `requested` has allocated counts
    # as free.
    disk_left = (
        free_bytes
        + requested.allocated_bytes
        - sum(max(0, usage.reserved_bytes - usage.allocated_bytes) for usage in usages)
    )
    # On disk, evicting an image frees what it has allocated, and what was set aside above for the rest.
    victims = []
    for usage in sorted((image for image in usages if not image.in_use), key=lambda image: image.last_used):
        if min(budget_left, disk_left) >= requested.reserved_bytes:
            break
        victims.append(usage.digest)
        budget_left += usage.reserved_bytes
        disk_left += max(usage.reserved_bytes, usage.allocated_bytes)
    if min(budget_left, disk_left) < requested.reserved_bytes:
        raise _no_space_error(requested, usages, budget_bytes, budget_left, disk_left)
    return victims


def _no_space_error(
    requested: ImageUsage, usages: list[ImageUsage], budget_bytes: int, budget_left: int, disk_left: int
) -> NoSpace:
    in_use_bytes = sum(usage.reserved_bytes for usage in usages if usage.in_use)
    limit, remedy = f"its budget is {format_size(budget_bytes)}", "raise --store-size"
    if disk_left < budget_left:
        limit, remedy = "its file system has no more", "add disk space"
    return NoSpace(
        f"the image needs {format_size(requested.reserved_bytes)}, "
        f"the node's store has room for {format_size(max(0, min(budget_left, disk_left)))}: {limit}, "
        f"{format_size(in_use_bytes)} are mounted, prewarmed or being filled; "
        f"delete pods that mount other caches, or CachePrewarms, or {remedy}"
    )
