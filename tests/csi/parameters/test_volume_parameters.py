"""Parameters of every dialect: what they mean, and what is refused in which words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi.errors import InvalidParameter
from csi.parameters import volume_parameters
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.hub import HubSpec, is_commit
from csi.parameters.dialects.nas import NasSpec
from csi.parameters.performance_keys import Performance
from csi.parameters.volume_parameters import (
    VolumeParameters,
    canonicalize_parameters,
    check_mutable,
    names_a_source,
    parse_accepted_parameters,
    parse_mutable,
    parse_volume_parameters,
)
from csi.performance.capacity import GIB
from csi.values import join_list, split_list
from tests.csi.parameters.specs import cache_specs, patterns
from tests.csi.performance.performances import performances

HUB = {"repoSource": "HuggingFace/Model", "repoId": "org/name"}
NAS = {"server": "nas.example.com", "path": "/share"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SECRET = "hf_verySecret123"


def refusal(values: dict[str, str], flags: tuple[str, ...] = ()) -> str:
    with pytest.raises(InvalidParameter) as error:
        parse_volume_parameters(values, flags)
    return str(error.value)


def nas(values: dict[str, str], flags: tuple[str, ...] = ()) -> NasSpec:
    source = parse_volume_parameters(values, flags).spec.source
    assert isinstance(source, NasSpec)
    return source


def hub(values: dict[str, str]) -> HubSpec:
    source = parse_volume_parameters(values).spec.source
    assert isinstance(source, HubSpec)
    return source


def test_a_repository_needs_no_more_than_its_id() -> None:
    assert parse_volume_parameters({"repoId": "org/name"}) == VolumeParameters(
        CacheSpec(HubSpec("HuggingFace/Model", "org/name", "main")), Performance()
    )


def test_a_dataset_with_revision_and_patterns_is_taken_as_written() -> None:
    found = hub(
        {
            "type": "URL",
            "repoSource": "huggingface/dataset",
            "repoId": "org/data",
            "revision": "v1",
            "allowPatterns": "*.json, a/*",
        }
    )
    assert found == HubSpec("HuggingFace/DataSet", "org/data", "v1", ("*.json", "a/*"))


def test_the_words_of_alibabas_nas_driver_are_understood() -> None:
    found = nas(
        {
            "server": "x.nas.aliyuncs.com",
            "path": "/a/b",
            "vers": "4.0",
            "options": "nolock,proto=tcp,noresvport,timeo=300,retrans=5",
        }
    )
    assert found == NasSpec("x.nas.aliyuncs.com", "/a/b", "4.0", timeout=30.0, retries=5)


def test_the_words_of_csi_driver_nfs_are_understood() -> None:
    found = nas(
        {"server": "nas", "share": "/export/", "subDir": "models/x", "mountOptions": "nfsvers=4.1"},
        ("port=2050", "ro"),
    )
    assert found == NasSpec("nas", "/export/models/x", "4.0", port=2050)


def test_the_two_dialects_of_one_folder_are_one_spec() -> None:
    assert (
        parse_volume_parameters({"server": "nas", "path": "/a/b", "vers": "3"})
        == parse_volume_parameters({"server": "nas:/a/b"})
        == parse_volume_parameters({"server": "nas", "share": "/a", "subDir": "b"})
    )


def test_options_closest_to_the_volume_win() -> None:
    assert nas(NAS | {"options": "vers=4.0", "mountOptions": "vers=3"}, ("vers=3",)).version == "4.0"
    assert nas(NAS | {"options": "vers=4.0", "vers": "3"}).version == "3"
    assert nas(NAS | {"mountOptions": "port=1"}, ("port=2,mountport=3",)) == NasSpec(
        "nas.example.com", "/share", port=1, mount_port=3
    )


def test_an_ipv6_server_may_stand_in_brackets() -> None:
    assert nas({"server": "[fe80::1%eth0]", "path": "/x"}).server == "fe80::1%eth0"


@pytest.mark.parametrize("change", [str.lower, str.upper, str.swapcase])
def test_keys_are_taken_in_any_case(change: object) -> None:
    for values in (HUB | {"preserveOwnership": "TRUE"}, NAS | {"subDir": "x", "uid": "7"}):
        assert parse_volume_parameters(
            {change(key): value for key, value in values.items()}
        ) == parse_volume_parameters(values)  # type: ignore[operator]


def test_one_key_in_two_spellings_is_refused() -> None:
    assert "repoId is given twice" in refusal({"repoId": "a/b", "REPOID": "c/d"})


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("repoID_", "repoId"),
        ("readbandwith", "readBandwidth"),
        ("repo_source", "repoSource"),
        ("revison", "revision"),
        ("sever", "server"),
        ("sub-dir", "subDir"),
        ("flavour", None),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(wrong: str, right: str | None) -> None:
    message = refusal(HUB | {wrong: SECRET})
    assert f"unknown parameter {wrong!r}" in message
    assert (f"did you mean {right}?" if right else "; known are repoSource, repoId") in message
    assert SECRET not in message


@pytest.mark.parametrize(
    "key", sorted(volume_parameters.SPELLING.secret_names) + ["accessToken", "HF_TOKEN", "AkSecret"]
)
def test_a_credential_is_refused_pointed_to_secrets_and_never_repeated(key: str) -> None:
    message = refusal(HUB | {key: SECRET})
    assert "Secret" in message
    assert key in message
    assert SECRET not in message


@pytest.mark.parametrize(
    "values",
    [
        {"repoId": f"https://user:{SECRET}@hub.example/org/name"},
        {"repoId": f"https://hub.example/org/name?Signature={SECRET}"},
        {"server": f"user:{SECRET}@nas", "path": "/x"},
        {"server": f"nfs://user:{SECRET}@nas/x"},
        {"server": f"user:/{SECRET}@nas"},
        NAS | {"path": f"nas:{SECRET}@x"},
        NAS | {"vers": f"{SECRET}@3"},
        NAS | {"options": f"password={SECRET}@"},
        HUB | {"type": f"u:{SECRET}@URL"},
        HUB | {"performanceLevel": f"u:{SECRET}@PL1"},
        HUB | {"provisionedIops": f"?{SECRET}"},
    ],
)
def test_what_a_url_carries_in_secret_is_not_repeated(values: dict[str, str]) -> None:
    assert SECRET not in refusal(values)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "no source is named"),
        ({"type": "URL"}, "repoId is missing"),
        ({"repoSource": "HuggingFace/Model"}, "repoId is missing"),
        ({"type": "OSS"}, "url is missing"),
        ({"type": "FTP"}, "type is 'FTP'"),
        ({"type": "NAS", "repoId": "a/b"}, "repoId belongs to another type"),
        ({"type": "URL", **NAS}, "belongs to another type"),
        (HUB | NAS, "name two sources"),
        (HUB | {"repoSource": "GitHub/Model"}, "repoSource is 'GitHub/Model'"),
        (HUB | {"type": "HuggingFace", "repoSource": "ModelScope/Model"}, "repoSource is 'ModelScope/Model'"),
        (HUB | {"bandwidthLimit": "1"}, "bandwidthLimit is '1'"),
        (HUB | {"egressProfile": "../x"}, "egressProfile is"),
        (HUB | {"repoId": "a/b/c"}, "repoId is 'a/b/c'"),
        (HUB | {"repoId": "../b"}, "repoId is"),
        (HUB | {"repoId": "a/b\nc"}, "repoId is"),
        (HUB | {"repoId": "a" * 200}, "repoId is"),
        (HUB | {"revision": "../../x"}, "revision is"),
        (HUB | {"revision": "a b"}, "revision is"),
        (HUB | {"revision": "r" * 256}, "revision is"),
        (HUB | {"preserveOwnership": "yes"}, "preserveOwnership is 'yes'"),
        (HUB | {"writerAccessModes": "allow"}, "writerAccessModes is 'allow'"),
        (HUB | {"manifestDigest": "../x"}, "manifestDigest is"),
        (HUB | {"capacityBytes": "-1"}, "capacityBytes is '-1'"),
        (HUB | {"capacityBytes": "9" * 30}, "capacityBytes is"),
        (HUB | {"size": "0"}, "size is '0'"),
        (HUB | {"size": "-5Gi"}, "size is '-5Gi'"),
        (HUB | {"size": "20GB"}, "size is '20GB'"),
        (HUB | {"size": "٣"}, "a bare number is in Gi"),
        (HUB | {"size": "21474836480"}, "a bare number is in Gi"),
        (HUB | {"size": "16385Gi"}, "to 17592186044416 bytes"),
        (HUB | {"size": "9" * 400}, "size is '999"),
        (HUB | {"performanceLevel": "PL1", "provisionedIops": "5"}, "provisionedIops is for AutoPL"),
        (HUB | {"readIops": "5", "pl": "PL1"}, "readIops is for volumes without a performance level"),
        (NAS | {"burstIops": "5"}, "burstIops is given without burstCredit"),
        (HUB | {"revision": "x\0y"}, "contains a NUL"),
        (HUB | {"allowPatterns": "x" * 5000}, "over 4096 characters"),
        ({"path": "/x"}, "path may belong to a NAS or an OSS bucket or an S3 bucket; give type"),
        ({"type": "NAS", "path": "/x"}, "server is missing"),
        ({"server": "nas"}, "path is missing"),
        (NAS | {"share": "/y"}, "path and share"),
        (NAS | {"path": "share"}, "absolute path"),
        (NAS | {"subDir": "../../etc"}, "absolute path"),
        (NAS | {"path": "/a/./b"}, "absolute path"),
        (NAS | {"server": "nas/evil"}, "server is"),
        (NAS | {"server": "-oProxyCommand=x"}, "server is"),
        (NAS | {"server": "nas evil"}, "server is"),
        (NAS | {"vers": "5"}, "vers is '5'"),
        (NAS | {"uid": "-1"}, "uid is '-1'"),
        (NAS | {"gid": str(2**32 - 1)}, "gid is"),
        (NAS | {"options": "krb5"}, "options has the NFS option 'krb5'"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_by_the_name_of_its_key(
    values: dict[str, str], words: str
) -> None:
    assert words in refusal(values)


def test_mount_flags_mean_nfs_options_for_a_nas_and_nothing_for_a_hub() -> None:
    assert nas(NAS, ("nolock", "timeo=10,retrans=1")).timeout == 1.0
    assert "mountOptions has the NFS option 'xyz'" in refusal(NAS, ("xyz",))
    parse_volume_parameters(HUB, ("ro", "noatime"))
    assert "means nothing for a hub repository" in refusal(HUB, ("vers=3",))


def test_keys_that_kubernetes_adds_are_passed_over() -> None:
    added = {
        "csi.storage.k8s.io/pvc/name": "x",
        "csi.storage.k8s.io/ephemeral": "false",
        "storage.kubernetes.io/csiProvisionerIdentity": "y",
    }
    assert parse_volume_parameters(HUB | added) == parse_volume_parameters(HUB)
    assert canonicalize_parameters(added) == {}


def test_mutable_parameters_change_what_they_name_and_keep_the_rest() -> None:
    base = Performance("AutoPL", 500, True)
    assert parse_mutable({}, base) == base
    assert parse_mutable({"PROVISIONEDIOPS": "2000"}, base) == Performance("AutoPL", 2000, True)
    assert parse_mutable({"bursting": "False", "performanceLevel": "autopl"}, base) == Performance(
        "AutoPL", 500, False
    )
    with pytest.raises(InvalidParameter, match="repoId cannot be changed"):
        parse_mutable({"repoId": "a/b"}, base)
    with pytest.raises(InvalidParameter, match="did you mean provisionedIops"):
        parse_mutable({"provisionedIop": "1"}, base)


SPELLINGS = [
    ("performanceLevel", "PL1", ("pl", "PL", "performancelevel", "k8s.aliyun.com/eci-data-cache-pl")),
    ("provisionedIops", "2000", ("provisionedIOPS", "k8s.aliyun.com/eci-data-cache-provisionedIops")),
    ("burstingEnabled", "true", ("bursting", "Bursting", "k8s.aliyun.com/eci-data-cache-burstingEnabled")),
]


@pytest.mark.parametrize(("key", "text", "others"), SPELLINGS)
def test_a_performance_key_has_the_spellings_of_eci_too_and_is_given_in_one_of_them(
    key: str, text: str, others: tuple[str, ...]
) -> None:
    for other in others:
        assert parse_volume_parameters(HUB | {other: text}) == parse_volume_parameters(HUB | {key: text})
        assert parse_mutable({other: text}, Performance()) == parse_mutable({key: text}, Performance())
        assert f"{key} is given twice" in refusal(HUB | {key: text, other: text})
    assert list(parse_volume_parameters(HUB | {others[-1]: text}).performance.to_context()) == [key]


@pytest.mark.parametrize(
    ("text", "gib"),
    [("20", 20), ("20Gi", 20), ("500Mi", 1), ("21G", 20), ("1.5", 2), ("16384", 16384), ("16Ti", 16384)],
)
def test_a_size_is_a_quantity_or_a_number_of_gib_in_whole_gib(text: str, gib: int) -> None:
    assert parse_volume_parameters(HUB | {"size": text}).size_bytes == gib * GIB
    assert parse_volume_parameters(HUB | {"size": text}).to_context()["size"] == f"{gib}Gi"


def test_no_size_is_said_by_leaving_it_out_or_empty() -> None:
    assert (
        parse_volume_parameters(HUB | {"size": ""}).size_bytes
        is parse_volume_parameters(HUB).size_bytes
        is None
    )


def test_mutable_parameters_have_to_fit_a_volume_not_each_other() -> None:
    check_mutable({"burstCredit": "5"})
    check_mutable({"performanceLevel": "PL1", "readIops": ""})
    for wrong in ({"size": "5"}, {"repoId": "a/b"}, {"readIops": "many"}, {"readiop": "5"}):
        with pytest.raises(InvalidParameter):
            check_mutable(wrong)


def test_mutable_parameters_that_contradict_what_the_volume_has_are_refused_and_may_remove_it() -> None:
    base = Performance("PL1")
    with pytest.raises(
        InvalidParameter,
        match="provisionedIops is for AutoPL, performanceLevel is PL1.*an empty value removes",
    ):
        parse_mutable({"provisionedIops": "5"}, base)
    assert parse_mutable({"provisionedIops": "5", "pl": ""}, base) == Performance(provisioned_iops=5)
    assert parse_mutable({"performanceLevel": ""}, base) == Performance()


def test_what_was_kept_by_0_1_0_is_read_though_its_keys_disagree() -> None:
    kept = HUB | {"performanceLevel": "PL1", "provisionedIops": "5"}
    assert parse_accepted_parameters(kept).performance == Performance("PL1", 5)
    assert "provisionedIops is for AutoPL" in refusal(kept)


def test_a_clone_names_no_source_and_others_do() -> None:
    assert not names_a_source(
        {"writerAccessModes": "downgrade", "provisionedIops": "1", "csi.storage.k8s.io/pvc/name": "x"}
    )
    assert names_a_source({"REPOID": "a/b"})
    assert names_a_source({"Server": "x"})
    assert names_a_source({"type": "NAS"})


def test_only_a_full_commit_stands_still() -> None:
    assert is_commit(COMMIT)
    assert not is_commit(COMMIT[:12])
    assert not is_commit(COMMIT.upper())
    assert not parse_volume_parameters(HUB | {"revision": COMMIT}).spec.is_moving
    assert parse_volume_parameters(HUB).spec.is_moving
    assert parse_volume_parameters(NAS).spec.is_moving
    assert parse_volume_parameters(NAS).spec.is_unpinnable
    assert not parse_volume_parameters(HUB).spec.is_unpinnable


volumes = st.builds(
    VolumeParameters,
    cache_specs,
    performances,
    st.booleans(),
    st.none() | st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
    st.none() | st.integers(0, 2**62),
    st.none() | st.integers(1, 2**14).map(lambda gib: gib * GIB),
)


@given(volumes)
def test_a_volume_context_parses_to_what_it_was_written_from(volume: VolumeParameters) -> None:
    context = volume.to_context()
    assert parse_volume_parameters(context) == volume
    assert parse_volume_parameters({key.upper(): value for key, value in context.items()}) == volume
    assert parse_volume_parameters(context).to_context() == context


@pytest.mark.parametrize(
    ("values", "flags"),
    [
        (NAS | {"options": f"password={SECRET}"}, ()),
        (NAS, (f"password={SECRET}",)),
        (HUB, (f"password={SECRET}",)),
    ],
)
def test_an_unknown_option_is_named_without_its_value(values: dict[str, str], flags: tuple[str, ...]) -> None:
    message = refusal(values, flags)
    assert "'password'" in message
    assert SECRET not in message


@given(patterns)
def test_lists_survive_commas_within_items(items: tuple[str, ...]) -> None:
    assert split_list(join_list(items)) == items


@given(st.text(max_size=60))
def test_a_list_that_was_read_is_written_no_longer_and_reads_the_same(text: str) -> None:
    items = split_list(text)
    assert split_list(join_list(items)) == items
    assert len(join_list(items)) <= len(text)


@given(
    st.dictionaries(
        st.sampled_from(sorted(volume_parameters.KEYS)) | st.text(max_size=12),
        st.text(max_size=40),
        max_size=6,
    )
)
def test_any_input_parses_or_is_refused_in_words(values: dict[str, str]) -> None:
    try:
        parsed = parse_volume_parameters(values)
    except InvalidParameter as error:
        assert len(str(error)) < 1000
    else:
        assert parse_volume_parameters(parsed.to_context()) == parsed


@given(volumes, volumes)
def test_two_specs_are_one_exactly_when_their_canonical_texts_are(
    one: VolumeParameters, other: VolumeParameters
) -> None:
    assert (one.spec == other.spec) == (one.spec.canonical_text() == other.spec.canonical_text())
