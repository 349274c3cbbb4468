"""Every call with every parameter that the SDKs have, made by the SDKs themselves over HTTP."""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from alibabacloud_tea_openapi.utils import Utils
from aliyunsdkcore.utils import parameter_helper

from controller_plugin.operator.openapi.parameters import ApiParameters
from csi.parameters.data_cache import parse_data_cache
from csi.registry.datacaches.data_caches import DataCache, DataCacheEvent, DataCacheState, Phase
from tests.controller_plugin.operator.openapi.region import (
    CONTENT,
    HUB,
    HUB_SOURCE,
    KEYS,
    NAS_SOURCE,
    Region,
    create,
    refusal,
)
from tests.controller_plugin.operator.openapi.sdks import KINDS, REGION, Sdk

EIP = {
    "Bandwidth": 5,
    "CommonBandwidthPackage": "cbwp-1",
    "InternetChargeType": "PayByTraffic",
    "PublicIpAddressPoolId": "pippool-1",
    "ISP": "BGP",
}


def test_a_cache_is_created_with_every_parameter_and_described_with_every_field(
    sdk: Sdk, region: Region
) -> None:
    answer = sdk(
        "CreateDataCache",
        Bucket="bucket-1",
        Path="/models/中文 name/",
        Name="llama",
        Size=40,
        RetentionDays=7,
        DataSource=HUB_SOURCE,
        SecurityGroupId="sg-1",
        VSwitchId="vsw-1",
        ResourceGroupId="rg-1",
        ClientToken="token-1",
        Tag=[{"Key": "team", "Value": "a b&c"}, {"Key": "bare"}],
        EipInstanceId="eip-1",
        EipCreateParam=EIP,
    )
    assert len(answer["RequestId"]) == 36
    assert answer["DataCacheId"].startswith("edc-")
    kept = region.caches.find((answer["DataCacheId"],))[0]
    assert region.caches.read_credential(kept) == {"accessToken": "hf_x"}
    assert kept.spec.networks == (
        "vsw-1",
        "sg-1",
    )
    note = DataCacheEvent("Normal", "Filled", "5 bytes", 2, 1686883380.0, 1686883440.0)
    region.be(
        kept.id, DataCacheState(Phase.AVAILABLE, 100, 1, CONTENT, expires_at=1686883380.0, events=(note,))
    )
    region.caches.write_match_time(kept, 1686883380.0)
    answer = sdk("DescribeDataCaches", DataCacheId=[kept.id])
    (item,) = answer["DataCaches"]
    assert answer["TotalCount"] == 1
    assert (
        json.loads(item.pop("DataSource")["Options"] if isinstance(item["DataSource"], dict) else "") == HUB
    )
    assert item.pop("CreationTime")[10] == "T"
    assert item.pop("Tags") == [
        {"Key": "team", "Value": "a b&c"},
        {"Key": "bare", "Value": ""},
    ]
    (event,) = item.pop("Events")
    assert (event["Type"], event["Reason"], event["Count"], event["FirstTimestamp"]) == (
        "Normal",
        "Filled",
        2,
        "2023-06-16T02:43Z",
    )
    assert item == {
        "DataCacheId": kept.id,
        "Name": "llama",
        "Bucket": "bucket-1",
        "Path": "/models/中文 name",
        "Size": 40,
        "Status": "Available",
        "Progress": "100%",
        "RegionId": REGION,
        "ResourceGroupId": "rg-1",
        "SnapshotId": "s-" + "ab" * 10,
        "FlashSnapshotId": "",
        "ContainerGroupId": "",
        "ExpireDateTime": "2023-06-16T02:43Z",
        "LastMatchedTime": "2023-06-16T02:43Z",
    }


