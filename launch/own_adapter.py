"""--adapter of the launchers that ask one model: an adapter that lies apart from it."""

from absl import flags

from checkpoint_convert import Adapter, read_adapter
from launch import checkpoint

_ADAPTER = flags.DEFINE_string(
    "adapter", None, "folder of a PEFT adapter to answer with, beside the model that --checkpoint names"
)


def given() -> Adapter | None:
    """The adapter, if one was asked for; InputError for one that can't be read, or is of another model."""
    return None if _ADAPTER.value is None else read_adapter(_ADAPTER.value, checkpoint.model_config())
