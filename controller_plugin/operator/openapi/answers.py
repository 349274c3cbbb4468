"""Answers of the OpenAPI.

Source: Alibaba Cloud, ECI 2018-08-08, "DescribeDataCaches"; times have no seconds, as there.
"""

from __future__ import annotations

import json
import time
from typing import Any

from csi.parameters.data_cache import split_secrets
from csi.registry.datacaches.data_caches import DataCache, DataCacheEvent

_TIME = "%Y-%m-%dT%H:%MZ"


def describe_data_cache(cache: DataCache, region: str) -> dict[str, Any]:
    """Describe a cache as an item of DataCaches.

    It holds no credential, not even one that a hand-made object still has among its options.
    """
    state, spec = cache.state, cache.spec
    options, _ = split_secrets(spec.options)
    content = state.content or state.next_content
    return {
        "DataCacheId": cache.id,
        "Name": cache.title,
        "Bucket": spec.bucket,
        "Path": spec.path,
        "Size": spec.capacity_gib(content.content_bytes if content else 0),
        "Status": cache.phase.value,
        "Progress": f"{state.percent if state.generation == cache.generation else 0}%",
        "RegionId": region,
        "ResourceGroupId": cache.resource_group,
        "SnapshotId": content.snapshot_id if content and state.content else "",
        "FlashSnapshotId": "",
        "ContainerGroupId": "",
        "CreationTime": _format_time(cache.created_at),
        "ExpireDateTime": _format_time(state.expires_at),
        "LastMatchedTime": _format_time(state.last_matched_at),
        "DataSource": {
            "Type": spec.type,
            "Options": json.dumps(dict(options), ensure_ascii=False, sort_keys=True),
        },
        "Tags": [{"Key": key, "Value": value} for key, value in cache.tags.items()],
        "Events": [_describe_event(cache, event) for event in state.events],
    }


def _describe_event(cache: DataCache, event: DataCacheEvent) -> dict[str, Any]:
    times = {"FirstTimestamp": _format_time(event.first), "LastTimestamp": _format_time(event.last)}
    return {
        "Type": event.type,
        "Name": cache.id,
        "Reason": event.reason,
        "Message": event.message,
        "Count": event.count,
        **times,
    }


def _format_time(seconds: float) -> str:
    return time.strftime(_TIME, time.gmtime(seconds)) if seconds else ""