def test_every_call_takes_every_parameter_that_the_sdk_has(sdk: Sdk, region: Region) -> None:
    tags = [{"Key": "a", "Value": "b"}]
    account = {
        "OwnerAccount": "o",
        "OwnerId": 1,
        "ResourceOwnerAccount": "r",
        "ResourceOwnerId": 2,
        "RegionId": REGION,
    }
    named = {
        "Bucket": "b",
        "Path": "/p",
        "Name": "n",
        "ResourceGroupId": "rg",
        "RetentionDays": 3,
        "Tag": tags,
        "ClientToken": "t",
    }
    network = {"SecurityGroupId": "sg", "VSwitchId": "vsw", "EipInstanceId": "eip", "EipCreateParam": EIP}
    every = {
        **account,
        **named,
        **network,
        "Size": 40,
        "DataSource": HUB_SOURCE,
        "DestinationRegionId": "cn-there",
        "Limit": 20,
        "NextToken": "",
    }

    def call(action: str, **more: Any) -> dict[str, Any]:
        given = every | more
        return sdk(action, **{name: given[name] for name in sdk.parameters(action)})

    made = call("CreateDataCache")["DataCacheId"]
    region.be(made, DataCacheState(Phase.AVAILABLE, 100, 1, CONTENT, in_image_store=True))
    assert [item["DataCacheId"] for item in call("DescribeDataCaches", DataCacheId=[made])["DataCaches"]] == [
        made
    ]
    assert call("CopyDataCache", DataCacheId=made)["DataCacheId"] in region.there.said
    assert call("UpdateDataCache", DataCacheId=made, Name="new")["RequestId"]
    assert region.caches.find((made,))[0].title == "new"
    assert call("DeleteDataCache", DataCacheId=made)["RequestId"]
    assert not region.caches.find((made,))


def test_progress_is_polled_until_it_is_available(sdk: Sdk, region: Region) -> None:
    made = create(sdk)
    seen = []
    for state in (
        DataCacheState(),
        DataCacheState(Phase.LOADING, 40, 1),
        DataCacheState(Phase.CREATING, 90, 1),
        DataCacheState(Phase.AVAILABLE, 100, 1, CONTENT),
    ):
        region.be(made, state)
        (item,) = sdk("DescribeDataCaches", DataCacheId=[made])["DataCaches"]
        seen.append((item["Status"], item["Progress"], item["Size"]))
    assert seen == [
        ("Loading", "0%", 20),
        ("Loading", "40%", 20),
        ("Creating", "90%", 20),
        ("Available", "100%", 30),
    ]


def test_caches_are_found_by_id_bucket_path_tag_and_resource_group(sdk: Sdk) -> None:
    one = create(sdk, Tag=[{"Key": "team", "Value": "a"}], ResourceGroupId="rg")
    two = create(sdk, "/models/b", Bucket="other", Tag=[{"Key": "team", "Value": "b"}])

    def found(**by: Any) -> set[str]:
        return {item["DataCacheId"] for item in sdk("DescribeDataCaches", **by).get("DataCaches") or ()}

    assert found() == {one, two}
    assert found(Bucket="other") == found(Path="/models/b", Bucket="other") == {two}
    assert found(DataCacheId=[one, two]) == {one, two}
    assert found(DataCacheId=["edc-none"]) == set()
    assert found(Tag=[{"Key": "team", "Value": "a"}]) == found(ResourceGroupId="rg") == {one}
    assert found(Tag=[{"Key": "team"}]) == {one, two}


def test_pages_hold_all_once_whatever_goes_meanwhile(sdk: Sdk) -> None:
    made = [create(sdk, f"/models/{number}") for number in range(7)]
    seen, token = list[str](), ""
    while True:
        answer = sdk("DescribeDataCaches", Limit=3, **({"NextToken": token} if token else {}))
        seen += [item["DataCacheId"] for item in answer["DataCaches"]]
        token = answer.get("NextToken") or ""
        if not token:
            break
        if len(seen) == 3:
            sdk("DeleteDataCache", DataCacheId=seen[0])
    assert sorted(seen) == sorted(made)
    assert len(set(seen)) == 7


