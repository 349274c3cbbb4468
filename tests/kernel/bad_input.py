"""What people get wrong, as parameters: each with the gRPC code and the words that the answer must have.

`{...}` in a value is filled in by the test: the NFS server's ports, folders of its export, a port that nobody
listens on. Every secret contains SECRET, so that a leak is found by searching for one word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import grpc

SECRET = "s3cr3t"
INVALID = grpc.StatusCode.INVALID_ARGUMENT
MISSING = grpc.StatusCode.NOT_FOUND
WHO = grpc.StatusCode.UNAUTHENTICATED
DENIED = grpc.StatusCode.PERMISSION_DENIED
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
FAILED = grpc.StatusCode.FAILED_PRECONDITION
LOST = grpc.StatusCode.DATA_LOSS

HUB = {"repoId": "org/open"}
NAS = {
    "server": "127.0.0.1",
    "path": "{export}/models",
    "options": "port={port},mountport={mountport},timeo=20,retrans=0",
}
OSS = {"bucket": "models", "url": "oss.example"}


@dataclass(frozen=True)
class Case:
    """`ways` are the calls that must refuse it: CreateVolume (of `gib` GiB), NodePublishVolume of an
    inline volume."""

    name: str
    parameters: Mapping[str, str]
    code: grpc.StatusCode
    words: tuple[str, ...]
    secrets: Mapping[str, str] = field(default_factory=dict)
    ways: tuple[str, ...] = ("create", "inline")
    gib: int = 0


def token(name: str) -> dict[str, str]:
    """A Secret with a token."""
    return {"token": f"{name}-{SECRET}"}


KEYS = (
    Case(
        "unknown key",
        {**HUB, "revison": "main"},
        INVALID,
        ("unknown parameter 'revison'", "did you mean revision?"),
    ),
    Case(
        "unknown key in another case", {**HUB, "ALLOWPATERNS": "*"}, INVALID, ("did you mean allowPatterns?",)
    ),
    Case(
        "key like no other", {**HUB, "zzz": "1"}, INVALID, ("unknown parameter 'zzz'", "known are", "repoId")
    ),
    Case("one key twice", {**HUB, "REPOID": "org/open"}, INVALID, ("given twice",)),
    Case("token among parameters", {**HUB, "token": SECRET}, INVALID, ("token is a credential", "Secret")),
    Case(
        "accessToken among parameters",
        {**HUB, "accessToken": SECRET},
        INVALID,
        ("accessToken is a credential", "Secret"),
    ),
    Case(
        "a credential in otherOpts",
        {**OSS, "otherOpts": f"-o passwd={SECRET}"},
        INVALID,
        ("otherOpts has 'passwd', a credential", "Secret"),
    ),
    Case(
        "a signed URL",
        {"url": f"https://files.example/x?Signature={SECRET}"},
        INVALID,
        ("url carries a credential", "Secret"),
    ),
    Case(
        "a key of a store among parameters",
        {**OSS, "akSecret": SECRET},
        INVALID,
        ("akSecret is a credential", "Secret"),
    ),
    Case(
        "several sources that are no list", {"sources": "no list"}, INVALID, ("sources is not JSON", "repoId")
    ),
    Case("no source", {"type": "URL"}, INVALID, ("repoId is missing", "org/name")),
    Case("nothing at all", {}, INVALID, ("no source is named", "repoId", "server and path")),
    Case("repoId missing", {"repoSource": "HuggingFace/Model"}, INVALID, ("repoId is missing", "org/name")),
    Case("two sources", {**HUB, "server": "nas"}, INVALID, ("two sources", "keep one")),
    Case("type of another source", {**HUB, "type": "NAS"}, INVALID, ("repoId belongs to another type",)),
    Case(
        "server missing",
        {"type": "NAS", "path": "/models"},
        INVALID,
        ("server is missing", "host name or address"),
    ),
    Case("path missing", {"server": "nas"}, INVALID, ("path is missing", "/share/models")),
    Case("path and share", {**NAS, "share": "/models"}, INVALID, ("path and share", "keep one")),
)

VALUES = (
    Case("unknown type", {**HUB, "type": "FTP"}, INVALID, ("type is 'FTP'", "URL", "NAS")),
    Case(
        "unknown repoSource",
        {**HUB, "repoSource": "Other/Model"},
        INVALID,
        ("repoSource is 'Other/Model'", "HuggingFace/Model"),
    ),
    Case(
        "repoId with a blank", {"repoId": "org/my model"}, INVALID, ("repoId is 'org/my model'", "org/name")
    ),
    Case(
        "repoId is a URL", {"repoId": f"https://me:{SECRET}@hub/org/open"}, INVALID, ("repoId is", "org/name")
    ),
    Case("repoId leaves the hub's folder", {"repoId": "../etc"}, INVALID, ("repoId is '../etc'",)),
    Case(
        "revision with dots",
        {**HUB, "revision": "a..b"},
        INVALID,
        ("revision is 'a..b'", "branch, tag or commit"),
    ),
    Case(
        "preserveOwnership",
        {**HUB, "preserveOwnership": "yes"},
        INVALID,
        ("preserveOwnership is 'yes'", "true"),
    ),
    Case(
        "writerAccessModes",
        {**HUB, "writerAccessModes": "allow"},
        INVALID,
        ("writerAccessModes is 'allow'", "downgrade"),
    ),
    Case(
        "performanceLevel", {**HUB, "performanceLevel": "PL9"}, INVALID, ("performanceLevel is 'PL9'", "PL1")
    ),
    Case(
        "provisionedIops",
        {**HUB, "provisionedIops": "many"},
        INVALID,
        ("provisionedIops is 'many'", "from 1 to"),
    ),
    Case("burstingEnabled", {**HUB, "burstingEnabled": "1"}, INVALID, ("burstingEnabled is '1'", "true")),
    Case("readIops", {**HUB, "readIops": "0"}, INVALID, ("readIops is '0'", "from 1 to")),
    Case(
        "readBandwidth without a unit",
        {**HUB, "readBandwidth": "500"},
        INVALID,
        ("readBandwidth is '500'", "500Mi"),
    ),
    Case("size", {**HUB, "size": "large"}, INVALID, ("size is 'large'", "bare number is in Gi")),
    Case(
        "patterns that leave nothing",
        {**HUB, "allowPatterns": "*.gguf"},
        INVALID,
        ("leave none of the 1 files", "allowPatterns"),
    ),
    Case(
        "server with a user",
        {**NAS, "server": f"me:{SECRET}@nas"},
        INVALID,
        ("server is", "without scheme, port or user"),
    ),
    Case(
        "server with a scheme",
        {**NAS, "server": "nfs://nas"},
        INVALID,
        ("server is 'nfs://nas'", "host name or address"),
    ),
    Case("path not absolute", {**NAS, "path": "models"}, INVALID, ("path is 'models'", "absolute")),
    Case("path with ..", {**NAS, "path": "/models/../etc"}, INVALID, ("absolute path without", "..")),
    Case("subDir with ..", {**NAS, "subDir": "../etc"}, INVALID, ("subDir '../etc'", "without")),
    Case("vers", {**NAS, "vers": "2"}, INVALID, ("vers is '2'", "4.0")),
    Case("unknown NFS option", {**NAS, "options": "noclock"}, INVALID, ("options", "'noclock'", "remove it")),
    Case("NFS over UDP", {**NAS, "options": "proto=udp"}, INVALID, ("proto=udp", "use proto=tcp")),
    Case("Kerberos", {**NAS, "options": "sec=krb5p"}, INVALID, ("sec=krb5p", "use sec=sys")),
    Case("port", {**NAS, "options": "port=70000"}, INVALID, ("port is '70000'", "65535")),
    Case("uid", {**NAS, "uid": "root"}, INVALID, ("uid is 'root'", "whole number")),
    Case("Secret without a token", HUB, INVALID, ("none of the keys", "`token`"), {"password": SECRET}),
)

PERFORMANCE = (
    Case(
        "level and provisioned IOPS",
        {**HUB, "pl": "PL1", "provisionedIops": "5"},
        INVALID,
        ("is for AutoPL", "performanceLevel is PL1", "keep one"),
    ),
    Case(
        "ceiling and level",
        {**HUB, "readIops": "5", "pl": "PL1"},
        INVALID,
        ("readIops is for volumes without", "performanceLevel", "keep one"),
    ),
    Case(
        "burst without credit",
        {**HUB, "readIops": "5", "burstIops": "9"},
        INVALID,
        ("burstIops", "without burstCredit", "give both or none"),
    ),
    Case(
        "burst below the limit",
        {**HUB, "readIops": "5", "burstIops": "4", "burstCredit": "1"},
        INVALID,
        ("more than readIops, which is 5",),
    ),
    Case(
        "the article's 35000",
        {**HUB, "provisionedIops": "35000"},
        INVALID,
        ("is 35000", "1 to 17000 for 20 GiB"),
        ways=("create",),
        gib=20,
    ),
    Case(
        "more than 50,000",
        {**NAS, "provisionedIOPS": "50001"},
        INVALID,
        ("1 to 50000 for 2000 GiB",),
        ways=("create",),
        gib=2000,
    ),
    Case(
        "too small for any",
        {**HUB, "provisionedIops": "1"},
        INVALID,
        ("1 GiB have none", "4 GiB or more"),
        ways=("create",),
    ),
    Case(
        "too small to burst",
        {**HUB, "bursting": "true"},
        INVALID,
        ("3 GiB cannot burst", "4 GiB or more"),
        ways=("create",),
        gib=3,
    ),
    Case(
        "too small for PL3",
        {**HUB, "pl": "PL3"},
        INVALID,
        ("1260 GiB have one of PL0, PL1, PL2, AutoPL", "1261"),
        ways=("create",),
        gib=1260,
    ),
    Case(
        "size of a claim",
        {**HUB, "size": "20Gi"},
        INVALID,
        ("size is for volumes without a PVC", "PVC"),
        ways=("create",),
    ),
)

HUBS = (
    Case(
        "unknown repository",
        {"repoId": "org/nosuch"},
        WHO,
        ("org/nosuch", "does not exist, or is private", "repoId", "Secret"),
    ),
    Case(
        "unknown repository, valid token",
        {"repoId": "org/nosuch"},
        MISSING,
        ("does not exist on", "repoId"),
        token("stranger"),
    ),
    Case(
        "unknown dataset",
        {"repoSource": "HuggingFace/DataSet", "repoId": "org/open"},
        WHO,
        ("HuggingFace/DataSet org/open",),
    ),
    Case("private, no token", {"repoId": "org/private"}, WHO, ("is private", "give a token in a Secret")),
    Case(
        "private, wrong token",
        {"repoId": "org/private"},
        WHO,
        ("refuses the token", "wrong, revoked or expired"),
        token("wrong"),
    ),
    Case(
        "private, another's token",
        {"repoId": "org/private"},
        MISSING,
        ("this token may not see it",),
        token("stranger"),
    ),
    Case(
        "gated, no token", {"repoId": "org/gated"}, DENIED, ("is gated", "accept the terms at http", "Secret")
    ),
    Case(
        "gated, terms not accepted",
        {"repoId": "org/gated"},
        DENIED,
        ("is gated", "accept the terms at http"),
        token("stranger"),
    ),
    Case(
        "unknown revision",
        {**HUB, "revision": "v9"},
        MISSING,
        ("org/open has no revision 'v9'", "branch, tag or commit"),
    ),
    Case("unknown commit", {**HUB, "revision": "0" * 40}, MISSING, ("has no revision", "check revision")),
    Case("wrong bytes", {"repoId": "org/corrupt"}, LOST, ("model.bin",), ways=("inline",)),
)

SERVERS = (
    Case(
        "nobody listens",
        {**NAS, "options": "port={closed},mountport={closed}"},
        UNAVAILABLE,
        ("does not accept connections on port", "firewalls"),
    ),
    Case(
        "missing export",
        {**NAS, "path": "/nosuch"},
        MISSING,
        ("no export or folder '/nosuch'", "check `path`"),
    ),
    Case("missing folder", {**NAS, "path": "{export}/nosuch"}, MISSING, ("nosuch", "check `path`")),
    Case(
        "missing export, v4", {**NAS, "path": "/nosuch", "vers": "4"}, MISSING, ("'/nosuch'", "check `path`")
    ),
    Case(
        "folder that cannot be listed",
        {**NAS, "path": "{export}/closed", "uid": "1234"},
        DENIED,
        ("uid 1234", "closed", "`uid` and `gid`"),
    ),
    Case(
        "file that cannot be read",
        {**NAS, "path": "{export}/unreadable", "uid": "1234"},
        DENIED,
        ("uid 1234", "weights.bin"),
    ),
    Case(
        "export not shown to this node",
        {**NAS, "path": "{foreign}"},
        MISSING,
        ("or does not show it to this node", "check `path`"),
    ),
    Case(
        "special file",
        {**NAS, "path": "{export}/special"},
        FAILED,
        ("'pipe' is a fifo", "remove it on the server"),
    ),
)

CASES = (*KEYS, *VALUES, *PERFORMANCE, *HUBS, *SERVERS)
