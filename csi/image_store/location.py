"""Where a cluster keeps images that outlive their origins, as the operator writes it: a folder, or a bucket.

file:///mnt/images
s3://bucket/folder?endpoint=https://minio.example.com:9000&region=eu-central-1&pathStyle=true
oss://bucket/folder?endpoint=oss-cn-hangzhou-internal.aliyuncs.com
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qsl, unquote, urlsplit

from csi.errors import InvalidParameter
from csi.parameters.dialects.buckets import OSS, S3, ObjectSpec
from csi.values import shown

_BUCKETS = {"s3": (S3, "endpoint"), "oss": (OSS, "url")}
_KNOWN = ("endpoint", "region", "pathStyle")


@dataclass(frozen=True)
class FolderSpec:
    """A folder of a file system that all nodes have mounted."""

    path: Path

    @property
    def shown(self) -> str:
        """The store as messages name it."""
        return f"the folder {self.path}"


ImageStoreSpec = FolderSpec | ObjectSpec


def image_store(text: str) -> ImageStoreSpec:
    """The image store that an URL names. Raises InvalidParameter that says what is wrong with it; no credential may be in it."""
    try:
        url = urlsplit(text)
        options = dict(parse_qsl(url.query, strict_parsing=True)) if url.query else {}
    except ValueError as error:
        raise _refused(text, "cannot be read as an URL") from error
    if url.username is not None or url.password is not None or url.fragment:
        raise InvalidParameter("the image store's URL carries a credential or a fragment; put the access key into the folder of --image-store-secret")
    if url.scheme == "file":
        return _folder(text, url.netloc, unquote(url.path), options)
    if url.scheme not in _BUCKETS:
        raise _refused(text, "is of no known kind")
    if unknown := next((key for key in options if key not in _KNOWN), ""):
        raise _refused(text, f"has an unknown option {shown(unknown)}; it may have {', '.join(_KNOWN)}")
    dialect, endpoint = _BUCKETS[url.scheme]
    values = {"bucket": url.netloc, "path": unquote(url.path)} | {key: value for key, value in options.items() if key != "endpoint"}
    found = dialect.parse(values | ({endpoint: options["endpoint"]} if "endpoint" in options else {}), ())
    assert isinstance(found, ObjectSpec)
    return found


def _folder(text: str, host: str, path: str, options: dict[str, str]) -> FolderSpec:
    if host or options or not path.startswith("/") or ".." in PurePosixPath(path).parts:
        raise _refused(text, "is no absolute folder")
    return FolderSpec(Path(path))


def _refused(text: str, why: str) -> InvalidParameter:
    # Not the whole of it: whoever got it wrong may have put a key there.
    return InvalidParameter(
        f"the image store {shown(text.partition('?')[0].rpartition('@')[2])} {why}; write file:///folder, s3://bucket/folder or oss://"
    )
