"""Announcements of copies: DataCaches that another region's operator wants here.

An announcement is written before its image is copied.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from csi.errors import CorruptContent
from csi.images.node_store.records import is_digest
from csi.linux.durable_files import check_keys
from csi.parameters.data_cache import is_data_cache_id, snapshot_id_for

ANNOUNCEMENT_FORMAT = 1
ANNOUNCEMENTS_FOLDER = "announced"
"""The folder of the announcements in the image store."""
_KEYS = (
    "id",
    "digest",
    "bucket",
    "path",
    "store",
    "region",
    "title",
    "retention_days",
    "tags",
    "resource_group",
    "namespaces",
    "adopted",
)


@dataclass(frozen=True)
class Announcement:
    """A DataCache `id` to be created here from the image `digest` (64 hex digits).

    `retention_days` is None for ever; `namespaces` are those whose pods may mount it, empty for all. `store`
    and `region` are where the image comes from; `adopted` is set once the DataCache was created.
    """

    id: str
    digest: str
    bucket: str
    path: str
    store: str
    region: str
    title: str = ""
    retention_days: int | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    resource_group: str = ""
    namespaces: tuple[str, ...] = ()
    adopted: bool = False

    @property
    def snapshot_id(self) -> str:
        """The id of the image in ECI's API."""
        return snapshot_id_for(self.digest)

    @property
    def key(self) -> str:
        """The key of the announcement in the image store."""
        return f"{ANNOUNCEMENTS_FOLDER}/{self.id}.json"

    def encode(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return {
            "id": self.id,
            "digest": self.digest,
            "bucket": self.bucket,
            "path": self.path,
            "store": self.store,
            "region": self.region,
            "title": self.title,
            "retention_days": self.retention_days,
            "tags": dict(self.tags),
            "resource_group": self.resource_group,
            "namespaces": list(self.namespaces),
            "adopted": self.adopted,
        }

    @staticmethod
    def decode(values: Mapping[str, Any]) -> Announcement:
        """Read what `encode` wrote; raises KeyError, TypeError or ValueError for anything else."""
        check_keys(values, *_KEYS)
        announcement = Announcement(
            id=values["id"],
            digest=values["digest"],
            bucket=values["bucket"],
            path=values["path"],
            store=values["store"],
            region=values["region"],
            title=values.get("title", ""),
            retention_days=values.get("retention_days"),
            tags=values.get("tags", {}),
            resource_group=values.get("resource_group", ""),
            namespaces=tuple(values.get("namespaces", ())),
            adopted=values.get("adopted", False),
        )
        if not is_data_cache_id(announcement.id) or not is_digest(announcement.digest):
            raise ValueError("invalid DataCacheId or image digest")
        return announcement


def encode_announcement(announcement: Announcement) -> bytes:
    """Encode an announcement as the content of its object."""
    return json.dumps({"format": ANNOUNCEMENT_FORMAT, **announcement.encode()}, sort_keys=True).encode()


def decode_announcement(content: bytes, key: str) -> Announcement:
    """Decode the content of an object; raises CorruptContent naming `key`."""
    try:
        values: dict[str, Any] = json.loads(content)
        if values.pop("format") != ANNOUNCEMENT_FORMAT:
            raise ValueError("unknown format")
        announcement = Announcement.decode(values)
        if announcement.key != key:
            raise ValueError("it belongs to another DataCache")
        return announcement
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CorruptContent(
            f"the image store's {key} is damaged ({error}); remove it there, and copy again"
        ) from error
