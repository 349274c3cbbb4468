"""What performance a volume was given: the keys as they were asked, checked one by one and together, and the limits they mean."""

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
MAX_READ_IOPS = 10**9
MAX_CREDIT = 10**12
_REMOVE_HINT = "(an empty value removes a key from a volume)"


@dataclass(frozen=True)
class Performance:
    """The performance keys of a volume; None where a key was not given, which means no limit by it.

    `provisioned_iops` is in I/Os per second, on top of the level's baseline. `read_iops` (I/Os per second) and
    `read_bandwidth` (bytes per second) are plain ceilings, for volumes without a level. `burst_iops` (I/Os per second)
    is the limit while `burst_credit` (I/Os) lasts.
    """

    level: str | None = None
    provisioned_iops: int | None = None
    bursting: bool | None = None
    read_iops: int | None = None
    read_bandwidth: int | None = None
    burst_iops: int | None = None
    burst_credit: int | None = None

    def to_context(self) -> dict[str, str]:
        """The keys that were given, as parameters."""
        values = {key: field.get(self) for key, field in _FIELDS.items()}
        return {key: _format_value(value) for key, value in values.items() if value is not None}

    def with_changes(self, parameters: Mapping[str, str]) -> Performance:
        """This performance with `parameters` (canonical keys) laid over it, an empty value removing its key.

        Raises InvalidParameter naming the key for a bad value; whether the keys agree is `check`'s to say.
        """
        changed = self
        for key, field in _FIELDS.items():
            if key in parameters:
                text = parameters[key]
                changed = field.put(changed, field.parse(key, text) if text else None)
        return changed

    def check(self) -> None:
        """Raise InvalidParameter where keys contradict each other, whatever the volume's size."""
        for wrong, message in _find_contradictions(self):
            if wrong:
                raise InvalidParameter(f"{message} {_REMOVE_HINT}")

    @property
    def effective_level(self) -> str | None:
        """The level that counts, one of LEVELS: the one given, or AutoPL where its keys are; None where neither is."""
        return self.level or (
            AUTOPL if self.provisioned_iops is not None or self.bursting is not None else None
        )


