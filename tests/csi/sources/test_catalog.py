"""What a Secret may hold: credentials as they are, and nothing that cannot be one."""

from __future__ import annotations

import pytest

from csi.errors import InvalidParameter
from csi.parameters.volume_parameters import parse_volume_parameters
from csi.sources.catalog import open_source

STORES = {"oss": ({"type": "OSS", "url": "http://127.0.0.1:1"}, ("akId", "akSecret", "securityToken"))}
STORES["s3"] = (
    {"type": "S3", "endpoint": "http://127.0.0.1:1"},
    ("accessKeyId", "secretAccessKey", "sessionToken"),
)
TOKENS = {
    "hub": {"repoId": "org/name"},
    "modelscope": {"repoId": "org/name", "repoSource": "ModelScope/Model"},
    "url": {"url": "http://127.0.0.1:1/x"},
}
CASES = [(TOKENS[name], {"token": "{}"}, "token") for name in TOKENS]
CASES += [(TOKENS["url"], {"accessToken": "{}"}, "accessToken")]
CASES += [
    (
        {**plain, "bucket": "models"},
        {**dict.fromkeys(names, "good"), bad: "{}"},
        bad,
    )  # one of the three is bad
    for plain, names in STORES.values()
    for bad in names
]


@pytest.mark.parametrize(
    "value",
    ["verySecret\n123", "verySecret\r\nX-Evil: 1", "verySecret\u00e9", "very\u2028Secret", "verySecret\x7f1"],
    ids=ascii,
)
@pytest.mark.parametrize(
    ("parameters", "secrets", "key"), CASES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_can_be_no_credential_is_refused_by_the_name_of_its_key(
    parameters: dict[str, str], secrets: dict[str, str], key: str, value: str
) -> None:
    with pytest.raises(InvalidParameter, match=f"the Secret's `{key}` contains a line end") as error:
        open_source(
            parse_volume_parameters(parameters).spec,
            {name: text.format(value) for name, text in secrets.items()},
        )
    assert "very" not in str(error.value)
    assert "Evil" not in str(error.value)


@pytest.mark.parametrize(
    ("parameters", "secrets", "key"), CASES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_line_end_behind_a_credential_is_nothing(
    parameters: dict[str, str], secrets: dict[str, str], key: str
) -> None:
    open_source(
        parse_volume_parameters(parameters).spec,
        {name: text.format("a+b/c=\n") for name, text in secrets.items()},
    ).close()