def test_an_update_changes_what_is_given_and_leaves_the_rest(sdk: Sdk, region: Region) -> None:
    made = create(
        sdk, Name="old", Size=30, RetentionDays=3, VSwitchId="vsw-1", Tag=[{"Key": "a", "Value": "b"}]
    )
    region.be(made, DataCacheState(Phase.AVAILABLE, 100, 1, CONTENT))
    before = region.caches.find((made,))[0]
    assert sdk("UpdateDataCache", DataCacheId=made, ClientToken="t1")["RequestId"]
    assert replace(region.caches.find((made,))[0], generation=before.generation) == replace(
        before, spec=replace(before.spec, refresh="t1")
    )
    (item,) = sdk("DescribeDataCaches", DataCacheId=[made])["DataCaches"]
    assert (item["Status"], item["Progress"]) == ("Updating", "0%"), (
        "what was Available is what there was before"
    )
    assert refusal(sdk, "UpdateDataCache", DataCacheId=made, ClientToken="t3").code == "IncorrectStatus"
    assert (
        refusal(sdk, "CopyDataCache", DataCacheId=made, DestinationRegionId="cn-there").code
        == "IncorrectStatus"
    )
    region.be(made, DataCacheState(Phase.AVAILABLE, 100, 2, CONTENT))
    sdk(
        "UpdateDataCache",
        DataCacheId=made,
        Path="/models/a/",
        Bucket="default",
        Name="new",
        Size=50,
        RetentionDays=9,
        DataSource=NAS_SOURCE,
        SecurityGroupId="sg-2",
        VSwitchId="vsw-2",
        ResourceGroupId="rg-2",
        ClientToken="t2",
        Tag=[{"Key": "c", "Value": "d"}],
        EipInstanceId="eip-2",
        EipCreateParam=EIP | {"Bandwidth": 10},
    )
    after = region.caches.find((made,))[0]
    assert (after.title, after.tags, after.resource_group) == (
        "new",
        {"c": "d"},
        "rg-2",
    )
    assert after.spec.networks == ("vsw-2", "sg-2")
    assert (after.spec.type, after.spec.size_gib, after.spec.retention_days) == (
        "NAS",
        50,
        9,
    )
    assert after.spec.options == NAS_SOURCE["Options"]
    generation = after.generation
    sdk("UpdateDataCache", DataCacheId=made, ClientToken="t2")
    assert region.caches.find((made,))[0].generation == generation


def test_a_cache_at_work_is_not_updated(sdk: Sdk, region: Region) -> None:
    made = create(sdk)
    region.be(made, DataCacheState(Phase.CREATING, 50, 1))
    found = refusal(sdk, "UpdateDataCache", DataCacheId=made, Size=50)
    assert (found.status, found.code) == (403, "IncorrectStatus")
    assert "Creating" in found.message


def test_a_cache_is_deleted_by_id_or_by_bucket_and_path(sdk: Sdk) -> None:
    one, two = create(sdk), create(sdk, "/b", Bucket="x")
    assert sdk("DeleteDataCache", DataCacheId=one, ClientToken="t")["RequestId"]
    assert sdk("DeleteDataCache", Bucket="x", Path="/b/")["RequestId"]
    assert not sdk("DescribeDataCaches", DataCacheId=[one, two]).get("DataCaches")
    assert (
        refusal(sdk, "DeleteDataCache", DataCacheId=one).code
        == refusal(sdk, "DeleteDataCache", Path="/b").code
        == "InvalidParameter.NotFound"
    )
    assert refusal(sdk, "DeleteDataCache").code == "MissingParameter"


def test_a_client_token_makes_one_cache_of_many_calls(sdk: Sdk) -> None:
    first = create(sdk, ClientToken="once", Name="n")
    assert create(sdk, ClientToken="once", Name="n") == first
    other = {"Type": "URL", "Options": {**HUB, "repoId": "org/other"}}
    for changed in (
        {"Path": "/other"},
        {"DataSource": other},
        {"Name": "m"},
        {"Tag": [{"Key": "a", "Value": "b"}]},
        {"Size": 30},
    ):
        asked = {"Path": "/models/a", "DataSource": HUB_SOURCE, "ClientToken": "once", "Name": "n", **changed}
        assert refusal(sdk, "CreateDataCache", **asked).code == "IdempotentParameterMismatch"
    assert (
        refusal(sdk, "CreateDataCache", Path="/models/a", DataSource=HUB_SOURCE, ClientToken="twice").code
        == "InvalidParameter.Duplicate"
    )


def test_calls_of_one_token_at_once_make_one_cache_and_all_are_answered(sdk: Sdk) -> None:
    with ThreadPoolExecutor(4) as threads:
        assert len(set(threads.map(lambda _: create(sdk, ClientToken="at-once"), range(8)))) == 1


def test_a_call_of_the_same_token_brings_the_credential_that_the_first_did_not_come_to(
    sdk: Sdk, region: Region
) -> None:
    made = create(sdk, ClientToken="cut")
    shutil.rmtree(region.folder / "data-cache-secrets")
    (region.folder / "data-cache-secrets").mkdir()
    assert create(sdk, ClientToken="cut") == made
    assert region.caches.read_credential(region.caches.find((made,))[0]) == {"accessToken": "hf_x"}


def test_a_deletion_that_is_sent_again_with_its_token_is_done(sdk: Sdk) -> None:
    made = create(sdk)
    for _ in range(2):
        assert sdk("DeleteDataCache", DataCacheId=made, ClientToken="gone")["RequestId"]
    assert (
        refusal(sdk, "DeleteDataCache", DataCacheId=made, ClientToken="other").code
        == "InvalidParameter.NotFound"
    )
    assert (
        refusal(sdk, "DeleteDataCache", DataCacheId="edc-other", ClientToken="gone").code
        == "IdempotentParameterMismatch"
    )


