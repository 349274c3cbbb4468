"""Whose credential an update goes on with, and what is not set, through both SDKs."""

from __future__ import annotations

from typing import Any

import pytest

from csi.registry.datacaches.data_caches import DataCache, DataCacheState, Phase
from tests.controller_plugin.operator.openapi.region import CONTENT, HUB, Region, create
from tests.controller_plugin.operator.openapi.sdks import Sdk

OTHERS: dict[str, dict[str, Any]] = {
    "another revision of the repository": {"Type": "URL", "Options": {**HUB, "revision": "v2"}},
    "another repository of the hub": {"Type": "URL", "Options": {**HUB, "repoId": "org/other"}},
    "no source": {},
}
ELSEWHERE: dict[str, dict[str, Any]] = {
    "another hub": {"Type": "URL", "Options": {**HUB, "repoSource": "ModelScope/Model"}},
    "somebody's server": {"Type": "URL", "Options": {"url": "https://files.example.org/a.bin"}},
    "a bucket": {
        "Type": "OSS",
        "Options": {"bucket": "models", "url": "oss-cn-beijing.aliyuncs.com", "path": "/"},
    },
    "no token": {"Type": "URL", "Options": {**HUB, "accessToken": ""}},
}


def _updated(sdk: Sdk, region: Region, source: dict[str, Any]) -> DataCache:
    made = create(sdk)
    region.be(made, DataCacheState(Phase.AVAILABLE, 100, 1, CONTENT))
    sdk("UpdateDataCache", DataCacheId=made, **({"DataSource": source} if source else {"Size": 50}))
    return region.caches.find((made,))[0]


@pytest.mark.parametrize("source", OTHERS.values(), ids=OTHERS)
def test_a_credential_stays_where_it_is_for_the_same_hosts(
    sdk: Sdk, region: Region, source: dict[str, Any]
) -> None:
    assert region.caches.read_credential(_updated(sdk, region, source)) == {"accessToken": "hf_x"}


@pytest.mark.parametrize("source", ELSEWHERE.values(), ids=ELSEWHERE)
def test_a_credential_goes_with_the_source_that_it_was_for(
    sdk: Sdk, region: Region, source: dict[str, Any]
) -> None:
    after = _updated(sdk, region, source)
    assert after.secret_ref is None
    assert region.caches.read_credential(after) == {}
    assert "accessToken" not in after.spec.options
    assert not [file for file in region.folder.rglob("*") if file.is_file() and b"hf_x" in file.read_bytes()]


@pytest.mark.parametrize("unset", [None, "", "None"])
def test_options_that_are_not_set_are_none(sdk: Sdk, region: Region, unset: str | None) -> None:
    options = {key: value for key, value in HUB.items() if key != "revision"}
    made = create(
        sdk, DataSource={"Type": "URL", "Options": {**options, "revision": unset, "accessToken": unset}}
    )
    found = region.caches.find((made,))[0]
    assert found.spec.options == options
    assert found.secret_ref is None


def test_a_vswitch_and_a_security_group_are_changed_each_for_itself(sdk: Sdk, region: Region) -> None:
    made = create(sdk, SecurityGroupId="sg-1")
    assert region.caches.find((made,))[0].spec.networks == ("", "sg-1")
    for number, (change, networks) in enumerate(
        [({"VSwitchId": "vsw-2"}, ("vsw-2", "sg-1")), ({"SecurityGroupId": "sg-3"}, ("vsw-2", "sg-3"))], 1
    ):
        region.be(made, DataCacheState(Phase.AVAILABLE, 100, number, CONTENT))
        sdk("UpdateDataCache", DataCacheId=made, **change)
        assert region.caches.find((made,))[0].spec.networks == networks
