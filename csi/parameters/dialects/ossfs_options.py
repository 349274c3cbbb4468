"""The key `otherOpts` of Alibaba's OSS CSI driver.

It has ossfs options for a FUSE mount that this driver does not use.
"""

from __future__ import annotations

import re
import shlex

from csi.errors import InvalidParameter

# ossfs(1): caching, logging, timeouts and permissions of the FUSE mount.
_WITHOUT_EFFECT = frozenset(
    "allow_other umask mp_umask uid gid ro nonempty max_stat_cache_size stat_cache_expire enable_noobj_cache "
    "noobj_cache_expire use_cache del_cache "
    "ensure_diskfree connect_timeout readwrite_timeout retries multipart_size parallel_count multireq_max "
    "max_dirty_data dbglevel curldbg logfile "
    "noxattr noshallowcopy notsup_compat_dir listobjectsv2 sigv1 sigv4 region direct_read "
    "direct_read_chunk_size direct_read_prefetch_chunks "
    "direct_read_prefetch_limit direct_read_backward_chunks readdir_optimize readdir_check_size "
    "symlink_in_meta complement_stat mime big_writes "
    "attr_timeout entry_timeout negative_timeout kernel_cache auto_cache".split()
)
_CREDENTIALS = frozenset(
    "passwd_file akid aksecret ak sk access_key access_key_id access_key_secret security_token "
    "sts_token ahbe_conf".split()
)
# How ossfs spells option names. A word without "=" may itself be a secret (BUCKET:ID:SECRET), so messages
# do not repeat it.
_NAME = re.compile(r"[a-z][a-z0-9_]{1,40}")


def check_ossfs_options(text: str) -> None:
    """Check that every option of `text` ("-o a -o b=1,c") can be ignored.

    Raises InvalidParameter naming an option that cannot, never its value.
    """
    try:
        arguments = shlex.split(text)
    except ValueError as error:
        raise InvalidParameter(
            "otherOpts has a quote that is not closed; write it as -o name=value -o name"
        ) from error
    options = [
        option
        for argument in arguments
        if argument != "-o"
        for option in argument.removeprefix("-o").lstrip("-").split(",")
    ]
    for number, option in enumerate(options, 1):
        _check_option(option, number)


def _check_option(option: str, number: int) -> None:
    name_text, equals, _ = option.partition("=")
    name = name_text.strip().lower()
    quoted = (
        repr(name)
        if name in _CREDENTIALS or (equals and _NAME.fullmatch(name_text))
        else f"an option (number {number})"
    )
    if name in _CREDENTIALS or "secret" in name or "token" in name or "passw" in name or ":" in name:
        raise InvalidParameter(
            f"otherOpts has {quoted}, a credential; put akId and akSecret into a Secret and name that Secret"
        )
    if name and name not in _WITHOUT_EFFECT:
        raise InvalidParameter(f"otherOpts has {quoted}, which this driver cannot honour; remove it")
