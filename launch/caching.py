"""--cache: how keys and values are kept."""

from absl import flags

from internvl_jax.errors import InputError
from internvl_jax.models import CACHES, PartName
from launch import quantising

KEPT = flags.DEFINE_enum("cache", None, CACHES, "float8: keep keys and values in 8 bits; by default as activations are")


def eight_bits(part: PartName) -> tuple[str | None, str | None]:
    """--quantise and --cache for this part of a model; InputError where they would mean nothing."""
    how = quantising.HOW.value, KEPT.value
    if part == "vision" and any(how):
        raise InputError("--quantise and --cache are the language model's; leave them out for the vision half")
    return how
