"""Performance keys: how they are written, which agree, and the limits they mean for a size."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from csi.errors import InvalidParameter
from csi.parameters.performance_keys import KEYS, LEVELS, Performance, compute_limits
from csi.performance import essd
from csi.performance.capacity import GIB
from csi.performance.limits import IO_SIZE, Limits, Rate
from tests.csi.performance.performances import performances

MIB = 2**20
ASKED = {
    "performanceLevel": ("PL1", "pl2"),
    "provisionedIops": ("2000", "1000000"),
    "burstingEnabled": ("True", "false"),
    "readIops": ("1", "1000000000"),
    "readBandwidth": ("500Mi", "16Ki"),
    "burstIops": ("3000", "1000000000"),
    "burstCredit": ("1", "1000000000000"),
}


def asked(**keys: str) -> Performance:
    return Performance().with_changes(keys)


def given_limits(gib: int, clamp: bool = False, **keys: str) -> Limits:
    found = compute_limits(asked(**keys), gib * GIB, clamp)
    assert found is not None
    return found


def refusal(gib: int, **keys: str) -> str:
    with pytest.raises(InvalidParameter) as error:
        compute_limits(asked(**keys), gib * GIB)
    return str(error.value)


def test_every_key_is_kept_in_the_context_and_read_again() -> None:
    assert set(ASKED) == set(KEYS)
    for number in (0, 1):
        performance = asked(**{key: texts[number] for key, texts in ASKED.items()})
        assert None not in vars(performance).values()
        assert Performance().with_changes(performance.to_context()) == performance
        assert list(performance.to_context()) == list(KEYS)


@pytest.mark.parametrize("key", KEYS)
def test_an_empty_value_removes_a_key_and_leaves_the_others(key: str) -> None:
    full = asked(**{name: texts[0] for name, texts in ASKED.items()})
    assert full.with_changes({key: ""}).to_context() == {
        name: text for name, text in full.to_context().items() if name != key
    }
    assert Performance().with_changes({key: ""}) == Performance()
    assert full.with_changes(dict.fromkeys(KEYS, "")) == Performance()


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("readIops", "0", "1 to 1000000000"),
        ("readIops", "1000000001", "1 to 1000000000"),
        ("readIops", "5k", "whole number"),
        ("readBandwidth", "500", "16384 to"),
        ("readBandwidth", "16383", "500Mi"),
        ("readBandwidth", "500MB", "500Mi"),
        ("readBandwidth", "-1", "500Mi"),
        ("readBandwidth", "٣", "500Mi"),
        ("readBandwidth", "9" * 400, "500Mi"),
        ("readBandwidth", "9000000Ti", "to 1125899906842624 bytes"),
        ("burstIops", "many", "whole number"),
        ("burstCredit", "0", "1 to 1000000000000"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_with_its_range(key: str, text: str, words: str) -> None:
    with pytest.raises(InvalidParameter, match=f"{key} is .*{words}"):
        asked(**{key: text})


@pytest.mark.parametrize(
    ("text", "expected"),
    [("500Mi", 500 * MIB), ("500M", 500 * 10**6), ("1.5Gi", 3 * 2**29), ("20000", 20_000)],
)
def test_a_bandwidth_is_a_quantity_or_bytes(text: str, expected: int) -> None:
    assert asked(readBandwidth=text).read_bandwidth == expected


@pytest.mark.parametrize("clamp", [True, False])
@pytest.mark.parametrize("gib", [0, 1, 20, 16384])
def test_no_key_is_no_limit(gib: int, clamp: bool) -> None:
    assert compute_limits(Performance(), gib * GIB, clamp) is None


LIMITS = [
    # GiB, keys, sustained, burst, credit
    (20, {"performanceLevel": "PL1"}, (2800, 130 * MIB), None, None),
    (20, {"performanceLevel": "PL1", "burstingEnabled": "false"}, (2800, 130 * MIB), None, None),
    (20, {"performanceLevel": "PL0"}, (2040, 105 * MIB), None, None),
    (461, {"performanceLevel": "PL2"}, (24_850, 350 * MIB + MIB // 2), None, None),
    (1261, {"performanceLevel": "PL3"}, (64_850, 750 * MIB + MIB // 2), None, None),
    (20, {"performanceLevel": "AutoPL"}, (3000, 130 * MIB), None, None),
    (1, {"performanceLevel": "AutoPL"}, (3000, 125 * MIB), None, None),
    (20, {"burstingEnabled": "false"}, (3000, 130 * MIB), None, None),
    (20, {"provisionedIops": "17000"}, (20_000, 130 * MIB + 17_000 * IO_SIZE), None, None),
    (1000, {"provisionedIops": "50000"}, (100_000, 1131 * MIB), None, None),
    (20, {"burstingEnabled": "true"}, (3000, 130 * MIB), (20_000, 20_000 * IO_SIZE), None),
    (
        20,
        {"provisionedIops": "2000", "burstingEnabled": "true"},
        (5000, 130 * MIB + 2000 * IO_SIZE),
        (20_000, 20_000 * IO_SIZE),
        None,
    ),
    (
        1000,
        {"provisionedIops": "50000", "burstingEnabled": "true"},
        (100_000, 350 * MIB + 50_000 * IO_SIZE),
        (1_000_000, 4096 * MIB),
        None,
    ),
    (1, {"readIops": "500"}, (500, 500 * IO_SIZE), None, None),
    (1, {"readBandwidth": "500Mi"}, (None, 500 * MIB), None, None),
    (1, {"readIops": "500", "readBandwidth": "1Mi"}, (500, MIB), None, None),
    (
        1,
        {"readIops": "500", "burstIops": "3000", "burstCredit": "6000"},
        (500, 500 * IO_SIZE),
        (3000, 3000 * IO_SIZE),
        6000,
    ),
    (
        1,
        {"readIops": "500", "readBandwidth": "1Mi", "burstIops": "3000", "burstCredit": "6000"},
        (500, MIB),
        (3000, MIB),
        6000,
    ),
    (
        20,
        {"performanceLevel": "PL1", "burstIops": "3000", "burstCredit": "9"},
        (2800, 130 * MIB),
        (3000, 130 * MIB),
        9,
    ),
    (
        20,
        {"performanceLevel": "PL1", "burstIops": "9000", "burstCredit": "9"},
        (2800, 130 * MIB),
        (9000, 9000 * IO_SIZE),
        9,
    ),
    (
        20,
        {"provisionedIops": "2000", "burstIops": "9000", "burstCredit": "9"},
        (5000, 130 * MIB + 2000 * IO_SIZE),
        (9000, 130 * MIB + 2000 * IO_SIZE),
        9,
    ),
]


@pytest.mark.parametrize(("gib", "keys", "sustained", "burst", "credit"), LIMITS)
def test_keys_and_size_mean_limits(
    gib: int,
    keys: dict[str, str],
    sustained: tuple[int | None, int],
    burst: tuple[int, int] | None,
    credit: int | None,
) -> None:
    expected = Limits(Rate(*sustained), Rate(*burst) if burst else None, credit)
    assert given_limits(gib, **keys) == given_limits(gib, clamp=True, **keys) == expected


def test_a_size_counts_in_whole_gib_rounded_up() -> None:
    assert compute_limits(asked(performanceLevel="PL1"), 19 * GIB + 1) == given_limits(
        20, performanceLevel="PL1"
    )


CONTRADICTIONS = [
    (
        {"performanceLevel": "PL1", "provisionedIops": "5"},
        "provisionedIops is for AutoPL, performanceLevel is PL1",
    ),
    (
        {"performanceLevel": "PL0", "burstingEnabled": "true"},
        "burstingEnabled is for AutoPL, performanceLevel is PL0",
    ),
    ({"readIops": "5", "performanceLevel": "PL1"}, "readIops .* and performanceLevel is given too"),
    ({"readIops": "5", "provisionedIops": "1"}, "readIops .* and provisionedIops is given too"),
    (
        {"readBandwidth": "1Mi", "burstingEnabled": "false"},
        "readBandwidth .* and burstingEnabled is given too",
    ),
    ({"readIops": "5", "burstIops": "9"}, "burstIops is given without burstCredit"),
    ({"readIops": "5", "burstCredit": "9"}, "burstCredit is given without burstIops"),
    ({"burstIops": "9", "burstCredit": "9", "burstingEnabled": "true"}, "keep one way of bursting"),
    ({"burstIops": "9", "burstCredit": "9"}, "burstIops needs a limit to burst above"),
    (
        {"readBandwidth": "1Mi", "burstIops": "9", "burstCredit": "9"},
        "burstIops needs a limit to burst above",
    ),
    (
        {"readIops": "9", "burstIops": "9", "burstCredit": "9"},
        "burstIops is 9; it has to be more than readIops",
    ),
]


@pytest.mark.parametrize(("keys", "words"), CONTRADICTIONS)
def test_keys_that_contradict_each_other_are_refused_whatever_the_size(
    keys: dict[str, str], words: str
) -> None:
    with pytest.raises(InvalidParameter, match=words):
        asked(**keys).check()
    for clamp in (True, False):
        with pytest.raises(InvalidParameter, match=f"{words}.*an empty value removes a key"):
            compute_limits(asked(**keys), 2000 * GIB, clamp)


OUT_OF_RANGE = [
    # GiB, keys, the refusal, the keys that are left when clamped, the note
    (
        20,
        {"provisionedIops": "35000"},
        "provisionedIops is 35000; it is 1 to 17000 for 20 GiB",
        {"provisionedIops": "17000"},
        "provisionedIops 35000 lowered to 17000, the most for 20 GiB",
    ),
    (
        20,
        {"provisionedIops": "35000", "burstingEnabled": "true"},
        "1 to 17000 for 20 GiB",
        {"provisionedIops": "17000", "burstingEnabled": "true"},
        "lowered to 17000",
    ),
    (4, {"provisionedIops": "1001"}, "1 to 1000 for 4 GiB", {"provisionedIops": "1000"}, "lowered to 1000"),
    (
        2000,
        {"provisionedIops": "50001"},
        "1 to 50000 for 2000 GiB",
        {"provisionedIops": "50000"},
        "lowered to 50000",
    ),
    (
        3,
        {"provisionedIops": "1"},
        "3 GiB have none, 4 GiB or more",
        {"performanceLevel": "AutoPL"},
        "provisionedIops 1 left out: 3 GiB have none",
    ),
    (
        3,
        {"burstingEnabled": "true"},
        "3 GiB cannot burst, 4 GiB or more",
        {"burstingEnabled": "false"},
        "bursting turned off: 3 GiB cannot burst",
    ),
    (
        20,
        {"performanceLevel": "PL2"},
        "20 GiB have one of PL0, PL1, AutoPL (PL2 needs 461",
        {"performanceLevel": "PL1"},
        "PL2 lowered to PL1",
    ),
    (
        460,
        {"performanceLevel": "PL3"},
        "one of PL0, PL1, AutoPL (PL3 needs 1261",
        {"performanceLevel": "PL1"},
        "PL3 lowered to PL1",
    ),
    (
        1260,
        {"performanceLevel": "PL3"},
        "one of PL0, PL1, PL2, AutoPL",
        {"performanceLevel": "PL2"},
        "PL3 lowered to PL2, the most for 1260 GiB",
    ),
    (
        20,
        {"performanceLevel": "PL1", "burstIops": "2800", "burstCredit": "9"},
        "burstIops is 2800; it has to be more than the 2800 IOPS that PL1 has with 20 GiB",
        {"performanceLevel": "PL1"},
        "burstIops 2800 and burstCredit left out",
    ),
]


@pytest.mark.parametrize(("gib", "keys", "words", "left", "note"), OUT_OF_RANGE)
def test_what_a_size_does_not_have_is_refused_with_the_range_or_lowered_with_a_note(
    gib: int, keys: dict[str, str], words: str, left: dict[str, str], note: str
) -> None:
    assert words in refusal(gib, **keys)
    clamped = given_limits(gib, clamp=True, **keys)
    assert len(clamped.notes) == 1
    assert note in clamped.notes[0]
    assert replace(clamped, notes=()) == given_limits(gib, **left)


def test_all_that_does_not_fit_is_said_at_once() -> None:
    keys = {"provisionedIops": "5", "burstingEnabled": "true"}
    assert "provisionedIops is 5" in refusal(3, **keys)
    assert "burstingEnabled is true" in refusal(3, **keys)
    assert len(given_limits(3, clamp=True, **keys).notes) == 2


sizes = st.integers(1, 2**14).map(lambda gib: gib * GIB)


@given(performances, sizes)
def test_clamped_limits_are_never_refused_and_what_fits_is_not_changed(
    performance: Performance, size: int
) -> None:
    clamped = compute_limits(performance, size, clamp=True)
    try:
        exact = compute_limits(performance, size)
    except InvalidParameter:
        assert clamped
        assert clamped.notes
    else:
        assert exact == clamped
        assert not (exact and exact.notes)


@given(performances, sizes)
def test_a_burst_is_never_below_what_is_sustained(performance: Performance, size: int) -> None:
    found = compute_limits(performance, size, clamp=True)
    assert (found is None) == (performance == Performance())
    if found and found.burst:
        assert at_most(found.sustained, found.burst)
        assert (found.credit is None) == (performance.burst_credit is None)


@given(performances, sizes, sizes)
def test_a_larger_volume_never_reads_slower(performance: Performance, one: int, other: int) -> None:
    less, more = (compute_limits(performance, size, clamp=True) for size in sorted((one, other)))
    assume(less and more)
    assert less
    assert more
    assert at_most(less.sustained, more.sustained)
    if less.burst and more.burst:
        assert at_most(less.burst, more.burst)
    elif less.burst:
        # A credit falls away where the larger volume does as many I/Os a second without it.
        assert (less.burst.iops or 0) <= (more.sustained.iops or 0)


@given(performances)
def test_every_level_is_capped_by_its_table(performance: Performance) -> None:
    found = compute_limits(performance, 2**14 * GIB, clamp=True)
    if found and performance.effective_level in essd.LEVELS:
        assert found.sustained == essd.level_rate(performance.effective_level, 2**14)
    assert performance.effective_level in (None, *LEVELS)


def at_most(less: Rate, more: Rate) -> bool:
    return _below(less.iops, more.iops) and _below(less.bytes_per_second, more.bytes_per_second)


def _below(less: int | None, more: int | None) -> bool:
    return more is None or (less is not None and less <= more)
