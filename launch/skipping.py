"""--skip_blocks: whether attention over prompts leaves out what it can."""

from absl import flags

BLOCKS = flags.DEFINE_boolean(
    "skip_blocks",
    True,
    "attention over long prompts leaves out blocks of padding and of other texts; no answer depends on it",
)
