"""Buckets whose listings the tests write themselves."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import pytest

from csi.destinations.destinations import Destinations
from csi.errors import DataCacheError
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.buckets import BucketSpec
from csi.sources.buckets.object_store import AccessKey
from csi.sources.buckets.source import BucketSource
from tests.origins.scripted import Server

KEY = AccessKey("keyid", "keySecret123", "sessionToken123")


def list_bucket(*keys: str, more: str = "", **sizes: int) -> bytes:
    """A page with objects of `sizes`, else of 1 byte (0 for folders' keys and "empty")."""
    items = "".join(
        f"<Contents><Key>{key}</Key><LastModified>2026-01-02T03:04:05.678Z</LastModified><Size>{size}</Size><ETag>&quot;e&quot;</ETag></Contents>"
        for key, size in (
            (key, sizes.get(key, 0 if key.endswith("/") or key == "empty" else 1)) for key in keys
        )
    )
    token = f"<NextContinuationToken>{more}</NextContinuationToken>" if more else ""
    return f"<ListBucketResult><IsTruncated>{str(bool(more)).lower()}</IsTruncated>{token}{items}</ListBucketResult>".encode()  # noqa: E501


def told(
    scripted: Server, key: Callable[[], AccessKey] | None = None, where: Destinations | None = None
) -> BucketSource:
    return BucketSource(CacheSpec(BucketSpec("OSS", scripted.url, "bucket", "", path_style=True)), key, where)


def failing(subject: BucketSource) -> DataCacheError:
    with closing(subject), pytest.raises(DataCacheError) as error:
        subject.resolve(subject.pin())
    assert all(
        text not in str(error.value) for text in (KEY.secret, KEY.token, "<Error>", "continuation-token")
    )
    return error.value