def test_a_deletion_that_is_sent_again_with_its_token_leaves_what_came_after_it(sdk: Sdk) -> None:
    create(sdk)
    assert sdk("DeleteDataCache", Path="/models/a", ClientToken="gone")["RequestId"]
    second = create(sdk)
    assert sdk("DeleteDataCache", Path="/models/a", ClientToken="gone")["RequestId"]
    assert [item["DataCacheId"] for item in sdk("DescribeDataCaches")["DataCaches"]] == [second]


def test_an_id_without_a_number_is_one_too() -> None:
    assert ApiParameters({"DataCacheId": "edc-1"}).ids == ("edc-1",)
    assert ApiParameters({"DataCacheId.1": "a", "DataCacheId": "b"}).ids == ("a", "b")


def test_an_id_as_the_documentation_masks_it_is_not_found(sdk: Sdk) -> None:
    create(sdk)
    masked = "edc-bp1a7n7uawwwol******"
    assert not sdk("DescribeDataCaches", DataCacheId=[masked]).get("DataCaches")
    assert (
        refusal(sdk, "DeleteDataCache", DataCacheId=masked).code
        == refusal(sdk, "UpdateDataCache", DataCacheId=masked).code
    )
    assert refusal(sdk, "DeleteDataCache", DataCacheId=masked).code == "InvalidParameter.NotFound"


def test_a_credential_that_somebody_wrote_among_the_options_is_told_to_nobody(
    sdk: Sdk, region: Region
) -> None:
    spec = parse_data_cache("", "/by-hand", "URL", {**HUB, "accessToken": "hf_by_hand"})
    made = region.caches.add(DataCache("", "", 0, 0.0, spec), {})
    assert "hf_by_hand" not in json.dumps(sdk("DescribeDataCaches", DataCacheId=[made.id]))


def test_a_copy_is_announced_with_every_parameter_where_it_goes(sdk: Sdk, region: Region) -> None:
    made = create(sdk)
    asked = {
        "DestinationRegionId": "cn-there",
        "Bucket": "b",
        "Path": "/p",
        "Name": "n",
        "RetentionDays": 3,
        "Tag": [{"Key": "a", "Value": "b"}],
    }
    region.be(made, DataCacheState(Phase.AVAILABLE, 100, 1, CONTENT))
    assert refusal(sdk, "CopyDataCache", DataCacheId=made, **asked).code == "IncorrectStatus", (
        "no image store has it"
    )
    region.be(made, DataCacheState(Phase.AVAILABLE, 100, 1, CONTENT, in_image_store=True))
    copied = sdk("CopyDataCache", DataCacheId=made, ClientToken="t", ResourceGroupId="rg", **asked)[
        "DataCacheId"
    ]
    assert (
        sdk("CopyDataCache", DataCacheId=made, ClientToken="t", ResourceGroupId="rg", **asked)["DataCacheId"]
        == copied
    )
    (said,) = region.there.list_announcements()
    assert (said.id, said.bucket, said.path, said.title, said.retention_days, said.tags) == (
        copied,
        "b",
        "/p",
        "n",
        3,
        {"a": "b"},
    )
    assert said.resource_group == "rg"
    assert (said.digest, said.store, said.region) == (CONTENT.digest, "s3://here", REGION)


def test_a_copy_to_a_region_that_is_not_there_is_refused(sdk: Sdk, region: Region) -> None:
    made = create(sdk)
    asked = {
        "DataCacheId": made,
        "DestinationRegionId": "cn-other",
        "Bucket": "b",
        "Path": "/p",
        "Name": "n",
        "RetentionDays": 3,
        "ClientToken": "t",
    }
    assert refusal(sdk, "CopyDataCache", **asked).code == "IncorrectStatus"
    region.be(made, DataCacheState(Phase.AVAILABLE, 100, 1, CONTENT))
    found = refusal(sdk, "CopyDataCache", **asked, ResourceGroupId="rg", Tag=[{"Key": "a", "Value": "b"}])
    assert (found.status, found.code) == (400, "InvalidParameter")
    assert "cn-other" in found.message
    assert (
        refusal(sdk, "CopyDataCache", DataCacheId="edc-none", DestinationRegionId="x").code
        == "InvalidParameter.NotFound"
    )


