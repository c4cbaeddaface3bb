"""Flags of what a server takes, and of whom it knows."""

import dataclasses
import logging
import os
import pathlib
import sys
from typing import Any

from absl import flags

from internvl_jax.data import Processor
from internvl_jax.errors import InputError
from internvl_jax.inference import fingerprint
from internvl_jax.serving import ApiKeys, Limits, Served, requests_log
from internvl_jax.validation import nearest, read_file, read_text
from launch import checkpoint

HOST = flags.DEFINE_string("host", "127.0.0.1", "address to listen at; any but this machine's own needs keys")
_NAMES = flags.DEFINE_list("served_model_name", [], "what clients call the model; default: its directory's name")
_KEYS = flags.DEFINE_string("api_key_file", None, "file with a key of clients a line (or one in $INTERNVL_API_KEY)")
_SECRET = flags.DEFINE_string(
    "dvd_secret_file", None, "file with what vision and language servers share (or $INTERNVL_DVD_SECRET)"
)
_HOSTS = flags.DEFINE_list("picture_hosts", [], "hosts that pictures may be fetched from by their URL; default: none")
_WORKERS = flags.DEFINE_integer("workers", 2, "processes that decode pictures", 1)
_GRACE = flags.DEFINE_float("grace", 60, "seconds for answers that were begun, when the server is to end", 0)
_LOG = flags.DEFINE_bool("request_log", True, "a line on stderr for every request, with nothing of what was said")
_FIELDS = {field.name: field for field in dataclasses.fields(Limits)}
_LIMITS = flags.DEFINE_multi_string(
    "limit",
    [],
    "NAME=VALUE, a bound of what is taken; may be given several times. By default "
    + ", ".join(f"{name}={field.default}" for name, field in _FIELDS.items()),
)


def keys() -> ApiKeys:
    """The keys of clients; InputError where the address needs some and there are none."""
    found = ApiKeys.load(_KEYS.value)
    found.check_host(HOST.value)
    return found


def secret() -> bytes | None:
    """What vision and language servers share."""
    if _SECRET.value is not None:
        return read_file(_SECRET.value).strip()
    return os.environ.get("INTERNVL_DVD_SECRET", "").encode() or None


def limits() -> Limits:
    """What is taken of a request; InputError for a limit that there isn't, or a value that can't be."""
    found: dict[str, Any] = {}
    for text in _LIMITS.value:
        name, _, value = text.partition("=")
        if name not in _FIELDS:
            raise InputError(f"--limit={text}: there is no limit {name!r}{nearest(name, _FIELDS)}")
        found[name] = read_text(value, _FIELDS[name].type, f"--limit={name}")
    return Limits(**found)


def log_requests() -> None:
    """Lets the server tell of requests, if it may."""
    requests_log.addHandler(logging.StreamHandler(sys.stderr))
    requests_log.propagate = False
    requests_log.setLevel(logging.INFO if _LOG.value else logging.WARNING)


def served(model: Any, processor: Processor, vision: list[str]) -> Served:
    """How the model is served."""
    names = tuple(_NAMES.value) or (pathlib.Path(checkpoint.directory()).resolve().name,)
    hosts = frozenset(_HOSTS.value)
    more = fingerprint(model, processor), keys(), hosts, _WORKERS.value, _GRACE.value, limits(), tuple(vision), secret()
    return Served(names, *more)
