"""Released PyTorch checkpoints into JAX and back: a table of rows per family and format, read and written in slices.

`load_released` gives a model straight from a safetensors directory; `convert` writes any format from any other.
"""

from checkpoint_convert.conversion import convert
from checkpoint_convert.describe import describe
from checkpoint_convert.released import load_model, load_released, load_vision_tower

__all__ = ["convert", "describe", "load_model", "load_released", "load_vision_tower"]
