"""The five calls of ECI's DataCache API."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from controller_plugin.operator.openapi.answers import describe_data_cache
from controller_plugin.operator.openapi.deletions import Deletions, Target, TokenReused
from controller_plugin.operator.openapi.parameters import MAX_NAME_LENGTH, MAX_TOKEN_LENGTH, ApiParameters
from controller_plugin.operator.openapi.refusals import (
    ApiRefusal,
    invalid_parameter,
    missing_parameter,
    unknown_data_cache,
)
from controller_plugin.operator.regions.regions import CopyRequest, Regions
from csi.destinations.allow_list import AllowList
from csi.errors import AlreadyExists, Busy, DataCacheError, FailedPrecondition
from csi.parameters.data_cache import (
    MAX_GIB,
    MAX_RETENTION_DAYS,
    DataCacheSpec,
    parse_bucket,
    parse_data_cache,
    parse_path,
    split_secrets,
)
from csi.registry.datacaches.codec import encode_spec
from csi.registry.datacaches.data_caches import DataCache, DataCacheRegistry, Phase

VERSION = "2018-08-08"
DEFAULT_LIMIT, MAX_LIMIT = 20, 100
_IN_PROGRESS = (Phase.LOADING, Phase.CREATING, Phase.UPDATING)
# Public network parameters belong to the cloud, and have no effect here; their values are validated all the
# same.
_EIP_BANDWIDTH = "EipCreateParam.Bandwidth"

Action = Callable[[ApiParameters, str], dict[str, Any]]


class Actions:
    """Implementation of the calls; `region` is this region's name.

    All raise ApiRefusal and DataCacheError. Thread-safe.
    """

    def __init__(
        self,
        registry: DataCacheRegistry,
        allow_list: AllowList,
        regions: Regions,
        region: str,
        deletions: Deletions,
    ) -> None:
        self._registry, self._allow_list, self._regions, self._region = registry, allow_list, regions, region
        self._deletions = deletions
        self._actions: dict[str, Action] = {
            "CreateDataCache": self._create_data_cache,
            "DescribeDataCaches": self._describe_data_caches,
            "UpdateDataCache": self._update_data_cache,
            "DeleteDataCache": self._delete_data_cache,
            "CopyDataCache": self._copy_data_cache,
        }

    def call(self, action: str, parameters: ApiParameters, request_id: str) -> dict[str, Any]:
        """Handle a call and return its answer without the RequestId."""
        if action not in self._actions:
            raise ApiRefusal(
                404,
                "InvalidAction.NotFound",
                f"There is no such call; use one of {', '.join(self._actions)}.",
            )
        region = parameters.get_text("RegionId")
        if region and region != self._region:
            raise ApiRefusal(404, "InvalidRegionId.NotFound", f"This is region {self._region}; use that one.")
        return self._actions[action](parameters, request_id)

    def _create_data_cache(self, parameters: ApiParameters, request_id: str) -> dict[str, Any]:
        spec, secrets = self._parse_spec(parameters, parse_path(parameters.require_text("Path")))
        title, group, token = (
            parameters.get_text("Name", MAX_NAME_LENGTH),
            parameters.get_text("ResourceGroupId"),
            parameters.get_text("ClientToken", MAX_TOKEN_LENGTH),
        )
        requested = DataCache(
            "", "", 0, 0.0, spec, title=title, tags=parameters.tags, resource_group=group, client_token=token
        )
        if not token:
            return {"DataCacheId": self._registry.add(requested, secrets).id}
        requested = replace(requested, request_hash=_hash_request(requested))
        existing = self._find_by_client_token(requested, secrets)
        try:
            return {"DataCacheId": (existing or self._registry.add(requested, secrets)).id}
        except AlreadyExists:
            # The existing cache may be that of a concurrent call with the same token.
            existing = self._find_by_client_token(requested, secrets)
            if existing is None:
                raise
            return {"DataCacheId": existing.id}

    def _find_by_client_token(self, requested: DataCache, secrets: Mapping[str, str]) -> DataCache | None:
        """Return the cache created by a call with the same token.

        Its credential is stored now if that call did not get so far.
        """
        existing = next(
            (cache for cache in self._registry.find() if cache.client_token == requested.client_token), None
        )
        if existing is None:
            return None
        if existing.request_hash != requested.request_hash:
            raise _token_mismatch()
        return (
            self._registry.change(existing, lambda cache: cache, secrets)
            if secrets and not self._has_credential(existing)
            else existing
        )

    def _has_credential(self, cache: DataCache) -> bool:
        try:
            return bool(self._registry.read_credential(cache))
        except (Busy, FailedPrecondition):
            return False

    def _parse_spec(
        self, parameters: ApiParameters, path: str, old: DataCacheSpec | None = None
    ) -> tuple[DataCacheSpec, dict[str, str]]:
        """Parse the requested spec and the credentials.

        Parameters that are not given keep their `old` values.
        """
        parameters.get_number(_EIP_BANDWIDTH, 1, 1000)
        kind, options = parameters.get_text("DataSource.Type"), parameters.options
        if not kind and (old is None or options):
            raise missing_parameter("DataSource.Type")
        public_options, secrets = split_secrets(options)
        public_options = {key: value for key, value in public_options.items() if value}
        size, days = (
            parameters.get_number("Size", 1, MAX_GIB),
            parameters.get_number("RetentionDays", 1, MAX_RETENTION_DAYS),
        )
        spec = parse_data_cache(
            parameters.get_text("Bucket"),
            path,
            kind or (old.type if old else ""),
            public_options if kind or old is None else old.options,
            size_gib=size if size or old is None else old.size_gib,
            retention_days=days if days or old is None else old.retention_days,
            networks=_parse_networks(parameters, old),
            namespaces=old.namespaces if old else (),
            node_selector=old.node_selector if old else None,
        )
        spec.check()
        if not spec.snapshot_id:
            self._allow_list.check(spec.to_volume_parameters())
        return spec, secrets

    def _describe_data_caches(self, parameters: ApiParameters, request_id: str) -> dict[str, Any]:
        ids, bucket, path = parameters.ids, parameters.get_text("Bucket"), parameters.get_text("Path")
        limit = parameters.get_number("Limit", 1, MAX_LIMIT) or DEFAULT_LIMIT
        caches = self._registry.find(
            ids, parse_bucket(bucket) if bucket else "", parse_path(path) if path else ""
        )
        matching = [
            cache
            for cache in caches
            if _matches_filter(cache, parameters.tags, parameters.get_text("ResourceGroupId"))
        ]
        start = _find_page_start(matching, parameters.get_text("NextToken"))
        page = matching[start : start + limit]
        answer = {
            "DataCaches": [describe_data_cache(cache, self._region) for cache in page],
            "TotalCount": len(matching),
        }
        return answer | ({"NextToken": _encode_page_token(page[-1])} if start + limit < len(matching) else {})

    def _update_data_cache(self, parameters: ApiParameters, request_id: str) -> dict[str, Any]:
        cache = self._get_data_cache(parameters.require_text("DataCacheId"))
        if parameters.get_text("Bucket") and parse_bucket(parameters.get_text("Bucket")) != cache.spec.bucket:
            raise invalid_parameter(
                "Bucket",
                f"that of {cache.id} is {cache.spec.bucket} and cannot change; create another DataCache",
            )
        if parameters.get_text("Path") and parse_path(parameters.get_text("Path")) != cache.spec.path:
            raise invalid_parameter(
                "Path", f"that of {cache.id} is {cache.spec.path} and cannot change; create another DataCache"
            )
        refresh = parameters.get_text("ClientToken", MAX_TOKEN_LENGTH) or request_id
        if cache.phase in _IN_PROGRESS and refresh != cache.spec.refresh:
            raise ApiRefusal(
                403,
                "IncorrectStatus",
                f"{cache.id} is {cache.phase.value}; wait until it is Available or Failed.",
            )
        spec, secrets = self._parse_spec(parameters, cache.spec.path, cache.spec)
        spec = replace(spec, bucket=cache.spec.bucket, refresh=refresh)
        title, tags, group = (
            parameters.get_text("Name", MAX_NAME_LENGTH),
            parameters.tags,
            parameters.get_text("ResourceGroupId"),
        )
        keeps_credential = bool(secrets) or _keeps_credential(parameters, spec, cache.spec)

        def update(cache: DataCache) -> DataCache:
            return replace(
                cache,
                spec=spec,
                secret_ref=cache.secret_ref if keeps_credential else None,
                title=title or cache.title,
                tags=tags or cache.tags,
                resource_group=group or cache.resource_group,
            )

        if self._registry.change(cache, update, secrets or None) is None:
            raise unknown_data_cache(cache.id)
        return {}

    def _delete_data_cache(self, parameters: ApiParameters, request_id: str) -> dict[str, Any]:
        cache_id, path, token = (
            parameters.get_text("DataCacheId"),
            parameters.get_text("Path"),
            parameters.get_text("ClientToken", MAX_TOKEN_LENGTH),
        )
        if not cache_id and not path:
            raise missing_parameter("DataCacheId")
        bucket, path = (
            (parameters.get_text("Bucket"), path)
            if cache_id
            else (parse_bucket(parameters.get_text("Bucket")), parse_path(path))
        )
        target = (cache_id, bucket, path)
        if token and self._was_deleted_before(token, target):
            return {}
        caches = (
            self._registry.find((cache_id,)) if cache_id else self._registry.find(bucket=bucket, path=path)
        )
        if not caches:
            raise unknown_data_cache(cache_id or path)
        self._registry.delete(caches[0])
        if token:
            self._deletions.remember(token, target)
        return {}

    def _was_deleted_before(self, token: str, target: Target) -> bool:
        try:
            return self._deletions.has_deleted(token, target)
        except TokenReused as error:
            raise _token_mismatch() from error

    def _copy_data_cache(self, parameters: ApiParameters, request_id: str) -> dict[str, Any]:
        cache, region = (
            self._get_data_cache(parameters.require_text("DataCacheId")),
            parameters.require_text("DestinationRegionId"),
        )
        bucket, path = (
            parameters.get_text("Bucket") or cache.spec.bucket,
            parameters.get_text("Path") or cache.spec.path,
        )
        copy = CopyRequest(
            parse_bucket(bucket),
            parse_path(path),
            parameters.get_text("Name", MAX_NAME_LENGTH) or cache.title,
            parameters.get_number("RetentionDays", 1, MAX_RETENTION_DAYS),
            parameters.tags,
            parameters.get_text("ResourceGroupId"),
            parameters.get_text("ClientToken", MAX_TOKEN_LENGTH),
        )
        if cache.state.content is None or cache.phase is not Phase.AVAILABLE:
            raise ApiRefusal(
                403, "IncorrectStatus", f"{cache.id} is {cache.phase.value}; wait until it is Available."
            )
        return {"DataCacheId": self._regions.start_copy(cache, region, copy)}

    def _get_data_cache(self, cache_id: str) -> DataCache:
        caches = self._registry.find((cache_id,))
        if not caches:
            raise unknown_data_cache(cache_id)
        return caches[0]


def _token_mismatch() -> ApiRefusal:
    return ApiRefusal(
        400,
        "IdempotentParameterMismatch",
        "A call with this ClientToken had other parameters; use another token.",
    )


def _parse_networks(parameters: ApiParameters, old: DataCacheSpec | None) -> tuple[str, str]:
    """Return vSwitch and security group, each with its old value if not given."""
    switch, group, *_ = (*(old.networks if old else ()), "", "")
    return parameters.get_text("VSwitchId") or switch, parameters.get_text("SecurityGroupId") or group


def _keeps_credential(parameters: ApiParameters, spec: DataCacheSpec, old: DataCacheSpec) -> bool:
    """Return whether an update without a credential keeps the existing one.

    It does not for another source, which would learn the credential.
    """
    options = parameters.options
    if not parameters.get_text("DataSource.Type"):
        return True
    names_credential = len(split_secrets(options)[0]) < len(options)
    try:
        return not names_credential and spec.credential_scope == old.credential_scope
    except DataCacheError:
        return False


def _hash_request(requested: DataCache) -> str:
    """Hash the parameters of a call without credentials, since a hash would allow guessing those."""
    return hashlib.sha256(json.dumps(encode_spec(requested), sort_keys=True).encode()).hexdigest()


def _matches_filter(cache: DataCache, tags: dict[str, str], group: str) -> bool:
    """Return whether a cache has all tags and the resource group; a tag without a value matches any value."""
    has_tags = all(key in cache.tags and value in ("", cache.tags[key]) for key, value in tags.items())
    return has_tags and group in ("", cache.resource_group)


def _encode_page_token(cache: DataCache) -> str:
    return base64.urlsafe_b64encode(json.dumps([cache.created_at, cache.uid]).encode()).decode()


def _find_page_start(caches: Sequence[DataCache], token: str) -> int:
    """Return the index of the first cache after a token; caches deleted meanwhile shift nothing."""
    if not token:
        return 0
    try:
        created, uid = json.loads(base64.urlsafe_b64decode(token.encode()))
        last_key = (float(created), str(uid))
    except (ValueError, TypeError, binascii.Error):
        raise invalid_parameter("NextToken", "this API did not issue it") from None
    return next(
        (number for number, cache in enumerate(caches) if (cache.created_at, cache.uid) > last_key),
        len(caches),
    )
