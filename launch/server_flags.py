"""Flags of what a server takes, and of what it tells."""

import dataclasses
import logging
import sys
from typing import Any

from absl import flags

from internvl_jax.data import Processor
from internvl_jax.errors import InputError
from internvl_jax.inference import fingerprint
from internvl_jax.serving import Limits, Served, requests_log
from internvl_jax.validation import nearest, read_text
from launch import checkpoint, server_adapters, server_doors

_NAMES = flags.DEFINE_list("served_model_name", [], "what clients call the model; default: its directory's name")
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


def limits() -> Limits:
    """What is taken of a request; InputError for a limit that there isn't, or a value that can't be."""
    found: dict[str, Any] = {}
    for text in _LIMITS.value:
        name, _, value = text.partition("=")
        if name not in _FIELDS:
            raise InputError(
                f"--limit={text}: there is no limit {name!r}{nearest(name, _FIELDS)}; there are {', '.join(_FIELDS)}"
            )
        found[name] = read_text(value, _FIELDS[name].type, f"--limit={name}")
    return Limits(**found)


def served(model: Any, processor: Processor, vision: list[str]) -> Served:
    """How the model is served, with these vision servers if any."""
    return Served(
        tuple(_NAMES.value) or (checkpoint.directory().resolve().name,),
        fingerprint(model, processor),
        server_doors.keys(),
        frozenset(server_doors.PICTURE_HOSTS.value),
        _WORKERS.value,
        _GRACE.value,
        limits(),
        tuple(vision),
        server_doors.secret(),
        server_adapters.sources(),
    )


def log_requests() -> None:
    """Lets the server tell of requests, if it may."""
    requests_log.addHandler(logging.StreamHandler(sys.stderr))
    requests_log.propagate = False
    requests_log.setLevel(logging.INFO if _LOG.value else logging.WARNING)
