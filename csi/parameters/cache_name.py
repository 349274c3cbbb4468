"""A volume that names a DataCache by its bucket and path, in place of a source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from csi.errors import InvalidParameter
from csi.parameters.data_cache import parse_bucket, parse_path
from csi.parameters.volume_parameters import names_a_source, parse_performance

BUCKET, PATH = "cacheBucket", "cachePath"


@dataclass(frozen=True)
class DataCacheReference:
    """The bucket and path of a DataCache, and the performance keys of the volume, as parameters."""

    bucket: str
    path: str
    performance: Mapping[str, str]


def parse_data_cache_reference(context: Mapping[str, str]) -> DataCacheReference | None:
    """The DataCache that an inline volume's attributes name, None where they name none. Raises InvalidParameter, naming the key."""
    lowercased = {key.lower(): value for key, value in context.items()}
    bucket, path = lowercased.get(BUCKET.lower()), lowercased.get(PATH.lower())
    if bucket is None and path is None:
        return None
    if path is None:
        raise InvalidParameter(
            f"{BUCKET} is given without {PATH}; name the DataCache by both (the bucket may be left out)"
        )
    rest = {key: value for key, value in context.items() if key.lower() not in (BUCKET.lower(), PATH.lower())}
    if names_a_source(rest):
        raise InvalidParameter(
            f"{PATH} names a DataCache, which has its source, and a source is named too; keep one of them"
        )
    return DataCacheReference(
        parse_bucket(bucket or ""), parse_path(path), parse_performance(rest).to_context()
    )
