"""Compares a model with a recorded reference: how far is every recorded array from ours?

    python -m launch.compare --checkpoint=tests/golden/hf_qwen3 --reference=tests/golden/hf_qwen3

    python -m launch.compare --checkpoint=tests/golden/hf_qwen3 --adapter=DIR --merge
    python -m launch.compare --checkpoint=tests/golden/hf_qwen3 --quantise=int8 --reference=DIR

With --adapter the inputs are those of the checkpoint's case, the outputs those beside the adapter (PEFT, or a whole
checkpoint with adapters); --merge compares the merged model and its tensors (merged.safetensors) too.
With --quantise the inputs are those of the checkpoint's case, and the integers and scales of the reference
(quantized.safetensors) are compared too; from the case's own outputs come what rounding costs: mean_kl (nats),
same_argmax and same_greedy_tokens (shares).
With --mesh the model lies on several devices, by default on one, and in all processes of a pod; --chunk has the engine
read prompts in parts, --page keep keys and values in pages.
Runs in float32 with exact products. The last line of stdout is JSON with the largest absolute error of each array of
the reference, and whether the greedy tokens are equal.
"""

import json
from typing import cast

from absl import flags

from checkpoint_convert import load_adapted, load_bare
from internvl_jax.errors import InputError
from internvl_jax.evaluation import compare, compare_adapter, compare_quantised, image_token_id, read_case
from internvl_jax.models import Quantised
from launch import hub, meshes, pod, quantising
from launch import main as launcher

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Folder of a model: released (either format) or converted.")
_REFERENCE = flags.DEFINE_string("reference", None, "Folder with inputs.npz and outputs.npz (and meta.json).")
_ADAPTER = flags.DEFINE_string("adapter", None, "Folder of an adapter with outputs.npz; in place of --reference.")
_MERGE = flags.DEFINE_boolean("merge", False, "With --adapter: compare the merged model too.")
_CHUNK = flags.DEFINE_integer(
    "chunk", None, "Tokens of a prompt that the engine reads at a time; default: all.", lower_bound=1
)
_PAGE = flags.DEFINE_integer(
    "page", None, "Tokens of a page, for rows that have pages; default: they have slots.", lower_bound=1
)
flags.mark_flag_as_required("checkpoint")
flags.mark_flags_as_mutual_exclusive(["reference", "adapter"], required=True)


def main(argv: list[str]) -> None:
    del argv
    how = cast(Quantised | None, quantising.HOW.value)
    if how == "mxfp4" or (how and _ADAPTER.value):
        raise InputError("--quantise compares integers of 8 bits with those of --reference: give int8 or w8a8 and that")
    with pod.joined(saved=False) as processes:
        directory = hub.directory(_CHECKPOINT.value)
        inputs, outputs, meta = read_case(directory if _ADAPTER.value or how else _REFERENCE.value)
        given = "float32", image_token_id(meta), meshes.mesh(None), meshes.RULES.value
        if _ADAPTER.value:
            adapted, folder = load_adapted(directory, _ADAPTER.value, *given), _ADAPTER.value
            report = compare_adapter(adapted, folder, inputs, _MERGE.value, _CHUNK.value, _PAGE.value)
        elif how:
            model = load_bare(directory, *given, quantise=how)
            report = compare_quantised(model, _REFERENCE.value, inputs, _CHUNK.value, _PAGE.value, outputs)
        else:
            report = compare(load_bare(directory, *given), inputs, outputs, _CHUNK.value, _PAGE.value)
        if processes.process == 0:
            print(json.dumps(report))


if __name__ == "__main__":
    launcher.run(main)
