"""Compares a model with a recorded reference: how far is every recorded array from ours?

    python -m launch.compare --checkpoint=tests/golden/hf_qwen3 --reference=tests/golden/hf_qwen3

Runs in float32 with exact products. The last line of stdout is JSON with the largest absolute error of each array of
the reference, and whether the greedy tokens are equal.
"""

import json
import sys

from absl import app, flags, logging

from checkpoint_convert.convert import load_bare
from internvl_jax.errors import InputError
from internvl_jax.inference.compare import compare, image_token_id, read_case

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Folder of a model: released (either format) or converted.")
_REFERENCE = flags.DEFINE_string("reference", None, "Folder with inputs.npz and outputs.npz (and meta.json).")


def main(argv: list[str]) -> None:
    try:
        if argv[1:]:
            raise InputError(f"unknown arguments {argv[1:]}; see --help")
        inputs, outputs, meta = read_case(_REFERENCE.value)
        model = load_bare(_CHECKPOINT.value, "float32", image_token_id(meta))
        print(json.dumps(compare(model, inputs, outputs)))
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    flags.FLAGS.set_default("verbosity", logging.WARNING)
    flags.mark_flags_as_required(["checkpoint", "reference"])
    app.run(main)
