"""Access modes, performance keys, numbers and how messages quote values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi.errors import InvalidParameter
from csi.parameters.access_modes import AccessMode, check_access_mode, parse_access_mode
from csi.parameters.performance_keys import LEVELS, MAX_IOPS, Performance
from csi.values import boolean_value, integer_value, redact

READERS = {AccessMode.SINGLE_NODE_READER_ONLY, AccessMode.MULTI_NODE_READER_ONLY}
WRITERS = set(AccessMode) - READERS - {AccessMode.UNKNOWN}


@pytest.mark.parametrize("mode", sorted(READERS, key=lambda mode: mode.value))
@pytest.mark.parametrize("downgrade", [True, False])
def test_a_reader_mode_is_always_taken(mode: AccessMode, downgrade: bool) -> None:
    check_access_mode(mode, downgrade)


@pytest.mark.parametrize("mode", sorted(WRITERS, key=lambda mode: mode.value))
def test_a_writer_mode_is_refused_with_the_way_out_unless_it_is_downgraded(mode: AccessMode) -> None:
    check_access_mode(mode, True)
    with pytest.raises(
        InvalidParameter, match=f"{mode.name} writes.*ReadOnlyMany.*writerAccessModes: downgrade"
    ):
        check_access_mode(mode, False)


@pytest.mark.parametrize("downgrade", [True, False])
def test_a_missing_mode_is_never_taken(downgrade: bool) -> None:
    with pytest.raises(InvalidParameter, match="missing"):
        check_access_mode(AccessMode.UNKNOWN, downgrade)


def test_a_mode_of_a_later_csi_is_refused_by_its_number() -> None:
    assert [parse_access_mode(mode.value) for mode in AccessMode] == list(AccessMode)
    with pytest.raises(InvalidParameter, match="access mode 99 is unknown"):
        parse_access_mode(99)


def test_every_level_is_known_in_any_case_and_no_other() -> None:
    for level in LEVELS:
        assert Performance().with_changes({"performanceLevel": level.upper()}).level == level
    with pytest.raises(InvalidParameter, match="PL0, PL1, PL2, PL3, AutoPL"):
        Performance().with_changes({"performanceLevel": "PL4"})


@pytest.mark.parametrize("text", ["0", "-5", "1.5", " 7", "1e3", "٣", str(MAX_IOPS + 1)])
def test_provisioned_iops_are_a_whole_number_within_bounds(text: str) -> None:
    with pytest.raises(InvalidParameter, match="provisionedIops is .*from 1 to 1000000"):
        Performance().with_changes({"provisionedIops": text})


def test_keys_that_were_not_given_stay_out_of_the_context() -> None:
    assert Performance().to_context() == {}
    assert Performance(bursting=False).to_context() == {"burstingEnabled": "false"}


@given(st.integers(0, 10**6))
def test_an_integer_is_read_within_its_range_only(number: int) -> None:
    assert integer_value("key", str(number), 0, 10**6) == number
    with pytest.raises(InvalidParameter, match="key is"):
        integer_value("key", str(number), number + 1, 10**7)


def test_a_boolean_is_true_or_false_in_any_case() -> None:
    assert boolean_value("key", "True")
    assert not boolean_value("key", "FALSE")
    for text in ("1", "yes", "", "t"):
        with pytest.raises(InvalidParameter, match="key is"):
            boolean_value("key", text)


@given(st.text(), st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="@?"), min_size=8))
def test_no_user_info_and_no_query_is_ever_shown(rest: str, secret: str) -> None:
    marked = f"SECRET{secret}SECRET"
    assert "SECRET" not in redact(f"https://user:{marked}@host/{rest.replace('?', '')}", 200)
    assert "SECRET" not in redact(f"https://host/?{marked}{rest}", 200)


def test_a_value_is_quoted_and_cut() -> None:
    assert redact("a\nb") == r"'a\nb'"
    assert len(redact("x" * 500, 60)) == 62
