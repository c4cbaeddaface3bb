"""--limit of the launcher that serves."""

import dataclasses

from absl import flags

from internvl_jax.errors import InputError
from internvl_jax.serving import Limits
from internvl_jax.validation import nearest, read_text

_FIELDS = {field.name: field for field in dataclasses.fields(Limits)}
_LIMITS = flags.DEFINE_multi_string(
    "limit",
    [],
    "NAME=VALUE, a bound of what is taken; may be given several times. By default "
    + ", ".join(f"{name}={field.default}" for name, field in _FIELDS.items()),
)


def given() -> Limits:
    """The limits that flags ask for; InputError for one that there isn't, or a value that can't be."""
    found = {}
    for text in _LIMITS.value:
        name, _, value = text.partition("=")
        if name not in _FIELDS:
            raise InputError(f"--limit={text}: there is no limit {name!r}{nearest(name, _FIELDS)}")
        found[name] = read_text(value, _FIELDS[name].type, f"--limit={name}")
    return Limits(**found)
