"""Released PyTorch checkpoints into JAX and back: a table of rows per family and format, read and written in slices.

`load_released` gives a model straight from a safetensors directory; `convert` writes any format from any other.
"""

from checkpoint_convert import sink
from checkpoint_convert.adapted import attach, changed_tensors, load_adapted, merge
from checkpoint_convert.adapters import Adapter
from checkpoint_convert.conversion import Format, convert
from checkpoint_convert.describe import describe
from checkpoint_convert.export_config import released_config
from checkpoint_convert.hf_config import language_model
from checkpoint_convert.peft_reader import read_adapter
from checkpoint_convert.quantised import quantised_tensors
from checkpoint_convert.released import (
    load_bare,
    load_model,
    load_processor,
    load_released,
    load_vision_tower,
    read_model_config,
)
from checkpoint_convert.source import open_directory, read_safetensors
from checkpoint_convert.tables import TABLES

__all__ = [
    "Adapter",
    "Format",
    "TABLES",
    "attach",
    "changed_tensors",
    "convert",
    "describe",
    "language_model",
    "load_adapted",
    "load_bare",
    "load_model",
    "load_processor",
    "load_released",
    "load_vision_tower",
    "merge",
    "open_directory",
    "quantised_tensors",
    "read_adapter",
    "read_model_config",
    "read_safetensors",
    "released_config",
    "sink",
]
