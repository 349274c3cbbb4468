"""Which module reads which source. Adapters are imported on first use: their clients are large, and only workers need them."""

from __future__ import annotations

from collections.abc import Mapping

from csi.errors import InvalidParameter
from csi.sources.source import Source
from csi.spec.cache import CacheSpec
from csi.spec.hub import HubSpec

TOKEN_KEYS = ("token", "accessToken", "HF_TOKEN", "MODELSCOPE_API_TOKEN")


def open_source(spec: CacheSpec, secrets: Mapping[str, str]) -> Source:
    """The source that `spec` names, with the credential found in `secrets`.

    Raises InvalidParameter when a Secret was given that holds none of the keys this source reads.
    """
    if isinstance(spec.source, HubSpec):
        from csi.sources.huggingface import HuggingFaceSource

        return HuggingFaceSource(spec, token(secrets))
    from csi.sources.nas import NasSource

    return NasSource(spec)


def token(secrets: Mapping[str, str]) -> str | None:
    """The hub token in a Secret (one of TOKEN_KEYS), None where no Secret was given."""
    found = next((secrets[key].strip() for key in TOKEN_KEYS if secrets.get(key, "").strip()), None)
    if secrets and found is None:
        raise InvalidParameter(f"the Secret of this volume has none of the keys {', '.join(TOKEN_KEYS)}; put the hub's token under `token`")
    return found
