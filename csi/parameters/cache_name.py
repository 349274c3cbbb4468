"""References to a DataCache by bucket and path, given in place of a source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from csi.errors import InvalidParameter
from csi.parameters.data_cache import parse_bucket, parse_path
from csi.parameters.volume_parameters import names_a_source, parse_performance

BUCKET, PATH = "cacheBucket", "cachePath"


@dataclass(frozen=True)
class DataCacheReference:
    """The bucket and path of a DataCache, and the volume's performance keys as parameters."""

    bucket: str
    path: str
    performance: Mapping[str, str]


def parse_data_cache_reference(context: Mapping[str, str]) -> DataCacheReference | None:
    """Parse the DataCache named by the attributes of an inline volume; return None if they name none.

    Raises InvalidParameter naming the key.
    """
    lowercased = {key.lower(): value for key, value in context.items()}
    bucket, path = lowercased.get(BUCKET.lower()), lowercased.get(PATH.lower())
    if bucket is None and path is None:
        return None
    if path is None:
        raise InvalidParameter(
            f"{BUCKET} is given without {PATH}; name the DataCache by both (the bucket may be left out)"
        )
    other_keys = {
        key: value for key, value in context.items() if key.lower() not in (BUCKET.lower(), PATH.lower())
    }
    if names_a_source(other_keys):
        raise InvalidParameter(
            f"{PATH} names a DataCache, which has a source of its own, and a source is named too; "
            "keep one of them"
        )
    return DataCacheReference(
        parse_bucket(bucket or ""), parse_path(path), parse_performance(other_keys).to_context()
    )
