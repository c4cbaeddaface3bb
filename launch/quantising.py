"""--quantise: whose weights are held in 8 bits."""

from absl import flags

from internvl_jax.models import QUANTISED

HOW = flags.DEFINE_enum(
    "quantise",
    None,
    QUANTISED,
    "int8: the products of the language model's layers in 8 bits; w8a8: what they are multiplied with, too; mxfp4: "
    "GPT-OSS's experts as released; by default all as the checkpoint has it",
)
