"""Released PyTorch checkpoints into JAX and back: a table of rows per family and format, read and written in slices.

`load_released` gives a model straight from a safetensors directory; `convert` writes any format from any other.
"""

from checkpoint_convert import sink
from checkpoint_convert.conversion import Format, convert
from checkpoint_convert.describe import describe
from checkpoint_convert.export_config import released_config
from checkpoint_convert.hf_config import language_model
from checkpoint_convert.released import (
    load_bare,
    load_model,
    load_processor,
    load_released,
    load_vision_tower,
    read_model_config,
)
from checkpoint_convert.source import open_directory
from checkpoint_convert.tables import TABLES

__all__ = [
    "Format",
    "TABLES",
    "convert",
    "describe",
    "language_model",
    "load_bare",
    "load_model",
    "load_processor",
    "load_released",
    "load_vision_tower",
    "open_directory",
    "read_model_config",
    "released_config",
    "sink",
]
