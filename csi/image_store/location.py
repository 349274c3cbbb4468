"""Location of a cluster's image store, as the operator writes it: a folder, or a bucket.

file:///mnt/images
s3://bucket/folder?endpoint=https://minio.example.com:9000&region=eu-central-1&pathStyle=true
oss://bucket/folder?endpoint=oss-cn-hangzhou-internal.aliyuncs.com
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qsl, unquote, urlsplit

from csi.errors import InvalidParameter
from csi.parameters.dialects.buckets import OSS, S3, BucketSpec
from csi.values import redact

_BUCKETS = {"s3": (S3, "endpoint"), "oss": (OSS, "url")}
_OPTIONS = ("endpoint", "region", "pathStyle")


@dataclass(frozen=True)
class FolderStoreSpec:
    """A folder of a file system that all nodes have mounted."""

    path: Path

    @property
    def display_name(self) -> str:
        """The store as messages name it."""
        return f"the folder {self.path}"


ImageStoreSpec = FolderStoreSpec | BucketSpec


def parse_image_store_url(text: str) -> ImageStoreSpec:
    """Parse the URL of an image store.

    Raises InvalidParameter saying what is wrong. It must not contain a credential.
    """
    try:
        url = urlsplit(text)
        options = dict(parse_qsl(url.query, strict_parsing=True)) if url.query else {}
    except ValueError as error:
        raise _url_error(text, "cannot be parsed as a URL") from error
    if url.username is not None or url.password is not None or url.fragment:
        raise InvalidParameter(
            "the image store's URL carries a credential or a fragment; "
            "put the access key into the folder of --image-store-secret"
        )
    if url.scheme == "file":
        return _parse_folder(text, url.netloc, unquote(url.path), options)
    if url.scheme not in _BUCKETS:
        raise _url_error(text, "has an unknown scheme")
    if unknown := next((key for key in options if key not in _OPTIONS), ""):
        raise _url_error(text, f"has an unknown option {redact(unknown)}; it may have {', '.join(_OPTIONS)}")
    dialect, endpoint = _BUCKETS[url.scheme]
    values = {"bucket": url.netloc, "path": unquote(url.path)} | {
        key: value for key, value in options.items() if key != "endpoint"
    }
    spec = dialect.parse(values | ({endpoint: options["endpoint"]} if "endpoint" in options else {}), ())
    assert isinstance(spec, BucketSpec)
    return spec


def _parse_folder(text: str, host: str, path: str, options: dict[str, str]) -> FolderStoreSpec:
    if host or options or not path.startswith("/") or ".." in PurePosixPath(path).parts:
        raise _url_error(text, "is not an absolute folder")
    return FolderStoreSpec(Path(path))


def _url_error(text: str, problem: str) -> InvalidParameter:
    # Without user info and query: a malformed URL may have a key there.
    location = redact(text.partition("?")[0].rpartition("@")[2])
    return InvalidParameter(
        f"the image store {location} {problem}; write file:///folder, s3://bucket/folder or oss://"
    )
