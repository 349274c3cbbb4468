"""Buckets: the words of Alibaba's OSS driver and of S3, and what of them is refused."""

from __future__ import annotations

import pytest

from csi.errors import InvalidParameter
from csi.parameters.dialects.buckets import BucketSpec
from csi.parameters.volume_parameters import parse_volume_parameters

OSS = {"bucket": "models", "url": "oss-cn-hangzhou-internal.aliyuncs.com"}
S3 = {"bucket": "models", "endpoint": "https://minio.example.com:9000"}
SECRET = "verySecret123"


def source(values: dict[str, str]) -> BucketSpec:
    found = parse_volume_parameters(values).spec.source
    assert isinstance(found, BucketSpec)
    return found


def refusal(values: dict[str, str], flags: tuple[str, ...] = ()) -> str:
    with pytest.raises(InvalidParameter) as error:
        parse_volume_parameters(values, flags)
    return str(error.value)


def test_the_words_of_alibabas_oss_driver_are_understood() -> None:
    values = OSS | {"path": "/a/b/", "otherOpts": "-o max_stat_cache_size=0 -o allow_other,umask=022"}
    assert source(values) == BucketSpec(
        "OSS", "https://oss-cn-hangzhou-internal.aliyuncs.com", "models", "a/b", "cn-hangzhou"
    )
    assert source({"TYPE": "oss", **values}) == source(values)


def test_an_endpoint_may_be_a_host_or_a_url_and_is_written_in_one_way() -> None:
    assert source(OSS | {"url": "http://OSS.example.com:80/"}).endpoint == "http://oss.example.com"
    assert source(S3 | {"endpoint": "store:443"}).endpoint == "https://store"
    assert source(S3 | {"endpoint": "http://[::1]:7070"}).endpoint == "http://[::1]:7070"


def test_amazon_needs_a_region_only() -> None:
    assert (
        source({"bucket": "models", "region": "eu-central-1"}).endpoint
        == "https://s3.eu-central-1.amazonaws.com"
    )
    assert "endpoint is missing" in refusal({"bucket": "models"})


@pytest.mark.parametrize(
    ("values", "path_style"),
    [
        (OSS, False),
        (S3, True),
        (OSS | {"url": "http://127.0.0.1:7070"}, True),
        ({"bucket": "models", "region": "eu-central-1"}, False),
        ({"bucket": "with.dots", "region": "eu-central-1"}, True),
        (S3 | {"pathStyle": "false"}, False),
        (OSS | {"pathStyle": "true"}, True),
    ],
)
def test_the_bucket_is_in_the_host_name_where_the_clouds_want_it_and_in_the_path_elsewhere(
    values: dict[str, str], path_style: bool
) -> None:
    assert source(values).path_style is path_style


def test_two_folders_of_a_bucket_are_two_places() -> None:
    assert source(S3 | {"path": "a"}).origin_scope != source(S3 | {"path": "b"}).origin_scope
    assert source(S3 | {"path": "/a/"}) == source(S3 | {"path": "a"})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (OSS | {"bucket": "-x"}, "bucket is '-x'"),
        (OSS | {"bucket": "a/../b"}, "bucket is"),
        ({"url": "oss.example.com", "type": "OSS"}, "bucket is missing"),
        (OSS | {"path": "/a/../b"}, "path is"),
        (OSS | {"url": "oss.example.com/path"}, "url is"),
        (OSS | {"url": "ftp://oss.example.com"}, "url is"),
        (OSS | {"ramRole": "a b"}, "ramRole is"),
        (OSS | {"endpoint": "x"}, "name two sources"),
        (OSS | {"server": "nas"}, "name two sources"),
        (OSS | {"otherOpts": "-o default_acl=public"}, "otherOpts has 'default_acl'"),
        (OSS | {"otherOpts": "'"}, "otherOpts has a quote"),
        (OSS | {"otherOpts": "-o allow_other,ro -o use_xattr"}, "otherOpts has an option (number 3), which"),
        (S3 | {"region": "Eu Central"}, "region is"),
        (S3 | {"endpoint": "http://x:99999"}, "endpoint is"),
        (S3 | {"endpoint": "http://127.0.0.1", "pathStyle": "false"}, "pathStyle is false"),
        (S3 | {"pathStyle": "yes"}, "pathStyle is 'yes'"),
        (S3 | {"type": "OSS"}, "endpoint belongs to another type"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_by_the_name_of_its_key(
    values: dict[str, str], words: str
) -> None:
    assert words in refusal(values)


def test_mount_options_mean_nothing_for_a_bucket() -> None:
    assert "means nothing for an object store" in refusal(S3, ("vers=3",))


@pytest.mark.parametrize(
    "values",
    [
        OSS | {"url": f"https://user:{SECRET}@oss.example.com"},
        S3 | {"endpoint": f"https://{SECRET}@oss.example.com"},
        OSS | {"otherOpts": f"-o passwd_file={SECRET}"},
        OSS | {"otherOpts": f"-oakSecret={SECRET}"},
        OSS | {"otherOpts": f"-o unknown={SECRET}"},
        OSS | {"otherOpts": f"-o bucket:LTAIabc:{SECRET}"},
        OSS | {"otherOpts": f"-o allow_other -o {SECRET}"},
        OSS | {"otherOpts": f"-o {SECRET}=="},
        OSS | {"akSecret": SECRET},
        S3 | {"secretAccessKey": SECRET},
        S3 | {"sessionToken": SECRET},
    ],
)
def test_a_credential_is_refused_pointed_to_secrets_and_never_repeated(values: dict[str, str]) -> None:
    assert SECRET.lower() not in refusal(values).lower()