def compute_limits(performance: Performance, capacity_bytes: int, clamp: bool = False) -> Limits | None:
    """What a volume of `capacity_bytes` may read; None where no performance key is given.

    What the ESSD formulae do not have in that size raises InvalidParameter that states the range; with `clamp` it is
    lowered to what the size has, and the limits' notes say so. Keys that contradict each other raise it either way.
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
        # An I/O counts once up to the device's largest request, so a limit of IOPS alone would let far more bytes through.
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
        what = f"{sustained.iops} IOPS that {performance.effective_level} has with {gib} GiB at any time"
        if not clamp:
            raise InvalidParameter(f"burstIops is {burst}; it has to be more than the {what}")
        return replace(
            base,
            notes=(
                *base.notes,
                f"burstIops {burst} and burstCredit left out, not being more than the {what}",
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
    """What a size does not have: why that is refused, what makes a performance fit instead, and the note that says so."""

    refusal: str
    apply_to: Callable[[Performance], Performance]
    note: str


def _find_misfits(performance: Performance, gib: int) -> list[_Misfit]:
    found = (
        _level_misfit(performance, gib),
        _provisioned_misfit(performance, gib),
        _bursting_misfit(performance, gib),
    )
    return [misfit for misfit in found if misfit]


def _level_misfit(performance: Performance, gib: int) -> _Misfit | None:
    level = performance.level
    if level is None or level == AUTOPL or gib >= essd.min_gib(level):
        return None
    fitting = [name for name in essd.LEVELS if gib >= essd.min_gib(name)]
    need = f"{level} needs {essd.min_gib(level)} GiB or more"
    refusal = f"performanceLevel is {level}; {gib} GiB have one of {', '.join(fitting)}, AutoPL ({need})"
    return _Misfit(
        refusal,
        lambda given: replace(given, level=fitting[-1]),
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
    refusal = f"provisionedIops is {requested}; it is 1 to {maximum} for {gib} GiB; lower it or ask for more storage"
    return _Misfit(
        refusal,
        lambda given: replace(given, provisioned_iops=maximum),
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
        lambda given: replace(given, bursting=False),
        f"bursting turned off: {need}",
    )


def _find_contradictions(performance: Performance) -> list[tuple[bool, str]]:
    fixed = performance.level is not None and performance.level != AUTOPL
    ceiling = "readIops" if performance.read_iops is not None else "readBandwidth"
    plain = performance.read_iops is not None or performance.read_bandwidth is not None
    priced = next((key for key in KEYS[:3] if key in performance.to_context()), "")
    credit = (performance.burst_iops is not None, performance.burst_credit is not None)
    above = (
        performance.burst_iops is None
        or performance.read_iops is None
        or performance.burst_iops > performance.read_iops
    )
    return [
        (
            fixed and performance.provisioned_iops is not None,
            f"provisionedIops is for AutoPL, performanceLevel is {performance.level}; keep one",
        ),
        (
            fixed and performance.bursting is True,
            f"burstingEnabled is for AutoPL, performanceLevel is {performance.level}; keep one",
        ),
        (
            plain and bool(priced),
            f"{ceiling} is for volumes without a performance level, and {priced} is given too; keep one",
        ),
        (credit == (True, False), "burstIops is given without burstCredit; give both or none"),
        (credit == (False, True), "burstCredit is given without burstIops; give both or none"),
        (
            credit[0] and performance.bursting is True,
            "burstIops and burstCredit are for volumes without burstingEnabled; keep one way of bursting",
        ),
        (
            credit[0] and performance.read_iops is None and not priced,
            "burstIops needs a limit to burst above; give readIops or a performanceLevel too",
        ),
        (
            not above,
            f"burstIops is {performance.burst_iops}; it has to be more than readIops, which is {performance.read_iops}",
        ),
    ]


def _format_value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _parse_level(key: str, text: str) -> str:
    known = {level.lower(): level for level in LEVELS}
    if text.lower() not in known:
        raise InvalidParameter(f"{key} is {redact(text)}; it is one of {', '.join(LEVELS)}")
    return known[text.lower()]


@dataclass(frozen=True)
class _Field:
    """What a key means: how its text is read (with the key, for messages), and where its value stands in a Performance."""

    parse: Callable[[str, str], Any]
    get: Callable[[Performance], object]
    put: Callable[[Performance, Any], Performance]


_FIELDS = {
    "performanceLevel": _Field(
        _parse_level, lambda kept: kept.level, lambda kept, value: replace(kept, level=value)
    ),
    "provisionedIops": _Field(
        partial(integer_value, low=1, high=MAX_IOPS),
        lambda kept: kept.provisioned_iops,
        lambda kept, value: replace(kept, provisioned_iops=value),
    ),
    "burstingEnabled": _Field(
        boolean_value, lambda kept: kept.bursting, lambda kept, value: replace(kept, bursting=value)
    ),
    "readIops": _Field(
        partial(integer_value, low=1, high=MAX_READ_IOPS),
        lambda kept: kept.read_iops,
        lambda kept, value: replace(kept, read_iops=value),
    ),
    # Below one I/O a second the kernel would hold a reader, who cannot even be killed, for longer than a forgotten unit is worth.
    "readBandwidth": _Field(
        partial(quantity_value, low=IO_SIZE, high=MAX_BANDWIDTH),
        lambda kept: kept.read_bandwidth,
        lambda kept, value: replace(kept, read_bandwidth=value),
    ),
    "burstIops": _Field(
        partial(integer_value, low=1, high=MAX_READ_IOPS),
        lambda kept: kept.burst_iops,
        lambda kept, value: replace(kept, burst_iops=value),
    ),
    "burstCredit": _Field(
        partial(integer_value, low=1, high=MAX_CREDIT),
        lambda kept: kept.burst_credit,
        lambda kept, value: replace(kept, burst_credit=value),
    ),
}
KEYS = tuple(_FIELDS)
KEY_TABLE = (
    Key(
        "performanceLevel",
        "`PL0` to `PL3`, `AutoPL`: reads as an Alibaba Cloud ESSD of the volume's size",
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
    Key("readBandwidth", "a plain ceiling, in bytes per second, as `500Mi`", "`readIops` x 16 KiB"),
    Key("burstIops", "the I/Os per second while a burst credit lasts", "none"),
    Key("burstCredit", "the burst credit, in I/Os", "none"),
)
