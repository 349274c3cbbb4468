"""Buckets of object stores: Alibaba Cloud OSS with the keys of its CSI driver, and S3."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from csi.errors import InvalidParameter
from csi.parameters.dialects.endpoints import can_have_subdomains, parse_endpoint, unique_addresses
from csi.parameters.dialects.keys import Dialect, Key, KeySetter, MutableSource, SecretKey
from csi.parameters.dialects.mount_flags import refuse_mount_flags
from csi.parameters.dialects.ossfs_options import check_ossfs_options
from csi.values import boolean_value, redact

# The naming rules of S3 and OSS, with the upper case and underscores that older and other stores allow.
_BUCKET = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
_REGION = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_ROLE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
# An OSS endpoint names its region, which signatures need: oss-cn-hangzhou[-internal].aliyuncs.com.
_OSS_REGION = re.compile(r"(?:s3\.)?oss-([a-z0-9-]+?)(?:-internal)?\.aliyuncs\.com")
# These clouds want the bucket in the host name; S3-compatible stores often lack the DNS and certificates for
# that.
_VIRTUAL_HOST_CLOUDS = (".amazonaws.com", ".amazonaws.com.cn", ".aliyuncs.com")


@dataclass(frozen=True)
class BucketSpec(MutableSource):
    """The objects of a bucket below a prefix.

    `store` is "OSS" or "S3": the keys and Secrets it was written with (both are read over the S3 protocol).
    `endpoint` is "https://host[:port]", `prefix` a folder without leading or trailing slashes ("" for the
    whole bucket). `path_style` puts the bucket into the URL's path, not into the host name. `ram_role` (OSS)
    is the role of the instance whose credential reads.
    """

    store: str
    endpoint: str
    bucket: str
    prefix: str = ""
    region: str = ""
    path_style: bool = False
    ram_role: str = ""

    @property
    def display_name(self) -> str:
        return f"{self.store} {self.bucket}/{self.prefix} at {urlsplit(self.endpoint).netloc}"

    @property
    def origin_scope(self) -> str:
        """The folder of the bucket, which is what a credential opens."""
        return f"{self.store} {self.endpoint} {self.bucket}/{self.prefix}"

    @property
    def addresses(self) -> tuple[str, ...]:
        """The host of the endpoint."""
        return unique_addresses((self.endpoint,))

    def to_context(self) -> dict[str, str]:
        context = {"type": self.store, "bucket": self.bucket, "path": "/" + self.prefix}
        if self.store == "OSS":
            context |= {"url": self.endpoint} | ({"ramRole": self.ram_role} if self.ram_role else {})
        else:
            context |= {"endpoint": self.endpoint}
        return (
            context
            | {"pathStyle": str(self.path_style).lower()}
            | ({"region": self.region} if self.region else {})
        )


def _parse_oss(values: Mapping[str, str], flags: Sequence[str]) -> BucketSpec:
    check_ossfs_options(values.get("otherOpts", ""))
    if not values.get("url"):
        raise InvalidParameter(
            "url is missing; give the endpoint of OSS, such as oss-cn-hangzhou-internal.aliyuncs.com"
        )
    endpoint = parse_endpoint("url", values["url"])
    role = values.get("ramRole", "")
    if role and not _ROLE.fullmatch(role):
        raise InvalidParameter(f"ramRole is {redact(role)}; it is the name of a RAM role")
    match = _OSS_REGION.fullmatch(urlsplit(endpoint).hostname or "")
    return _build_bucket_spec("OSS", endpoint, values, flags, match[1] if match else "", role)


def _parse_s3(values: Mapping[str, str], flags: Sequence[str]) -> BucketSpec:
    region = values.get("region", "")
    if values.get("endpoint"):
        endpoint = parse_endpoint("endpoint", values["endpoint"])
    elif region and _REGION.fullmatch(region):
        endpoint = f"https://s3.{region}.amazonaws.com" + (".cn" if region.startswith("cn-") else "")
    elif region:
        raise InvalidParameter(f"region is {redact(region)}; it is a name such as eu-central-1")
    else:
        raise InvalidParameter("endpoint is missing; give the store's address, or region for Amazon S3")
    return _build_bucket_spec("S3", endpoint, values, flags, "", "")


def _build_bucket_spec(
    store: str, endpoint: str, values: Mapping[str, str], flags: Sequence[str], region: str, role: str
) -> BucketSpec:
    refuse_mount_flags(flags, "an object store")
    bucket, host = values.get("bucket", ""), urlsplit(endpoint).hostname or ""
    if not _BUCKET.fullmatch(bucket):
        reason = (
            "bucket is missing; give the bucket's name"
            if not bucket
            else f"bucket is {redact(bucket)}; it is 3 to 63 letters, digits, '-' and '.'"
        )
        raise InvalidParameter(reason)
    region = values.get("region", "") or region
    if region and not _REGION.fullmatch(region):
        raise InvalidParameter(f"region is {redact(region)}; it is a name such as eu-central-1")
    path_style_text = values.get("pathStyle", "")
    path_style = (
        boolean_value("pathStyle", path_style_text)
        if path_style_text
        # A wildcard certificate does not cover a bucket name with dots.
        else not host.endswith(_VIRTUAL_HOST_CLOUDS) or "." in bucket
    )
    if not path_style and not can_have_subdomains(host):
        raise InvalidParameter(
            f"pathStyle is false, but {redact(host)} cannot have a bucket as a subdomain; "
            "leave pathStyle out or set it to true"
        )
    return BucketSpec(
        store, endpoint, bucket, _parse_prefix(values.get("path", "")), region, path_style, role
    )


def _parse_prefix(path: str) -> str:
    parts = [part for part in path.split("/") if part]
    if "." in parts or ".." in parts:
        raise InvalidParameter(
            f"path is {redact(path, 100)}; it is a folder of the bucket, without '.' and '..'"
        )
    return "/".join(parts)


_PATH_STYLE = Key(
    "pathStyle",
    "`true`: the bucket is part of the path, not of the host name",
    "`true` but for Amazon's and Alibaba's own endpoints",
)

OSS = Dialect(
    "oss",
    "an OSS bucket",
    "A bucket of Alibaba Cloud OSS",
    ("OSS",),
    (
        Key("bucket", "the bucket", is_required=True),
        Key("url", "the endpoint, such as `oss-cn-hangzhou-internal.aliyuncs.com`", is_required=True),
        Key("path", "a folder of the bucket", "`/`"),
        Key(
            "otherOpts",
            "options of ossfs: those that only affect a mount are ignored, "
            "others and all credentials are refused",
        ),
        Key(
            "ramRole",
            "the RAM role of the node's instance, whose credential is used; no Secret is needed then",
            setter=KeySetter.ADMINISTRATOR,
            aliases=("roleName",),
        ),
        Key("region", "the region of the signature", "the endpoint's"),
        _PATH_STYLE,
    ),
    _parse_oss,
    (
        SecretKey("akId", "the AccessKey's id; without a Secret the bucket is read anonymously"),
        SecretKey("akSecret", "the AccessKey's secret"),
        SecretKey("securityToken", "the STS token of a temporary AccessKey"),
    ),
)
S3 = Dialect(
    "s3",
    "an S3 bucket",
    "A bucket of an S3 store",
    ("S3",),
    (
        Key("bucket", "the bucket", is_required=True),
        Key(
            "endpoint",
            "the store's address, such as `https://minio.example.com:9000`",
            "Amazon S3 of `region`",
        ),
        Key("region", "the region of the signature", "`us-east-1`"),
        Key("path", "a folder of the bucket", "`/`"),
        _PATH_STYLE,
    ),
    _parse_s3,
    (
        SecretKey("accessKeyId", "the access key's id; without a Secret the bucket is read anonymously"),
        SecretKey("secretAccessKey", "the access key's secret"),
        SecretKey("sessionToken", "the session token of a temporary access key"),
    ),
)
