"""Which cgroup folders are watched, and for whom: so that a limit is there as soon as a container is."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from csi.errors import UnsupportedByNode
from csi.linux.cgroups.hierarchy import CgroupHierarchy
from csi.linux.cgroups.pod_cgroups import PodCgroups, is_pod_folder, walk_folders
from csi.linux.inotify import FileEvent, FileEventKind, FolderWatcher


class CgroupWatcher:
    """Tells which pods a file event is about. Used by one thread."""

    def __init__(self, hierarchy: CgroupHierarchy, pods: PodCgroups, events: FolderWatcher) -> None:
        self._hierarchy, self._pods, self._events = hierarchy, pods, events
        self._pod_of: dict[Path, str] = {}
        self._watched_parents: set[Path] = set()
        self.pods_without_cgroup: set[str] = set()
        """The pods whose cgroup has not appeared yet."""

    def watch_pod(self, uid: str) -> None:
        """Watch the pod's cgroups, or the folders where they may appear. Looking at them after this misses nothing.

        Raises UnsupportedByNode where the machine has no watch left for it.
        """
        self.pods_without_cgroup.add(uid)
        self._watch_parents(self._pods.list_watch_folders())
        folders = self._pods.find(uid)
        if not folders:
            self._rescan()
            folders = self._pods.find(uid)
        for folder in folders:
            self.pods_without_cgroup.discard(uid)
            for place in walk_folders(folder) if self._hierarchy.is_flat else [folder]:
                if place not in self._pod_of and self._events.watch(place):
                    self._pod_of[place] = uid

    def _rescan(self) -> None:
        """Learn kubelet's folders, and look again once they are watched: one may have been made meanwhile."""
        self._pods.rescan()
        while self._watch_parents(self._pods.list_watch_folders()):
            self._pods.rescan()

    def _watch_parents(self, folders: Iterable[Path]) -> bool:
        """Watch those that are not; whether there were any. Each is watched before the next is taken."""
        new = False
        for place in folders:
            if place not in self._watched_parents and self._events.watch(place):
                self._watched_parents.add(place)
                new = True
        return new

    def unwatch_pod(self, uid: str) -> None:
        """Watch the pod no more."""
        self.pods_without_cgroup.discard(uid)
        for place in [place for place, pod in self._pod_of.items() if pod == uid]:
            self._unwatch_folder(place)

    def _unwatch_folder(self, folder: Path) -> None:
        self._events.unwatch(folder)
        self._pod_of.pop(folder, None)
        self._watched_parents.discard(folder)

    def _unwatch_all(self) -> None:
        """A folder may have gone and come again unheard, and then nothing more is heard of it."""
        for place in [*self._pod_of, *self._watched_parents]:
            self._unwatch_folder(place)

    def affected_pods(self, events: list[FileEvent], watched_pods: set[str]) -> set[str]:
        """The pods among `watched_pods` to look at because of these events."""
        found: set[str] = set()
        for event in events:
            found |= self._pods_affected_by(event, watched_pods)
        return found & watched_pods

    def _pods_affected_by(self, event: FileEvent, watched_pods: set[str]) -> set[str]:
        if event.kind is FileEventKind.OVERFLOW:
            self._unwatch_all()
            return watched_pods
        if event.kind is FileEventKind.DELETED:
            pod_removed = self._pod_of.get(event.path)
            self._unwatch_folder(event.path)
            return {pod_removed} if pod_removed else set()
        pod = self._pod_of.get(event.folder)
        if event.kind is FileEventKind.WRITTEN:
            return ({pod} if pod else watched_pods) if event.name in self._hierarchy.limit_files else set()
        if pod:
            return {pod}
        return self._on_new_folder(event)

    def _on_new_folder(self, event: FileEvent) -> set[str]:
        """Something new among or above kubelet's folders: the pods that are missing may be there now, or below it soon."""
        if self.pods_without_cgroup and not is_pod_folder(event.name):
            with suppress(UnsupportedByNode):  # whoever is missing is followed now, and told so then
                self._watch_parents(walk_folders(event.path))
        return set(self.pods_without_cgroup)
