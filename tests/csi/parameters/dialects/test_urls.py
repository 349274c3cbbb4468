"""Plain files: their URLs, names and sums, and what must not be in a URL."""

from __future__ import annotations

import pytest

from csi.errors import InvalidParameter
from csi.parameters.dialects.urls import UrlFile, UrlSpec
from csi.parameters.volume_parameters import parse_volume_parameters

SUM = "0123456789abcdef" * 4
SECRET = "verySecret123"


def source(values: dict[str, str]) -> UrlSpec:
    found = parse_volume_parameters(values).spec.source
    assert isinstance(found, UrlSpec)
    return found


def refusal(values: dict[str, str]) -> str:
    with pytest.raises(InvalidParameter) as error:
        parse_volume_parameters(values)
    return str(error.value)


def test_one_url_or_several_by_commas_or_lines() -> None:
    one, two = UrlFile("https://a.example/x/one.bin"), UrlFile("http://b.example:8080/two.bin?v=2")
    assert source({"url": one.url}) == source({"type": "URL", "url": f" {one.url} "}) == UrlSpec((one,))
    assert (
        source({"url": f"{one.url}, {two.url}"})
        == source({"url": f"{one.url}\n{two.url}\n"})
        == UrlSpec((one, two))
    )
    assert source({"url": f"{one.url},{two.url}"}).addresses == ("a.example", "b.example:8080")


def test_a_file_has_the_name_of_its_url() -> None:
    assert source({"url": "https://a.example/x/%C3%BC%20b.bin?x=y#part"}).files[0].path == "ü b.bin"


def test_a_file_may_be_given_a_path_of_its_own() -> None:
    one, two = source({"url": "a/b=c/x.bin=https://a.example/x?y=http://z/,https://a.example/x"}).files
    assert (one.path, one.url, two.path) == ("a/b=c/x.bin", "https://a.example/x?y=http://z/", "x")


def test_each_url_may_have_its_sum() -> None:
    url = "https://a.example/one,https://a.example/two"
    assert [file.sha256 for file in source({"url": url, "sha256": f"-,sha256:{SUM.upper()}"}).files] == [
        "",
        SUM,
    ]


def test_a_metalink_document_stands_for_the_urls() -> None:
    spec = UrlSpec(metalink="https://a.example:8443/x/all.meta4?v=2")
    for written in ({"metalink": f" {spec.metalink}#part "}, {"TYPE": "url", "MetaLink": spec.metalink}):
        assert source(written) == spec
    assert source(spec.to_context()) == spec
    assert (
        parse_volume_parameters(parse_volume_parameters({"metalink": spec.metalink}).to_context()).spec.source
        == spec
    )
    assert spec.addresses == ("a.example:8443",)
    assert spec.display_name == "Metalink a.example:8443 'all.meta4'"
    assert spec.origin_scope != source({"url": spec.metalink}).origin_scope
    assert spec != source({"url": spec.metalink})
    assert spec.is_unpinnable


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"metalink": "https://a.example/x", "url": "https://a.example/y"},
            "metalink and url are both given; keep one",
        ),
        (
            {"metalink": "https://a.example/x", "sha256": SUM},
            "metalink and sha256 are both given; the document has the sums",
        ),
        ({"metalink": "a.example/x"}, "metalink is 'a.example/x'; it is an http"),
        ({"metalink": "https://a.example/x,https://b.example/x y"}, "metalink is"),
        ({"metalink": "https://a.example/x", "repoId": "a/b"}, "repoId"),
        ({"metalink": "https://a.example/x", "type": "OSS"}, "metalink belongs to another type"),
        ({"type": "URL", "metalink": ""}, "or as metalink"),
        ({"type": "URL", "url": ""}, "url is missing"),
        ({"url": "nohost"}, "url is 'nohost'"),
        ({"url": "file:///etc/passwd"}, "url is"),
        ({"url": "https://a.example/"}, "ends in no file name"),
        ({"url": "https://a.example/x/%2e%2e"}, "ends in no file name"),
        ({"url": "https://a.example/a%2Fb"}, "ends in no file name"),
        ({"url": "https://a.example/x,https://b.example/x"}, "two files 'x'"),
        ({"url": "../x=https://a.example/x"}, "ends in no file name"),
        ({"url": "/x=https://a.example/x"}, "ends in no file name"),
        ({"url": "https://a.example/x", "sha256": "12"}, "sha256 is '12'"),
        ({"url": "https://a.example/x", "sha256": f"{SUM},{SUM}"}, "sha256 has 2 values for 1 URLs"),
        ({"url": "https://a .example/x"}, "url is"),
        ({"url": "https://a.example/x", "repoId": "a/b"}, "repoId"),
        ({"url": "\n".join(f"https://a.example/{n}" for n in range(1001))}, "at most 1000"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_by_the_name_of_its_key(
    values: dict[str, str], words: str
) -> None:
    assert words in refusal(values)


SIGNED = [
    "X-Amz-Signature={}",
    "a=1&Signature={}",
    "a=1;Signature={}",
    "access_token={}",
    "accessToken={}",
    "sig={}",
    "q-sign-algorithm=sha1&q-ak={}",
    "q-signature={}",
    "X-Tos-Signature={}",
    "x-oss-signature={}",
    "OSSAccessKeyId={}",
    "AWSAccessKeyId={}",
    "sign={}&t=123",
    "key={}",
    "api_key={}",
    "access_key={}",
    "ak={}",
    "jwt={}",
    "hmac={}",
    "pwd={}",
    "password={}",
    "code={}",
    "auth={}",
    "auth_key=1-2-{}",
    "hdnts=exp=1~acl=/*~hmac={}",
    "edge=exp=1~hmac={}",
    "md5={}&expires=1700000000",
    "verify=1700-{}",
    "%73ig={}",
    "next=https%3A%2F%2Fb.example%2Fx%3FX-Amz-Signature%3D{}",
]


@pytest.mark.parametrize(
    "url",
    [
        f"https://user:{SECRET}@a.example/x",
        f"https://a.example/x#token={SECRET}",
        *(f"https://a.example/x?{q.format(SECRET)}" for q in SIGNED),
    ],
)
def test_a_login_or_a_signature_in_a_url_is_refused_and_never_repeated(url: str) -> None:
    for key in ("url", "metalink"):
        message = refusal({key: url})
        assert f"{key} carries a credential" in message
        assert SECRET not in message


@pytest.mark.parametrize(
    "query",
    [
        "author=x",
        "authority=x",
        "keyword=x",
        "monkey=1",
        "design=x",
        "tokenizer=x",
        "codec=x",
        "v=sig",
        "passage=2",
        "versionId=abc&dl=1",
        "a;b",
    ],
)
def test_what_only_resembles_a_credential_is_a_part_of_the_address(query: str) -> None:
    assert source({"url": f"https://a.example/x?{query}"}).files[0].url.endswith(f"?{query}")
