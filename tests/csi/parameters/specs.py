"""Cache specs of every kind, for property-based tests."""

from __future__ import annotations

from hypothesis import strategies as st

from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.buckets import BucketSpec
from csi.parameters.dialects.composite import CompositeSpec
from csi.parameters.dialects.hub import REPO_SOURCES, HubSpec
from csi.parameters.dialects.keys import SourceSpec
from csi.parameters.dialects.nas import NasSpec
from csi.parameters.dialects.urls import UrlFile, UrlSpec

names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_]{0,20}", fullmatch=True)
pattern_text = st.text(
    st.characters(blacklist_categories=("Cs", "Cc", "Zs", "Zl", "Zp")), min_size=1, max_size=20
)
patterns = st.lists(pattern_text, max_size=4).map(tuple)
hubs = st.builds(
    HubSpec, st.sampled_from(REPO_SOURCES), st.builds("{}/{}".format, names, names), names, patterns, patterns
)
folders = st.lists(names, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))
ports = st.integers(0, 65535)
shares = st.builds(
    NasSpec,
    st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,20}[a-z0-9])?", fullmatch=True),
    folders,
    st.sampled_from(["3", "4.0"]),
    ports,
    ports,
    st.integers(1, 36000).map(lambda tenths: tenths / 10),
    st.integers(0, 100),
    st.integers(0, 2**32 - 2),
    st.integers(0, 2**32 - 2),
)
hosts = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?\.example", fullmatch=True)
endpoints = st.builds(
    "{}://{}{}".format, st.sampled_from(["http", "https"]), hosts, st.sampled_from(["", ":9000"])
)
buckets = st.from_regex(r"[a-z0-9][a-z0-9-]{1,20}[a-z0-9]", fullmatch=True)
prefixes = st.lists(names, max_size=3).map("/".join)
regions = st.sampled_from(["", "eu-central-1", "cn-hangzhou"])
oss = st.builds(
    BucketSpec, st.just("OSS"), endpoints, buckets, prefixes, regions, st.booleans(), st.just("") | names
)
s3 = st.builds(BucketSpec, st.just("S3"), endpoints, buckets, prefixes, regions, st.booleans())
sums = st.just("") | st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
url_lists = st.lists(st.tuples(hosts, names, sums), min_size=1, max_size=4, unique_by=lambda parts: parts[1])


def _url_spec(parts: list[tuple[str, str, str]]) -> UrlSpec:
    return UrlSpec(
        tuple(
            UrlFile(f"https://{host}/a,b/{name}?v=1", sum_, f"in/{name}" if sum_ else "")
            for host, name, sum_ in parts
        )
    )


urls = url_lists.map(_url_spec)
single = st.one_of(hubs, shares, oss, s3, urls)
limits = st.none() | st.integers(1 << 16, 1 << 40)


def _several_spec(parts: dict[str, tuple[SourceSpec, int | None]]) -> CompositeSpec:
    ordered = sorted(parts.items())
    own = tuple((folder, limit) for folder, (_, limit) in ordered if limit)
    return CompositeSpec(tuple((folder, source) for folder, (source, _) in ordered), own)


several = st.dictionaries(names, st.tuples(single, limits), min_size=1, max_size=3).map(_several_spec)
profiles = st.just("") | st.from_regex(r"[a-z0-9]{1,12}", fullmatch=True)
cache_specs = st.builds(CacheSpec, single | several, st.booleans(), profiles, limits, st.booleans())
