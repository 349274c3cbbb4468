"""Egress profiles and their notation on the command line: NAME=netns:PATH,rate:500mbit."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass

from csi.errors import FailedPrecondition

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
# Bits per second, in the notation of tc(8).
_RATE = re.compile(r"([0-9]+(?:\.[0-9]+)?)(k|m|g|t)?bit", re.IGNORECASE)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_MIN_RATE = 10_000
# tbf(8) counts bytes per second in 32 bits.
_MAX_RATE = 34_000_000_000


@dataclass(frozen=True)
class EgressProfile:
    """Network to fetch through.

    `netns` is the path of a network namespace ("" for the plugin's own), `rate` is in bits per second (None
    for no limit).

    With a namespace all its fetches share the rate; without one each fill has its own.
    """

    netns: str = ""
    rate: int | None = None


NO_PROFILE = EgressProfile()


def parse_egress_profiles(text: str) -> dict[str, EgressProfile]:
    """Return the profiles of --egress-profile by name.

    Several are separated by blanks or ';'. Raises argparse.ArgumentTypeError.
    """
    profiles: dict[str, EgressProfile] = {}
    for item in filter(None, re.split(r"[;\s]+", text)):
        name, equals, rest = item.partition("=")
        if not (equals and _NAME.fullmatch(name)) or name in profiles:
            raise argparse.ArgumentTypeError(
                f"{item!r} is not an egress profile with a name of its own; "
                "write it as NAME=netns:PATH,rate:500mbit"
            )
        profiles[name] = _parse_profile(item, rest)
    return profiles


def get_profile(profiles: Mapping[str, EgressProfile], name: str) -> EgressProfile:
    """Return the profile called `name` ("" for none).

    Raises FailedPrecondition, naming the known profiles.
    """
    if name and name not in profiles:
        known = f"known are {', '.join(profiles)}" if profiles else "none is known"
        raise FailedPrecondition(
            f"egressProfile {name!r} is not one of this plugin's ({known}); "
            "set it with --egress-profile, or choose another"
        )
    return profiles[name] if name else NO_PROFILE


def _parse_profile(item: str, rest: str) -> EgressProfile:
    values: dict[str, str] = {}
    for part in rest.split(","):
        key, colon, value = part.partition(":")
        if key not in ("netns", "rate") or not colon or not value or key in values:
            raise argparse.ArgumentTypeError(
                f"{item!r} has {part!r}, which is neither netns:PATH nor rate:500mbit; give each once"
            )
        values[key] = value
    if not values.get("netns", "/").startswith("/"):
        raise argparse.ArgumentTypeError(
            f"{item!r}: netns is the absolute path of a network namespace, such as /run/netns/NAME"
        )
    return EgressProfile(
        values.get("netns", ""), _parse_rate(item, values["rate"]) if "rate" in values else None
    )


def _parse_rate(item: str, text: str) -> int:
    match = _RATE.fullmatch(text)
    rate = float(match[1]) * _UNITS[(match[2] or "").lower()] if match else 0.0
    if not _MIN_RATE <= rate <= _MAX_RATE:
        raise argparse.ArgumentTypeError(
            f"{item!r}: rate is {text!r}; write it as 500mbit or 1gbit, 10kbit to 34gbit"
        )
    return int(rate)
