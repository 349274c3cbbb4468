"""NFS options in nfs(5)'s words: honoured, without effect, or refused by name."""

from __future__ import annotations

import pytest

from csi.errors import InvalidParameter
from csi.parameters.dialects.nfs_options import NfsOptions, parse_nfs_options, parse_version


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", NfsOptions()),
        (" , ,", NfsOptions()),
        ("vers=3", NfsOptions(version="3")),
        ("nfsvers=4", NfsOptions(version="4.0")),
        ("vers=4.2", NfsOptions(version="4.0")),
        ("vers=4,minorversion=1", NfsOptions(version="4.0")),
        ("port=2049,mountport=20048", NfsOptions(port=2049, mount_port=20048)),
        ("timeo=600", NfsOptions(timeout=60.0)),
        ("timeo=1", NfsOptions(timeout=0.1)),
        ("retrans=0", NfsOptions(retries=0)),
        ("VERS=3, Port=1", NfsOptions(version="3", port=1)),
        ("proto=tcp,mountproto=tcp6,sec=sys", NfsOptions()),
        (
            "nolock,noresvport,hard,intr,rsize=1048576,wsize=1048576,nconnect=4,_netdev,ro,noatime",
            NfsOptions(),
        ),
        ("nolock,tcp,noresvport,vers=3.0", NfsOptions(version="3")),
        ("defaults,rw,tcp6", NfsOptions()),
        ("port=1,port=2", NfsOptions(port=2)),
    ],
)
def test_an_option_that_counts_is_read_and_one_for_the_kernels_client_is_passed_over(
    text: str, expected: NfsOptions
) -> None:
    assert parse_nfs_options(text, "options") == expected


@pytest.mark.parametrize(
    "item",
    [
        "krb5",
        "sec=krb5p",
        "proto=udp",
        "proto=rdma",
        "vers=2",
        "vers=",
        "minorversion=3",
        "port=x",
        "port=65536",
        "timeo=0",
        "retrans=-1",
        "nolok",
    ],
)
def test_an_option_that_cannot_be_honoured_is_refused_by_name(item: str) -> None:
    with pytest.raises(InvalidParameter) as error:
        parse_nfs_options(f"nolock,{item}", "mountOptions")
    assert item.partition("=")[0].removeprefix("minor").removesuffix("ion")[:4] in str(error.value)


def test_a_version_that_does_not_exist_names_those_that_do() -> None:
    with pytest.raises(InvalidParameter, match="3, 3.0, 4, 4.0, 4.1, 4.2"):
        parse_version("4.3")
