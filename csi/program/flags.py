"""Command line flags, each also an environment variable DATACACHE_..., and the parsers of their values."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Any

from csi import values
from csi.program.egress_profiles import parse_egress_profiles

DRIVER_NAME = "datacache.csi.io"


def add_flag(
    parser: argparse.ArgumentParser, name: str, *, default: str | None = None, **options: Any
) -> None:
    """Add the flag `name`, such as "--node-id".

    Its default is the variable DATACACHE_NODE_ID, then `default`; without either it is required.
    """
    variable = "DATACACHE_" + name.lstrip("-").replace("-", "_").upper()
    value = os.environ.get(variable, default)
    text = options.pop("help", "")
    parser.add_argument(name, default=value, required=value is None, help=f"{text} [{variable}]", **options)


def add_program_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of every program that runs in a cluster."""
    add_flag(
        parser, "--driver-name", default=DRIVER_NAME, type=parse_driver_name, help="the CSI driver's name"
    )
    add_flag(
        parser,
        "--log-format",
        default="text",
        choices=("text", "json"),
        help="format of log lines: text to read, json for log collectors",
    )
    add_flag(
        parser,
        "--log-level",
        default="INFO",
        choices=("DEBUG", "INFO", "WARNING", "ERROR"),
        help="lowest level that is logged",
    )
    _add_origin_flags(parser)


def _add_origin_flags(parser: argparse.ArgumentParser) -> None:
    add_flag(
        parser,
        "--egress-profile",
        default="",
        type=parse_egress_profiles,
        action=MergeAction,
        help="network that fetches may go through, as NAME=netns:/run/netns/NAME,rate:500mbit; "
        "repeat the flag for several, or separate them by ';'",
    )
    add_flag(
        parser,
        "--proof-ttl",
        default="10m",
        type=parse_duration,
        help="how long a successful access check counts before the origin is asked again",
    )
    add_flag(
        parser,
        "--offline-grace",
        default="7d",
        type=parse_duration,
        help="how long a successful access check counts while the origin is unreachable",
    )


def add_plugin_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of both plugins."""
    add_flag(parser, "--endpoint", help="CSI socket, as unix:///run/.../csi.sock")
    add_program_flags(parser)
    add_flag(
        parser,
        "--rpc-threads",
        default="512",
        type=parse_count,
        help="number of concurrent calls; at most half of them may wait",
    )
    add_flag(
        parser,
        "--health-address",
        default="",
        type=parse_optional_address,
        help="address of GET /healthz, as :9809; empty to disable",
    )
    add_flag(
        parser,
        "--metrics-address",
        default="",
        type=parse_optional_address,
        help="address of the Prometheus metrics, as 127.0.0.1:9808; empty to disable",
    )


def add_image_store_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of programs that use the cluster's image store."""
    add_flag(
        parser,
        "--image-store",
        default="",
        help="store for images that outlive their origins: file:///folder, s3://bucket/folder?endpoint=..., "
        "oss://...; empty for none",
    )
    add_flag(
        parser,
        "--image-store-secret",
        default="",
        type=parse_optional_path,
        help="folder with the access key of the image store, one file per key",
    )


def parse_name_value(text: str) -> dict[str, str]:
    """Parse NAME=VALUE into a mapping of one entry; an empty text into an empty mapping.

    Raises argparse.ArgumentTypeError.
    """
    name, sign, value = text.partition("=")
    # Only the text before '?' is quoted in the error: a URL's query may hold a secret.
    if text and not (re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", name) and sign and value):
        raise argparse.ArgumentTypeError(
            f"{text.partition('?')[0]!r} is not NAME=VALUE with a name of letters, digits, '.', '_' and '-'"
        )
    return {name: value} if text else {}


def parse_optional_path(text: str) -> Path | None:
    """Parse a path; an empty text is None."""
    return Path(text) if text else None


class MergeAction(argparse.Action):
    """Flag that may be repeated.

    The value of the environment variable counts only if the flag is not given at all.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option: str | None = None,
    ) -> None:
        # The default is still the unparsed text here; a mapping is what earlier occurrences have given.
        known = getattr(namespace, self.dest)
        setattr(namespace, self.dest, values if isinstance(known, str) else known | values)


def parse_driver_name(text: str) -> str:
    """Check a CSI driver name.

    It has at most 63 letters, digits, '-' and '.', with a letter or digit at both ends.
    """
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,61}[A-Za-z0-9])?", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a CSI driver name; "
            f"use a domain name such as {DRIVER_NAME}, at most 63 characters"
        )
    return text


def parse_size(text: str) -> int:
    """Parse a Kubernetes quantity ("500Gi", "2T", "1048576") into bytes."""
    try:
        return values.parse_quantity(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def parse_optional_size(text: str) -> int | None:
    """Parse a size as `parse_size` does; an empty text is None."""
    return parse_size(text) if text else None


def parse_boolean(text: str) -> bool:
    """Parse "true" or "false", in upper or lower case."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def parse_count(text: str) -> int:
    """Parse a whole number of at least 1."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a count; write a whole number of at least 1")
    return int(text)


def parse_duration(text: str) -> float:
    """Parse a duration such as "90", "90s", "10m", "24h" or "7d" into seconds."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration; write it as 90s, 10m, 24h or 7d")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def parse_optional_address(text: str) -> tuple[str, int] | None:
    """Parse an address into host and port; an empty text is None.

    Forms are "127.0.0.1:9808", "[::1]:9808" and ":9808" (all addresses).
    """
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]*):([0-9]{1,5})", text)
    if text and not (match and 0 <= int(match[2]) < 65536):
        raise argparse.ArgumentTypeError(f"{text!r} is not an address; write it as 127.0.0.1:9808")
    return (match[1].strip("[]") or "::", int(match[2])) if match else None
