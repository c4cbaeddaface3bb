"""Released PyTorch checkpoints into JAX: a table of rows per family and format, read shard by shard.

`load_released` gives a model straight from a safetensors directory; `convert_to_orbax` writes a directory that
`internvl_jax.load` reads.
"""

from checkpoint_convert.convert import convert_to_orbax, load_model, load_released, load_vision_tower
from checkpoint_convert.describe import describe

__all__ = ["convert_to_orbax", "describe", "load_model", "load_released", "load_vision_tower"]
