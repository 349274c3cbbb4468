"""Performance keys of a volume: parsing, checks, and the limits that they result in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from csi.errors import InvalidParameter
from csi.parameters.dialects.keys import Key
from csi.performance import essd
from csi.performance.capacity import GIB, round_up_to_gib
from csi.performance.limits import IO_SIZE, MAX_BANDWIDTH, Limits, Rate
from csi.values import boolean_value, integer_value, quantity_value, redact

AUTOPL = "AutoPL"
LEVELS = (*essd.LEVELS, AUTOPL)
# The ceiling of an ESSD AutoPL disk with bursting (Alibaba Cloud, "ESSD AutoPL disks").
MAX_IOPS = 1_000_000
# Typing errors rather than limits: far above any device.
MAX_READ_IOPS = 10**9
MAX_CREDIT = 10**12
_REMOVE_HINT = "(an empty value removes a key from a volume)"


@dataclass(frozen=True)
class Performance:
    """The performance keys of a volume; None for a key that was not given and so sets no limit.

    `provisioned_iops` is in I/Os per second, on top of the level's baseline. `read_iops` (I/Os per second)
    and `read_bandwidth` (bytes per second) are plain ceilings, for volumes without a level. `burst_iops`
    (I/Os per second) is the limit while `burst_credit` (I/Os) lasts.
    """

    level: str | None = None
    provisioned_iops: int | None = None
    bursting: bool | None = None
    read_iops: int | None = None
    read_bandwidth: int | None = None
    burst_iops: int | None = None
    burst_credit: int | None = None

    def to_context(self) -> dict[str, str]:
        """Return the given keys as parameters."""
        values = {key: field.get(self) for key, field in _FIELDS.items()}
        return {key: _format_value(value) for key, value in values.items() if value is not None}

    def with_changes(self, parameters: Mapping[str, str]) -> Performance:
        """Return a copy changed by `parameters` (canonical keys); an empty value removes its key.

        Raises InvalidParameter naming the key for a bad value. `check` finds keys that contradict each other.
        """
        changed = self
        for key, field in _FIELDS.items():
            if key in parameters:
                text = parameters[key]
                changed = field.put(changed, field.parse(key, text) if text else None)
        return changed

    def check(self) -> None:
        """Raise InvalidParameter if keys contradict each other, whatever the size of the volume."""
        for wrong, message in _find_contradictions(self):
            if wrong:
                raise InvalidParameter(f"{message} {_REMOVE_HINT}")

    @property
    def effective_level(self) -> str | None:
        """The level in effect, one of LEVELS.

        It is the given one, or AutoPL if one of its keys is given, else None.
        """
        return self.level or (
            AUTOPL if self.provisioned_iops is not None or self.bursting is not None else None
        )


def compute_limits(performance: Performance, capacity_bytes: int, clamp: bool = False) -> Limits | None:
    """Compute what a volume of `capacity_bytes` may read; None if no performance key is given.

    If the ESSD formulae do not offer a value at that size, raises InvalidParameter stating the range; with
    `clamp` the value is lowered to what the size offers, and the notes of the limits say so. Contradicting
    keys always raise.
    """
    performance.check()
    if performance == Performance():
        return None
    gib = round_up_to_gib(capacity_bytes) // GIB
    misfits = _find_misfits(performance, gib)
    if misfits and not clamp:
        raise InvalidParameter("; ".join(misfit.refusal for misfit in misfits))
    for misfit in misfits:
        performance = misfit.apply_to(performance)
    computed = replace(_base_limits(performance, gib), notes=tuple(misfit.note for misfit in misfits))
    return _add_burst_credit(performance, computed, gib, clamp)


def _base_limits(performance: Performance, gib: int) -> Limits:
    level, provisioned = performance.effective_level, performance.provisioned_iops or 0
    if level is None:
        bandwidth = performance.read_bandwidth
        # The kernel counts one I/O whatever its size, up to the largest request of the device (often 1 MiB or
        # more), so a limit on IOPS alone would let far more bytes through than IO_SIZE each.
        return Limits(
            Rate(
                performance.read_iops,
                (performance.read_iops or 0) * IO_SIZE if bandwidth is None else bandwidth,
            )
        )
    if level != AUTOPL:
        return Limits(essd.level_rate(level, gib))
    if performance.bursting:
        return Limits(essd.guaranteed_rate(gib, provisioned), essd.max_burst_rate(gib, provisioned))
    return Limits(essd.rate_without_bursting(gib, provisioned))


def _add_burst_credit(performance: Performance, base: Limits, gib: int, clamp: bool) -> Limits:
    sustained, burst = base.sustained, performance.burst_iops
    if burst is None:
        return base
    if burst <= (sustained.iops or 0):
        rate_text = f"{sustained.iops} IOPS that {performance.effective_level} has with {gib} GiB at any time"
        if not clamp:
            raise InvalidParameter(f"burstIops is {burst}; it has to be more than the {rate_text}")
        return replace(
            base,
            notes=(
                *base.notes,
                f"burstIops {burst} and burstCredit left out, not being more than the {rate_text}",
            ),
        )
    bandwidth = (
        max(sustained.bytes_per_second or 0, burst * IO_SIZE)
        if performance.read_bandwidth is None
        else performance.read_bandwidth
    )
    return replace(base, burst=Rate(burst, bandwidth), credit=performance.burst_credit)


@dataclass(frozen=True)
class _Misfit:
    """A value that a size does not offer: the refusal, the change that makes it fit, and a note."""

    refusal: str
    apply_to: Callable[[Performance], Performance]
    note: str


def _find_misfits(performance: Performance, gib: int) -> list[_Misfit]:
    misfits = (
        _level_misfit(performance, gib),
        _provisioned_misfit(performance, gib),
        _bursting_misfit(performance, gib),
    )
    return [misfit for misfit in misfits if misfit]


def _level_misfit(performance: Performance, gib: int) -> _Misfit | None:
    level = performance.level
    if level is None or level == AUTOPL or gib >= essd.min_gib(level):
        return None
    fitting = [name for name in essd.LEVELS if gib >= essd.min_gib(name)]
    need = f"{level} needs {essd.min_gib(level)} GiB or more"
    refusal = f"performanceLevel is {level}; {gib} GiB have one of {', '.join(fitting)}, AutoPL ({need})"
    return _Misfit(
        refusal,
        lambda performance: replace(performance, level=fitting[-1]),
        f"performanceLevel {level} lowered to {fitting[-1]}, the most for {gib} GiB",
    )


def _provisioned_misfit(performance: Performance, gib: int) -> _Misfit | None:
    requested, maximum = performance.provisioned_iops, essd.max_provisioned_iops(gib)
    if requested is None or requested <= maximum:
        return None
    if not maximum:
        need = f"{gib} GiB have none, {essd.MIN_AUTOPL_GIB} GiB or more are needed"
        return _Misfit(
            f"provisionedIops is {requested}; {need}",
            _without_provisioned,
            f"provisionedIops {requested} left out: {need}",
        )
    refusal = (
        f"provisionedIops is {requested}; it is 1 to {maximum} for {gib} GiB; "
        "lower it or ask for more storage"
    )
    return _Misfit(
        refusal,
        lambda performance: replace(performance, provisioned_iops=maximum),
        f"provisionedIops {requested} lowered to {maximum}, the most for {gib} GiB",
    )


def _without_provisioned(performance: Performance) -> Performance:
    return replace(performance, provisioned_iops=None, level=AUTOPL)


def _bursting_misfit(performance: Performance, gib: int) -> _Misfit | None:
    if not performance.bursting or gib >= essd.MIN_AUTOPL_GIB:
        return None
    need = f"{gib} GiB cannot burst, {essd.MIN_AUTOPL_GIB} GiB or more are needed"
    return _Misfit(
        f"burstingEnabled is true; {need}",
        lambda performance: replace(performance, bursting=False),
        f"bursting turned off: {need}",
    )


def _find_contradictions(performance: Performance) -> list[tuple[bool, str]]:
    has_fixed_level = performance.level is not None and performance.level != AUTOPL
    ceiling = "readIops" if performance.read_iops is not None else "readBandwidth"
    has_plain_ceiling = performance.read_iops is not None or performance.read_bandwidth is not None
    level_key = next((key for key in KEYS[:3] if key in performance.to_context()), "")
    burst_given = (performance.burst_iops is not None, performance.burst_credit is not None)
    is_above_ceiling = (
        performance.burst_iops is None
        or performance.read_iops is None
        or performance.burst_iops > performance.read_iops
    )
    return [
        (
            has_fixed_level and performance.provisioned_iops is not None,
            f"provisionedIops is for AutoPL, performanceLevel is {performance.level}; keep one",
        ),
        (
            has_fixed_level and performance.bursting is True,
            f"burstingEnabled is for AutoPL, performanceLevel is {performance.level}; keep one",
        ),
        (
            has_plain_ceiling and bool(level_key),
            f"{ceiling} is for volumes without a performance level, and {level_key} is given too; keep one",
        ),
        (burst_given == (True, False), "burstIops is given without burstCredit; give both or none"),
        (burst_given == (False, True), "burstCredit is given without burstIops; give both or none"),
        (
            burst_given[0] and performance.bursting is True,
            "burstIops and burstCredit are for volumes without burstingEnabled; keep one way of bursting",
        ),
        (
            burst_given[0] and performance.read_iops is None and not level_key,
            "burstIops needs a limit to burst above; give readIops or a performanceLevel too",
        ),
        (
            not is_above_ceiling,
            f"burstIops is {performance.burst_iops}; "
            f"it has to be more than readIops, which is {performance.read_iops}",
        ),
    ]


def _format_value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _parse_level(key: str, text: str) -> str:
    by_lower_case = {level.lower(): level for level in LEVELS}
    if text.lower() not in by_lower_case:
        raise InvalidParameter(f"{key} is {redact(text)}; it is one of {', '.join(LEVELS)}")
    return by_lower_case[text.lower()]


@dataclass(frozen=True)
class _Field:
    """How a key is parsed (called with the key, for messages) and where its value is in a Performance."""

    parse: Callable[[str, str], Any]
    get: Callable[[Performance], object]
    put: Callable[[Performance, Any], Performance]


_FIELDS = {
    "performanceLevel": _Field(
        _parse_level,
        lambda performance: performance.level,
        lambda performance, value: replace(performance, level=value),
    ),
    "provisionedIops": _Field(
        partial(integer_value, low=1, high=MAX_IOPS),
        lambda performance: performance.provisioned_iops,
        lambda performance, value: replace(performance, provisioned_iops=value),
    ),
    "burstingEnabled": _Field(
        boolean_value,
        lambda performance: performance.bursting,
        lambda performance, value: replace(performance, bursting=value),
    ),
    "readIops": _Field(
        partial(integer_value, low=1, high=MAX_READ_IOPS),
        lambda performance: performance.read_iops,
        lambda performance, value: replace(performance, read_iops=value),
    ),
    # Below one I/O per second the kernel holds a throttled reader uninterruptibly for many seconds; a
    # forgotten unit ("500" for "500Mi") must not do that.
    "readBandwidth": _Field(
        partial(quantity_value, low=IO_SIZE, high=MAX_BANDWIDTH),
        lambda performance: performance.read_bandwidth,
        lambda performance, value: replace(performance, read_bandwidth=value),
    ),
    "burstIops": _Field(
        partial(integer_value, low=1, high=MAX_READ_IOPS),
        lambda performance: performance.burst_iops,
        lambda performance, value: replace(performance, burst_iops=value),
    ),
    "burstCredit": _Field(
        partial(integer_value, low=1, high=MAX_CREDIT),
        lambda performance: performance.burst_credit,
        lambda performance, value: replace(performance, burst_credit=value),
    ),
}
KEYS = tuple(_FIELDS)
KEY_TABLE = (
    Key(
        "performanceLevel",
        "`PL0` to `PL3`, `AutoPL`: the read limits of an Alibaba Cloud ESSD of the volume's size",
        "`AutoPL` with the next two, else no limit",
        aliases=("pl", "k8s.aliyun.com/eci-data-cache-pl"),
    ),
    Key(
        "provisionedIops",
        "I/Os per second on top of the baseline of `AutoPL`",
        "none",
        aliases=("k8s.aliyun.com/eci-data-cache-provisionediops",),
    ),
    Key(
        "burstingEnabled",
        "`true` or `false`: `AutoPL` may burst at any time",
        "`false`",
        aliases=("bursting", "k8s.aliyun.com/eci-data-cache-burstingenabled"),
    ),
    Key("readIops", "a plain ceiling, in I/Os per second", "none"),
    Key("readBandwidth", "a plain ceiling, in bytes per second, such as `500Mi`", "`readIops` x 16 KiB"),
    Key("burstIops", "the I/Os per second while a burst credit lasts", "none"),
    Key("burstCredit", "the burst credit, in I/Os", "none"),
)
