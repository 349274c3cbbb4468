"""The five calls of ECI's DataCache API, over whoever keeps DataCaches."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from controller_plugin.operator.openapi.answers import described
from controller_plugin.operator.openapi.parameters import MOST_NAME, MOST_TOKEN, Parameters
from controller_plugin.operator.openapi.refusals import Refusal, invalid, missing, unknown_cache
from controller_plugin.operator.regions.regions import Copy, Regions
from csi.destinations.allow_list import AllowList
from csi.errors import AlreadyExists, Busy, DataCacheError, FailedPrecondition
from csi.parameters.data_cache import MOST_DAYS, MOST_GIB, DataCacheSpec, checked_bucket, checked_path, data_cache, split_secrets
from csi.registry.datacaches.codec import encode_spec
from csi.registry.datacaches.data_caches import DataCache, DataCaches, Phase

VERSION = "2018-08-08"
DEFAULT_LIMIT, MOST_LIMIT = 20, 100
# So many tokens of deletions are known again; with several replicas, by the one that was asked.
_MOST_DELETED = 1024
_AT_WORK = (Phase.LOADING, Phase.CREATING, Phase.UPDATING)
# They belong to the cloud's own network, which this driver does not make; numbers among them are looked at all the same.
_EIP_BANDWIDTH = "EipCreateParam.Bandwidth"

Action = Callable[[Parameters, str], dict[str, Any]]


class Actions:
    """Answers calls; `region` is what this place calls itself. All raise Refusal and DataCacheError. Thread-safe."""

    def __init__(self, caches: DataCaches, allowed: AllowList, regions: Regions, region: str) -> None:
        self._caches, self._allowed, self._regions, self._region = caches, allowed, regions, region
        self._deleted: dict[str, tuple[str, ...]] = {}
        self._actions: dict[str, Action] = {
            "CreateDataCache": self._create,
            "DescribeDataCaches": self._describe,
            "UpdateDataCache": self._update,
            "DeleteDataCache": self._delete,
            "CopyDataCache": self._copy,
        }

    def answer(self, action: str, parameters: Parameters, request_id: str) -> dict[str, Any]:
        """What is answered beside the RequestId."""
        if action not in self._actions:
            raise Refusal(404, "InvalidAction.NotFound", f"There is no such call; there are {', '.join(self._actions)}.")
        region = parameters.text("RegionId")
        if region and region != self._region:
            raise Refusal(404, "InvalidRegionId.NotFound", f"This is region {self._region}, and no other.")
        return self._actions[action](parameters, request_id)

    def _create(self, given: Parameters, request_id: str) -> dict[str, Any]:
        spec, secrets = self._spec(given, checked_path(given.needed("Path")))
        title, group, token = given.text("Name", MOST_NAME), given.text("ResourceGroupId"), given.text("ClientToken", MOST_TOKEN)
        asked = DataCache("", "", 0, 0.0, spec, title=title, tags=given.tags, resource_group=group, token=token)
        if not token:
            return {"DataCacheId": self._caches.add(asked, secrets).id}
        asked = replace(asked, asked=_hashed(asked))
        made = self._made_before(asked, secrets)
        try:
            return {"DataCacheId": (made or self._caches.add(asked, secrets)).id}
        except AlreadyExists:
            # Another call of this token may be what was first.
            made = self._made_before(asked, secrets)
            if made is None:
                raise
            return {"DataCacheId": made.id}

    def _made_before(self, asked: DataCache, secrets: Mapping[str, str]) -> DataCache | None:
        """The one that a call of the same token has made, with the credential, which that call may not have come to."""
        made = next((cache for cache in self._caches.find() if cache.token == asked.token), None)
        if made is None:
            return None
        if made.asked != asked.asked:
            raise _mismatch()
        return self._caches.change(made, lambda cache: cache, secrets) if secrets and not self._has_credential(made) else made

    def _has_credential(self, made: DataCache) -> bool:
        try:
            return bool(self._caches.credential(made))
        except (Busy, FailedPrecondition):
            return False

    def _spec(self, given: Parameters, path: str, old: DataCacheSpec | None = None) -> tuple[DataCacheSpec, dict[str, str]]:
        """What is asked for, with what is not given as it was, and the credentials."""
        given.number(_EIP_BANDWIDTH, 1, 1000)
        kind, options = given.text("DataSource.Type"), given.options
        if not kind and (old is None or options):
            raise missing("DataSource.Type")
        plain, secrets = split_secrets(options)
        plain = {key: value for key, value in plain.items() if value}
        size, days = given.number("Size", 1, MOST_GIB), given.number("RetentionDays", 1, MOST_DAYS)
        spec = data_cache(
            given.text("Bucket"),
            path,
            kind or (old.type if old else ""),
            plain if kind or old is None else old.options,
            size_gib=size if size or old is None else old.size_gib,
            retention_days=days if days or old is None else old.retention_days,
            networks=_networks(given, old),
            namespaces=old.namespaces if old else (),
            node_selector=old.node_selector if old else None,
        )
        spec.check()
        if not spec.snapshot_id:
            self._allowed.check(spec.parameters())
        return spec, secrets

    def _describe(self, given: Parameters, request_id: str) -> dict[str, Any]:
        ids, bucket, path = given.ids, given.text("Bucket"), given.text("Path")
        limit = given.number("Limit", 1, MOST_LIMIT) or DEFAULT_LIMIT
        found = self._caches.find(ids, checked_bucket(bucket) if bucket else "", checked_path(path) if path else "")
        fitting = [cache for cache in found if _fits(cache, given.tags, given.text("ResourceGroupId"))]
        start = _start(fitting, given.text("NextToken"))
        page = fitting[start : start + limit]
        answer = {"DataCaches": [described(cache, self._region) for cache in page], "TotalCount": len(fitting)}
        return answer | ({"NextToken": _token(page[-1])} if start + limit < len(fitting) else {})

    def _update(self, given: Parameters, request_id: str) -> dict[str, Any]:
        found = self._named(given.needed("DataCacheId"))
        if given.text("Bucket") and checked_bucket(given.text("Bucket")) != found.spec.bucket:
            raise invalid("Bucket", f"that of {found.id} is {found.spec.bucket} and cannot change; create another DataCache")
        if given.text("Path") and checked_path(given.text("Path")) != found.spec.path:
            raise invalid("Path", f"that of {found.id} is {found.spec.path} and cannot change; create another DataCache")
        refresh = given.text("ClientToken", MOST_TOKEN) or request_id
        if found.phase in _AT_WORK and refresh != found.spec.refresh:
            raise Refusal(403, "IncorrectStatus", f"{found.id} is {found.phase.value}; wait until it is Available or Failed.")
        spec, secrets = self._spec(given, found.spec.path, found.spec)
        spec = replace(spec, bucket=found.spec.bucket, refresh=refresh)
        title, tags, group = given.text("Name", MOST_NAME), given.tags, given.text("ResourceGroupId")
        keeps = bool(secrets) or _keeps_credential(given, spec, found.spec)

        def updated(cache: DataCache) -> DataCache:
            return replace(
                cache,
                spec=spec,
                secret=cache.secret if keeps else None,
                title=title or cache.title,
                tags=tags or cache.tags,
                resource_group=group or cache.resource_group,
            )

        if self._caches.change(found, updated, secrets or None) is None:
            raise unknown_cache(found.id)
        return {}

    def _delete(self, given: Parameters, request_id: str) -> dict[str, Any]:
        cache_id, path, token = given.text("DataCacheId"), given.text("Path"), given.text("ClientToken", MOST_TOKEN)
        if not cache_id and not path:
            raise missing("DataCacheId")
        bucket, path = (given.text("Bucket"), path) if cache_id else (checked_bucket(given.text("Bucket")), checked_path(path))
        target = (cache_id, bucket, path)
        if token and (before := self._deleted.get(token)):
            if before != target:
                raise _mismatch()
            return {}
        found = self._caches.find((cache_id,)) if cache_id else self._caches.find(bucket=bucket, path=path)
        if not found:
            raise unknown_cache(cache_id or path)
        self._caches.delete(found[0])
        if token:
            self._deleted[token] = target
            while len(self._deleted) > _MOST_DELETED:
                self._deleted.pop(next(iter(self._deleted)))
        return {}

    def _copy(self, given: Parameters, request_id: str) -> dict[str, Any]:
        found, region = self._named(given.needed("DataCacheId")), given.needed("DestinationRegionId")
        bucket, path = given.text("Bucket") or found.spec.bucket, given.text("Path") or found.spec.path
        copy = Copy(
            checked_bucket(bucket),
            checked_path(path),
            given.text("Name", MOST_NAME) or found.title,
            given.number("RetentionDays", 1, MOST_DAYS),
            given.tags,
            given.text("ResourceGroupId"),
            given.text("ClientToken", MOST_TOKEN),
        )
        if found.state.content is None or found.phase is not Phase.AVAILABLE:
            raise Refusal(403, "IncorrectStatus", f"{found.id} is {found.phase.value}; wait until it is Available.")
        return {"DataCacheId": self._regions.copy(found, region, copy)}

    def _named(self, cache_id: str) -> DataCache:
        found = self._caches.find((cache_id,))
        if not found:
            raise unknown_cache(cache_id)
        return found[0]


def _mismatch() -> Refusal:
    return Refusal(400, "IdempotentParameterMismatch", "A call of this ClientToken had other parameters; use another token.")


def _networks(given: Parameters, old: DataCacheSpec | None) -> tuple[str, str]:
    """The vSwitch and the security group, each as it was where it is not given."""
    switch, group, *_ = (*(old.networks if old else ()), "", "")
    return given.text("VSwitchId") or switch, given.text("SecurityGroupId") or group


def _keeps_credential(given: Parameters, spec: DataCacheSpec, old: DataCacheSpec) -> bool:
    """Whether an update that brings no credential goes on with the one before: never with one of another source, which would learn it."""
    options = given.options
    if not given.text("DataSource.Type"):
        return True
    names_one = len(split_secrets(options)[0]) < len(options)
    try:
        return not names_one and spec.credential_for == old.credential_for
    except DataCacheError:
        return False


def _hashed(asked: DataCache) -> str:
    """What a call asks for, but for the values of credentials, which a hash would give away to who guesses."""
    return hashlib.sha256(json.dumps(encode_spec(asked), sort_keys=True).encode()).hexdigest()


def _fits(cache: DataCache, tags: dict[str, str], group: str) -> bool:
    """Whether a cache has all tags, a tag without a value in any, and is of the resource group."""
    has = all(key in cache.tags and value in ("", cache.tags[key]) for key, value in tags.items())
    return has and group in ("", cache.resource_group)


def _token(cache: DataCache) -> str:
    return base64.urlsafe_b64encode(json.dumps([cache.created, cache.uid]).encode()).decode()


def _start(caches: Sequence[DataCache], token: str) -> int:
    """Where the page behind a token begins; those that are gone meanwhile shift nothing."""
    if not token:
        return 0
    try:
        created, uid = json.loads(base64.urlsafe_b64decode(token.encode()))
        behind = (float(created), str(uid))
    except (ValueError, TypeError, binascii.Error):
        raise invalid("NextToken", "it is none that this API gave out") from None
    return next((number for number, cache in enumerate(caches) if (cache.created, cache.uid) > behind), len(caches))
