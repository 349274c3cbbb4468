"""Where the cgroups of pods are found, and which uids become part of a path."""

from __future__ import annotations

from pathlib import Path

import pytest

from csi.linux.cgroups.pod_cgroups import PodCgroups, find_pod_uid, walk_folders

UID = "0ab1c2d3-1111-2222-3333-444455556666"
SYSTEMD = UID.replace("-", "_")
PLACES = [
    f"kubepods/pod{UID}",
    f"kubepods/burstable/pod{UID}",
    f"kubepods/besteffort/pod{UID}",
    f"kubelet/kubepods/burstable/pod{UID}",
    f"docker/0123abcd/kubelet/kubepods/besteffort/pod{UID}",
    f"kubepods.slice/kubepods-pod{SYSTEMD}.slice",
    f"kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{SYSTEMD}.slice",
    f"kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{SYSTEMD}.slice",
    f"kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{SYSTEMD}.slice",
]


def found(root: Path, uid: str = UID) -> list[Path]:
    pods = PodCgroups(root)
    pods.rescan()
    return pods.find(uid)


@pytest.mark.parametrize("place", PLACES)
def test_a_pod_is_found_with_each_driver_class_and_nesting(tmp_path: Path, place: str) -> None:
    (tmp_path / "system.slice/ssh.service").mkdir(parents=True)
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / place).with_name((tmp_path / place).name.replace("0ab1", "0ab2")).mkdir()
    assert found(tmp_path) == [tmp_path / place]


def test_a_static_pod_s_uid_has_no_dashes(tmp_path: Path) -> None:
    uid = "0123456789abcdef0123456789abcdef"
    (tmp_path / f"kubepods/burstable/pod{uid}").mkdir(parents=True)
    assert len(found(tmp_path, uid)) == 1


def test_a_pod_that_is_not_there_yet_is_none(tmp_path: Path) -> None:
    (tmp_path / "kubepods/burstable").mkdir(parents=True)
    assert found(tmp_path) == []
    assert found(tmp_path / "absent") == []


def test_the_folders_on_the_way_are_to_be_watched(tmp_path: Path) -> None:
    (tmp_path / "kubelet/kubepods/burstable").mkdir(parents=True)
    pods = PodCgroups(tmp_path)
    assert pods.list_watch_folders() == {tmp_path}
    pods.rescan()
    names = {str(place.relative_to(tmp_path)) for place in pods.list_watch_folders()}
    assert names == {".", "kubelet", "kubelet/kubepods", "kubelet/kubepods/burstable"}


@pytest.mark.parametrize(
    ("target", "said", "uid"),
    [
        (f"/var/lib/kubelet/pods/{UID}/volumes/kubernetes.io~csi/model/mount", "", UID),
        (f"/var/lib/kubelet/pods/{UID}/volumes/kubernetes.io~csi/model/mount", "another-pod", UID),
        (f"/var/lib/kubelet/pods/outer/volumes/empty/kubelet/pods/{UID}/volumes/model/mount", "", UID),
        ("/mnt/model", UID, UID),
        ("/mnt/model", "", ""),
        ("/mnt/model", "../../system.slice/x", ""),
        ("/mnt/model", "a/b", ""),
        ("/mnt/model", ".", ""),
        ("/mnt/model", "x" * 65, ""),
        ("/mnt/pods/../volumes/model", "", ""),
    ],
)
def test_the_path_decides_whose_pod_it_is_and_only_a_uid_is_one(target: str, said: str, uid: str) -> None:
    assert find_pod_uid(Path(target), said) == uid


def test_a_tree_has_every_folder_and_no_link(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "file").write_text("")
    assert list(walk_folders(tmp_path)) == [tmp_path, tmp_path / "a", tmp_path / "a/b"]
    assert list(walk_folders(tmp_path / "gone")) == [tmp_path / "gone"]
