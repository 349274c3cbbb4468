"""Which cgroup folders are watched, and for whom: so that a limit is there as soon as a container is."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from csi.errors import UnsupportedByNode
from csi.linux.cgroups.hierarchy import Hierarchy
from csi.linux.cgroups.pod_cgroups import PodCgroups, is_pod_folder, tree
from csi.linux.inotify import FileEvent, FileEvents, Kind


class CgroupWatch:
    """Tells which pods a file event is about. Used by one thread."""

    def __init__(self, hierarchy: Hierarchy, pods: PodCgroups, events: FileEvents) -> None:
        self._hierarchy, self._pods, self._events = hierarchy, pods, events
        self._pod_of: dict[Path, str] = {}
        self._places: set[Path] = set()
        self.missing: set[str] = set()
        """The pods whose cgroup has not appeared yet."""

    def follow(self, uid: str) -> None:
        """Watch the pod's cgroups, or the folders where they may appear. Looking at them after this misses nothing.

        Raises UnsupportedByNode where the machine has no watch left for it.
        """
        self.missing.add(uid)
        self._watch_places(self._pods.places_to_watch())
        folders = self._pods.find(uid)
        if not folders:
            self._look_around()
            folders = self._pods.find(uid)
        for folder in folders:
            self.missing.discard(uid)
            for place in tree(folder) if self._hierarchy.flat else [folder]:
                if place not in self._pod_of and self._events.watch(place):
                    self._pod_of[place] = uid

    def _look_around(self) -> None:
        """Learn kubelet's folders, and look again once they are watched: one may have been made meanwhile."""
        self._pods.look_around()
        while self._watch_places(self._pods.places_to_watch()):
            self._pods.look_around()

    def _watch_places(self, places: Iterable[Path]) -> bool:
        """Watch those that are not; whether there were any. Each is watched before the next is taken."""
        new = False
        for place in places:
            if place not in self._places and self._events.watch(place):
                self._places.add(place)
                new = True
        return new

    def leave(self, uid: str) -> None:
        """Watch the pod no more."""
        self.missing.discard(uid)
        for place in [place for place, pod in self._pod_of.items() if pod == uid]:
            self._forget(place)

    def _forget(self, place: Path) -> None:
        self._events.forget(place)
        self._pod_of.pop(place, None)
        self._places.discard(place)

    def _forget_all(self) -> None:
        """A folder may have gone and come again unheard, and then nothing more is heard of it."""
        for place in [*self._pod_of, *self._places]:
            self._forget(place)

    def concerned(self, events: list[FileEvent], followed: set[str]) -> set[str]:
        """The pods among `followed` to look at because of these events."""
        found: set[str] = set()
        for event in events:
            found |= self._concerned(event, followed)
        return found & followed

    def _concerned(self, event: FileEvent, followed: set[str]) -> set[str]:
        if event.kind is Kind.LOST:
            self._forget_all()
            return followed
        if event.kind is Kind.GONE:
            gone = self._pod_of.get(event.path)
            self._forget(event.path)
            return {gone} if gone else set()
        pod = self._pod_of.get(event.folder)
        if event.kind is Kind.WRITTEN:
            return ({pod} if pod else followed) if event.name in self._hierarchy.watched else set()
        if pod:
            return {pod}
        return self._appeared(event)

    def _appeared(self, event: FileEvent) -> set[str]:
        """Something new among or above kubelet's folders: the pods that are missing may be there now, or below it soon."""
        if self.missing and not is_pod_folder(event.name):
            with suppress(UnsupportedByNode):  # whoever is missing is followed now, and told so then
                self._watch_places(tree(event.path))
        return set(self.missing)
