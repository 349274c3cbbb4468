"""The published ESSD formulae: their tables row by row, at both sides of every corner."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi.performance import essd
from csi.performance.limits import IO_SIZE, Rate

MIB = 2**20
sizes = st.integers(1, 65536)

LEVELS = [
    # level, GiB, IOPS, MB/s
    ("PL0", 1, 1812, 100.25),
    ("PL0", 20, 2040, 105),
    ("PL0", 40, 2280, 110),
    ("PL0", 319, 5628, 179.75),
    ("PL0", 320, 5640, 180),
    ("PL0", 683, 9996, 180),
    ("PL0", 684, 10_000, 180),
    ("PL0", 65536, 10_000, 180),
    ("PL1", 1, 1850, 120.5),
    ("PL1", 20, 2800, 130),
    ("PL1", 40, 3800, 140),
    ("PL1", 100, 6800, 170),
    ("PL1", 459, 24_750, 349.5),
    ("PL1", 460, 24_800, 350),
    ("PL1", 963, 49_950, 350),
    ("PL1", 964, 50_000, 350),
    ("PL1", 65536, 50_000, 350),
    ("PL2", 461, 24_850, 350.5),
    ("PL2", 1259, 64_750, 749.5),
    ("PL2", 1260, 64_800, 750),
    ("PL2", 1963, 99_950, 750),
    ("PL2", 1964, 100_000, 750),
    ("PL2", 65536, 100_000, 750),
    ("PL3", 1261, 64_850, 750.5),
    ("PL3", 7759, 389_750, 3999.5),
    ("PL3", 7760, 389_800, 4000),
    ("PL3", 19963, 999_950, 4000),
    ("PL3", 19964, 1_000_000, 4000),
    ("PL3", 65536, 1_000_000, 4000),
]
AUTOPL = [
    # GiB, baseline IOPS, baseline MB/s, most provisioned IOPS, burst cap IOPS, its MB/s with nothing
    # provisioned
    (1, 3000, 125, 0, None, None),
    (3, 3000, 125, 0, None, None),
    (4, 3000, 125, 1000, 4000, 125),
    (8, 3000, 125, 5000, 8000, 125),
    (10, 3000, 125, 7000, 10_000, 156.25),
    (11, 3000, 125.5, 8000, 11_000, 171.875),
    (20, 3000, 130, 17_000, 20_000, 312.5),
    (24, 3000, 132, 21_000, 24_000, 375),
    (25, 3050, 132.5, 21_950, 25_000, 390.625),
    (38, 3700, 139, 34_300, 38_000, 593.75),
    (39, 3750, 139.5, 35_250, 39_000, 609.375),
    (40, 3800, 140, 36_200, 40_000, 625),
    (54, 4500, 147, 49_500, 54_000, 843.75),
    (55, 4550, 147.5, 50_000, 55_000, 859.375),
    (262, 14_900, 251, 50_000, 262_000, 4093.75),
    (263, 14_950, 251.5, 50_000, 263_000, 4096),
    (460, 24_800, 350, 50_000, 460_000, 4096),
    (964, 50_000, 350, 50_000, 964_000, 4096),
    (999, 50_000, 350, 50_000, 999_000, 4096),
    (1000, 50_000, 350, 50_000, 1_000_000, 4096),
    (65536, 50_000, 350, 50_000, 1_000_000, 4096),
]


@pytest.mark.parametrize(("level", "gib", "iops", "megabytes"), LEVELS)
def test_a_level_does_what_its_row_says(level: str, gib: int, iops: int, megabytes: float) -> None:
    assert essd.level_rate(level, gib) == Rate(iops, int(megabytes * MIB))


def test_larger_levels_begin_where_the_smaller_one_ends() -> None:
    assert {level: essd.min_gib(level) for level in essd.LEVELS} == {
        "PL0": 1,
        "PL1": 1,
        "PL2": 461,
        "PL3": 1261,
    }
    for smaller, larger in (("PL1", "PL2"), ("PL2", "PL3")):
        last = essd.min_gib(larger) - 1
        assert (
            essd.level_rate(smaller, last).bytes_per_second
            == essd.level_rate(smaller, last + 1).bytes_per_second
        )


@pytest.mark.parametrize(("gib", "iops", "megabytes", "most", "cap", "cap_megabytes"), AUTOPL)
def test_autopl_does_what_its_table_says(
    gib: int, iops: int, megabytes: float, most: int, cap: int | None, cap_megabytes: float | None
) -> None:
    assert (
        essd.guaranteed_rate(gib, 0) == essd.rate_without_bursting(gib, 0) == Rate(iops, int(megabytes * MIB))
    )
    assert essd.max_provisioned_iops(gib) == most
    if cap is not None and cap_megabytes is not None:
        assert essd.max_burst_rate(gib, 0) == Rate(cap, int(cap_megabytes * MIB))


def test_the_articles_35000_need_39_gib() -> None:
    assert [gib for gib in range(1, 100) if essd.max_provisioned_iops(gib) >= 35_000][0] == 39


def test_each_provisioned_iops_brings_16_kb() -> None:
    assert essd.guaranteed_rate(20, 17_000) == Rate(20_000, 130 * MIB + 17_000 * 16 * 1024)
    assert essd.guaranteed_rate(1000, 50_000) == Rate(100_000, int((350 + 781.25) * MIB))


def test_without_bursting_a_disk_ends_at_100000_iops_and_1131_mb() -> None:
    assert essd.rate_without_bursting(65536, 50_000) == Rate(100_000, 1131 * MIB)
    assert essd.rate_without_bursting(1000, 49_983) == Rate(99_983, 350 * MIB + 49_983 * IO_SIZE)


def test_a_burst_is_never_below_what_was_provisioned() -> None:
    """At 20 GiB the cap by IOPS is 312.5 MB/s, less than 130 MB/s and what 17,000 provisioned IOPS bring."""
    assert essd.max_burst_rate(20, 17_000) == Rate(20_000, essd.guaranteed_rate(20, 17_000).bytes_per_second)


@given(sizes, st.integers(0, 50_000))
def test_more_storage_and_more_provisioned_iops_never_bring_less(gib: int, asked: int) -> None:
    for level in essd.LEVELS:
        assert at_most(essd.level_rate(level, gib), essd.level_rate(level, gib + 1))
    provisioned = min(asked, essd.max_provisioned_iops(gib))
    for formula in (essd.guaranteed_rate, essd.rate_without_bursting, essd.max_burst_rate):
        assert at_most(formula(gib, provisioned), formula(gib + 1, provisioned))
        assert at_most(formula(gib, 0), formula(gib, provisioned))
    assert essd.max_provisioned_iops(gib) <= essd.max_provisioned_iops(gib + 1)


@given(sizes.filter(lambda gib: gib >= essd.MIN_AUTOPL_GIB), st.integers(0, 50_000))
def test_what_is_guaranteed_stays_below_the_burst_and_1000_iops_a_gib(gib: int, asked: int) -> None:
    provisioned = min(asked, essd.max_provisioned_iops(gib))
    assert at_most(essd.rate_without_bursting(gib, provisioned), essd.guaranteed_rate(gib, provisioned))
    assert at_most(essd.guaranteed_rate(gib, provisioned), essd.max_burst_rate(gib, provisioned))
    assert (essd.max_burst_rate(gib, provisioned).iops or 0) <= 1000 * gib


def at_most(less: Rate, more: Rate) -> bool:
    return (less.iops or 0) <= (more.iops or 0) and (less.bytes_per_second or 0) <= (
        more.bytes_per_second or 0
    )