@pytest.mark.parametrize(
    ("parameters", "code", "words"),
    [
        ({"Path": None}, "MissingParameter", "Path"),
        ({"DataSource": {"Options": HUB}}, "MissingParameter", "DataSource.Type"),
        ({"Path": "models"}, "InvalidParameter", "absolute path"),
        ({"Bucket": "eci-system"}, "InvalidParameter", "reserved"),
        ({"Size": 0}, "InvalidParameter", "Size"),
        ({"Size": 32769}, "InvalidParameter", "Size"),
        ({"RetentionDays": 0}, "InvalidParameter", "RetentionDays"),
        ({"ClientToken": "x" * 65}, "InvalidParameter", "ClientToken"),
        ({"DataSource": {"Type": "DISK", "Options": {}}}, "InvalidParameter", "dataSource.type"),
        ({"DataSource": {"Type": "URL", "Options": {**HUB, "repoID2": "x"}}}, "InvalidParameter", "repoID2"),
        (
            {"DataSource": {"Type": "NAS", "Options": {"server": "other", "path": "/"}}},
            "Forbidden",
            "--allow-inline-nas",
        ),
        ({"Tag": [{"Key": f"k{n}", "Value": "v"} for n in range(21)]}, "InvalidParameter", "Tag"),
        ({"EipCreateParam": {"Bandwidth": 0}}, "InvalidParameter", "Bandwidth"),
    ],
)
def test_what_cannot_be_is_refused_in_ecis_codes(
    sdk: Sdk, parameters: dict[str, Any], code: str, words: str
) -> None:
    asked = {
        key: value
        for key, value in {"Path": "/a", "DataSource": HUB_SOURCE, **parameters}.items()
        if value is not None
    }
    found = refusal(sdk, "CreateDataCache", **asked)
    assert found.code == code
    assert words in found.message
    assert len(found.request_id) == 36
    assert "hf_x" not in found.message


def test_a_page_token_that_nobody_gave_out_is_refused(sdk: Sdk) -> None:
    assert (
        refusal(sdk, "DescribeDataCaches", NextToken="abc").code
        == refusal(sdk, "DescribeDataCaches", Limit=101).code
        == "InvalidParameter"
    )


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_wrong_keys_are_refused(kind: Any, region: Region) -> None:
    assert (
        refusal(kind(region.port, "LTAIexample", "other"), "DescribeDataCaches").code
        == "SignatureDoesNotMatch"
    )
    found = refusal(kind(region.port, "nobody", "other"), "DescribeDataCaches")
    assert (found.status, found.code) == (404, "InvalidAccessKeyId.NotFound")


def set_in(kind: Any, monkeypatch: pytest.MonkeyPatch, what: str, value: str) -> None:
    """Have an SDK take `value` for its "time" or "nonce"."""
    if kind.name == "aliyun-python-sdk-eci":
        monkeypatch.setattr(
            parameter_helper, {"time": "get_iso_8061_date", "nonce": "get_uuid"}[what], lambda: value
        )
    else:
        monkeypatch.setattr(
            Utils, {"time": "get_timestamp", "nonce": "get_nonce"}[what], staticmethod(lambda: value)
        )


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("minutes", [-20, 20])
def test_what_was_signed_long_ago_or_by_a_clock_that_is_ahead_is_refused(
    kind: Any, minutes: int, region: Region, monkeypatch: pytest.MonkeyPatch
) -> None:
    sdk = kind(region.port, *next(iter(KEYS.items())))
    set_in(
        kind,
        monkeypatch,
        "time",
        time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 60 * minutes)),
    )
    assert refusal(sdk, "DescribeDataCaches").code == "InvalidTimeStamp.Expired"
    set_in(kind, monkeypatch, "time", "yesterday")
    assert refusal(sdk, "DescribeDataCaches").code == "InvalidTimeStamp.Format"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_request_counts_once(kind: Any, region: Region, monkeypatch: pytest.MonkeyPatch) -> None:
    set_in(kind, monkeypatch, "nonce", "the-same")
    assert (
        refusal(kind(region.port, next(iter(KEYS)), "wrong"), "DescribeDataCaches").code
        == "SignatureDoesNotMatch"
    )
    sdk = kind(region.port, *next(iter(KEYS.items())))
    assert sdk("DescribeDataCaches")["TotalCount"] == 0
    assert refusal(sdk, "DescribeDataCaches").code == "SignatureNonceUsed"
