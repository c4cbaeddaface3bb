"""Flags of where a server listens, and of whom it knows."""

import os

from absl import flags

from internvl_jax.serving import ApiKeys
from internvl_jax.validation import read_file

HOST = flags.DEFINE_string("host", "127.0.0.1", "address to listen at; any but this machine's own needs keys")
PICTURE_HOSTS = flags.DEFINE_list("picture_hosts", [], "hosts that pictures may be fetched from by URL; default: none")
_KEYS = flags.DEFINE_string("api_key_file", None, "file with a key of clients a line (or one in $INTERNVL_API_KEY)")
_SECRET = flags.DEFINE_string(
    "dvd_secret_file", None, "file with what vision and language servers share (or $INTERNVL_DVD_SECRET)"
)


def keys() -> ApiKeys:
    """Of clients; InputError where the address needs some and there are none."""
    found = ApiKeys.load(_KEYS.value)
    found.check_host(HOST.value)
    return found


def secret() -> bytes | None:
    """What vision and language servers share."""
    if _SECRET.value is not None:
        return read_file(_SECRET.value).strip()
    return os.environ.get("INTERNVL_DVD_SECRET", "").encode() or None
