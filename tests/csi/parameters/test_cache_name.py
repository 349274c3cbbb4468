"""Volumes that name a DataCache: by bucket and path, in any case, with performance and nothing else."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from csi.errors import InvalidParameter
from csi.parameters.cache_name import DataCacheReference, parse_data_cache_reference


def test_a_volume_of_a_source_names_no_cache() -> None:
    assert parse_data_cache_reference({"repoId": "org/name", "csi.storage.k8s.io/ephemeral": "true"}) is None


@pytest.mark.parametrize(
    ("context", "name"),
    [
        ({"cachePath": "/models/a/"}, DataCacheReference("default", "/models/a", {})),
        (
            {"CACHEBUCKET": "b", "cachepath": "/models/a", "csi.storage.k8s.io/ephemeral": "true"},
            DataCacheReference("b", "/models/a", {}),
        ),
        (
            {"cachePath": "/a", "provisionediops": "5", "performanceLevel": "AutoPL"},
            DataCacheReference("default", "/a", {"provisionedIops": "5", "performanceLevel": "AutoPL"}),
        ),
    ],
)
def test_a_cache_is_named_by_bucket_and_path(context: Mapping[str, str], name: DataCacheReference) -> None:
    assert parse_data_cache_reference(context) == name


@pytest.mark.parametrize(
    ("context", "words"),
    [
        ({"cacheBucket": "b"}, "cacheBucket is given without cachePath"),
        ({"cachePath": "/a", "repoId": "org/name"}, "a source is named too; keep one of them"),
        ({"cachePath": "a"}, "absolute path"),
        ({"cachePath": "/a", "cacheBucket": "eci-system"}, "reserved"),
        ({"cachePath": "/a", "size": "5"}, "size cannot be set on a volume of a DataCache"),
        ({"cachePath": "/a", "provisionedIops": "many"}, "provisionedIops is 'many'"),
        ({"cachePath": "/a", "performanceLevel": "PL1", "provisionedIops": "5"}, "keep one"),
        ({"cachePath": "/a", "manifestDigest": "a" * 64}, "manifestDigest"),
        ({"cachePath": "/a", "token": "hf_x"}, "put it into a Secret"),
    ],
)
def test_what_no_volume_of_a_cache_can_have_is_refused_by_name(
    context: Mapping[str, str], words: str
) -> None:
    with pytest.raises(InvalidParameter) as caught:
        parse_data_cache_reference(context)
    assert words in str(caught.value)
    assert "hf_x" not in str(caught.value)
