"""--cache: how keys and values are kept."""

from absl import flags

from internvl_jax.models import CACHES

KEPT = flags.DEFINE_enum("cache", None, CACHES, "float8: keep keys and values in 8 bits; by default as activations are")
