"""How an operator writes where images are kept that outlive their origins."""

from __future__ import annotations

from pathlib import Path

import pytest

from csi.errors import InvalidParameter
from csi.image_store.location import FolderStoreSpec, parse_image_store_url
from csi.parameters.dialects.buckets import BucketSpec


def test_a_folder_is_one() -> None:
    assert parse_image_store_url("file:///mnt/a%20b") == FolderStoreSpec(Path("/mnt/a b"))


def test_buckets_are_written_as_one_url() -> None:
    s3 = parse_image_store_url("s3://images/kept/here?endpoint=http://minio.example:9000&region=eu-central-1")
    assert s3 == BucketSpec("S3", "http://minio.example:9000", "images", "kept/here", "eu-central-1", True)
    assert parse_image_store_url("s3://images?region=eu-central-1") == BucketSpec(
        "S3", "https://s3.eu-central-1.amazonaws.com", "images", "", "eu-central-1"
    )
    oss = parse_image_store_url("oss://images/kept?endpoint=oss-cn-hangzhou-internal.aliyuncs.com")
    assert isinstance(oss, BucketSpec)
    assert (oss.store, oss.bucket, oss.prefix, oss.region) == (
        "OSS",
        "images",
        "kept",
        "cn-hangzhou",
    )


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "write file:///folder"),
        ("/mnt/images", "unknown scheme"),
        ("http://images.example", "unknown scheme"),
        ("file://host/images", "not an absolute folder"),
        ("file:///mnt/../etc", "not an absolute folder"),
        ("s3://images?endpoint", "cannot be parsed"),
        ("s3://images?endpont=x", "unknown option"),
        ("s3://images", "endpoint is missing"),
        ("s3://i?region=eu-central-1", "bucket"),
        ("s3://id:s3cr3t@images?region=eu-central-1", "--image-store-secret"),
    ],
)
def test_what_is_none_says_why_without_a_credential(url: str, words: str) -> None:
    with pytest.raises(InvalidParameter, match=words) as caught:
        parse_image_store_url(url)
    assert "s3cr3t" not in str(caught.value)
