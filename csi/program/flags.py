"""Command line flags, each of which is also an environment variable DATACACHE_..., and the sizes people write."""

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
    """Add `name` (such as "--node-id"), whose default is DATACACHE_NODE_ID where that is set; required where neither is."""
    variable = "DATACACHE_" + name.lstrip("-").replace("-", "_").upper()
    value = os.environ.get(variable, default)
    text = options.pop("help", "")
    parser.add_argument(name, default=value, required=value is None, help=f"{text} [{variable}]", **options)


def add_program_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that all programs of a cluster have."""
    add_flag(
        parser, "--driver-name", default=DRIVER_NAME, type=parse_driver_name, help="the CSI driver's name"
    )
    add_flag(
        parser,
        "--log-format",
        default="text",
        choices=("text", "json"),
        help="log lines for people or for collectors",
    )
    add_flag(
        parser,
        "--log-level",
        default="INFO",
        choices=("DEBUG", "INFO", "WARNING", "ERROR"),
        help="the least level that is logged",
    )
    add_flag(
        parser,
        "--egress-profile",
        default="",
        type=parse_egress_profiles,
        action=MergeAction,
        help="a network that fetches may go through, as NAME=netns:/run/netns/NAME,rate:500mbit; may be given again, or several by ';'",
    )
    add_flag(
        parser,
        "--proof-ttl",
        default="10m",
        type=parse_duration,
        help="how long a proof of reading is taken without asking the origin again",
    )
    add_flag(
        parser,
        "--offline-grace",
        default="7d",
        type=parse_duration,
        help="how long what was proven counts while the origin is unreachable",
    )


def add_plugin_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that both plugins have."""
    add_flag(parser, "--endpoint", help="the CSI socket, as unix:///run/.../csi.sock")
    add_program_flags(parser)
    add_flag(
        parser,
        "--rpc-threads",
        default="512",
        type=parse_count,
        help="calls at a time; at most half of them may wait",
    )
    add_flag(
        parser,
        "--health-address",
        default="",
        type=parse_optional_address,
        help="where GET /healthz is answered, as :9809; empty for nowhere",
    )
    add_flag(
        parser,
        "--metrics-address",
        default="",
        type=parse_optional_address,
        help="where Prometheus reads metrics, as 127.0.0.1:9808; empty for nowhere",
    )


def add_image_store_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of those who use the image store of the cluster."""
    add_flag(
        parser,
        "--image-store",
        default="",
        help="where images are kept that outlive their origins: file:///folder, s3://bucket/folder?endpoint=..., oss://...; empty for nowhere",
    )
    add_flag(
        parser,
        "--image-store-secret",
        default="",
        type=parse_optional_path,
        help="the folder with the access key of the image store, one file a key",
    )


def parse_name_value(text: str) -> dict[str, str]:
    """NAME=VALUE as a mapping of one, an empty text as none."""
    name, sign, value = text.partition("=")
    if text and not (re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", name) and sign and value):
        raise argparse.ArgumentTypeError(
            f"{text.partition('?')[0]!r} is no NAME=VALUE, with a name of letters, digits, '.', '_' and '-'"
        )
    return {name: value} if text else {}


def parse_optional_path(text: str) -> Path | None:
    """A path, None for none."""
    return Path(text) if text else None


class MergeAction(argparse.Action):
    """A flag that may be given again; what the environment says counts only where it is not given at all."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option: str | None = None,
    ) -> None:
        known = getattr(namespace, self.dest)
        setattr(namespace, self.dest, values if isinstance(known, str) else known | values)


def parse_driver_name(text: str) -> str:
    """A CSI driver name: at most 63 characters, letters and digits at its ends, '-', '.' and letters, digits between."""
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,61}[A-Za-z0-9])?", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no CSI driver name; use a domain name such as {DRIVER_NAME}, at most 63 characters"
        )
    return text


def parse_size(text: str) -> int:
    """Bytes from a Kubernetes quantity ("500Gi", "2T", "1048576")."""
    try:
        return values.parse_quantity(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def parse_optional_size(text: str) -> int | None:
    """As `parse_size`; None for an empty text."""
    return parse_size(text) if text else None


def parse_boolean(text: str) -> bool:
    """Whether `text` is "true"; the only other word is "false"."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def parse_count(text: str) -> int:
    """A whole number of at least 1."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no count; write a whole number of at least 1")
    return int(text)


def parse_duration(text: str) -> float:
    """Seconds from "90", "90s", "10m", "24h" or "7d"."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; write it as 90s, 10m, 24h or 7d")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def parse_optional_address(text: str) -> tuple[str, int] | None:
    """Host and port from "127.0.0.1:9808", "[::1]:9808" or ":9808" (every address); None for an empty text."""
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]*):([0-9]{1,5})", text)
    if text and not (match and 0 <= int(match[2]) < 65536):
        raise argparse.ArgumentTypeError(f"{text!r} is no address; write it as 127.0.0.1:9808")
    return (match[1].strip("[]") or "::", int(match[2])) if match else None
