"""Watches on cgroup folders, so that a limit is set as soon as a container's cgroup appears."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from csi.errors import UnsupportedByNode
from csi.linux.cgroups.hierarchy import CgroupHierarchy
from csi.linux.cgroups.pod_cgroups import PodCgroups, is_pod_folder, walk_folders
from csi.linux.inotify import FileEvent, FileEventKind, FolderWatcher


class CgroupWatcher:
    """Watcher that maps file events to pods. Used by one thread."""

    def __init__(self, hierarchy: CgroupHierarchy, pods: PodCgroups, events: FolderWatcher) -> None:
        self._hierarchy, self._pods, self._events = hierarchy, pods, events
        self._pods_by_cgroup: dict[Path, str] = {}
        self._watched_parents: set[Path] = set()
        self.pods_without_cgroup: set[str] = set()
        """The pods whose cgroup has not appeared yet."""

    def watch_pod(self, uid: str) -> None:
        """Watch the pod's cgroups, or the folders where they may appear.

        A caller who reads them after this misses no cgroup. Raises UnsupportedByNode if inotify's limit of
        watches is reached.
        """
        self.pods_without_cgroup.add(uid)
        self._watch_parents(self._pods.list_watch_folders())
        folders = self._pods.find(uid)
        if not folders:
            self._rescan()
            folders = self._pods.find(uid)
        for folder in folders:
            self.pods_without_cgroup.discard(uid)
            for cgroup in walk_folders(folder) if self._hierarchy.is_flat else [folder]:
                if cgroup not in self._pods_by_cgroup and self._events.watch(cgroup):
                    self._pods_by_cgroup[cgroup] = uid

    def _rescan(self) -> None:
        """Find kubelet's folders and watch them."""
        self._pods.rescan()
        # Again after each new watch: a folder may have been created in between.
        while self._watch_parents(self._pods.list_watch_folders()):
            self._pods.rescan()

    def _watch_parents(self, folders: Iterable[Path]) -> bool:
        """Watch the folders that are not watched yet; return whether there were any.

        Each is watched before the next is taken, so that `walk_folders` sees children created in between.
        """
        has_new = False
        for folder in folders:
            if folder not in self._watched_parents and self._events.watch(folder):
                self._watched_parents.add(folder)
                has_new = True
        return has_new

    def unwatch_pod(self, uid: str) -> None:
        """Remove the pod's watches."""
        self.pods_without_cgroup.discard(uid)
        for folder in [folder for folder, pod in self._pods_by_cgroup.items() if pod == uid]:
            self._unwatch_folder(folder)

    def _unwatch_folder(self, folder: Path) -> None:
        self._events.unwatch(folder)
        self._pods_by_cgroup.pop(folder, None)
        self._watched_parents.discard(folder)

    def _unwatch_all(self) -> None:
        """Remove all watches after lost events.

        A folder may have been removed and created again, and its old watch reports nothing any more.
        """
        for folder in [*self._pods_by_cgroup, *self._watched_parents]:
            self._unwatch_folder(folder)

    def handle_events(self, events: list[FileEvent], watched_pods: set[str]) -> set[str]:
        """Update the watches after these events; return the pods whose limits must be set again.

        These are some of `watched_pods`.
        """
        affected: set[str] = set()
        for event in events:
            affected |= self._handle_event(event, watched_pods)
        return affected & watched_pods

    def _handle_event(self, event: FileEvent, watched_pods: set[str]) -> set[str]:
        if event.kind is FileEventKind.OVERFLOW:
            self._unwatch_all()
            return watched_pods
        if event.kind is FileEventKind.DELETED:
            pod_removed = self._pods_by_cgroup.get(event.path)
            self._unwatch_folder(event.path)
            return {pod_removed} if pod_removed else set()
        pod = self._pods_by_cgroup.get(event.folder)
        if event.kind is FileEventKind.WRITTEN:
            # Someone else, such as systemd, has written a limit.
            if event.name not in self._hierarchy.limit_files:
                return set()
            return {pod} if pod else watched_pods
        if pod:
            return {pod}
        return self._on_new_folder(event)

    def _on_new_folder(self, event: FileEvent) -> set[str]:
        """Return the pods that may have a cgroup now, after a new folder among or above kubelet's."""
        if self.pods_without_cgroup and not is_pod_folder(event.name):
            # The pods without a cgroup are watched next, which raises the error again.
            with suppress(UnsupportedByNode):
                self._watch_parents(walk_folders(event.path))
        return set(self.pods_without_cgroup)
