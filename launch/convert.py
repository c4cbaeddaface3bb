"""Converts a checkpoint: released in GitHub or Hugging Face format, or of this project, each into each.

    python -m launch.convert --src=InternVL3_5-1B --dst=models/1b --to=orbax
    python -m launch.convert --src=runs/sft --dst=InternVL3_5-1B-mine --to=hf --dtype=bfloat16

    python -m launch.convert --src=InternVL3_5-1B-HF --adapter=my_adapter --dst=merged --to=hf
    python -m launch.convert --src=runs/lora --dst=my_adapter --to=peft

    python -m launch.convert --src=InternVL3_5-8B --dst=models/8b-int8 --quantise=int8

Memory stays small: slices are read and written at the same time, and nothing appears under --dst until all of it is
there. The last line of stdout is JSON: tensors, bytes, seconds and peak_rss.
"""

from typing import cast

from absl import flags

from checkpoint_convert import Format, convert
from internvl_jax.models import Quantised
from launch import hub, paths, quantising
from launch import main as launcher

_SRC = flags.DEFINE_string(
    "src",
    None,
    "Folder of a released checkpoint (config.json, safetensors, tokenizer files), of a model of this "
    "project, or of a training run, whose last step is taken.",
)
_DST = flags.DEFINE_string("dst", None, "Folder to write; it must not exist yet.")
_TO = flags.DEFINE_enum(
    "to",
    "orbax",
    ["orbax", "github", "hf", "peft", "peft-github", "peft-hf"],
    "Format to write: 'orbax' is what training and chat read, 'hf' what transformers loads by itself, 'github' what "
    "InternVL's own code, vLLM and LMDeploy load. 'peft' writes the adapter of a training run alone, with the names of "
    "its base's format; 'peft-github' and 'peft-hf' with those names.",
)
_ADAPTER = flags.DEFINE_string("adapter", None, "Folder of a PEFT adapter, to be merged into what is written.")
_DTYPE = flags.DEFINE_enum(
    "dtype", "stored", ["stored", "float32", "bfloat16", "float16"], "Of the parameters; 'stored' keeps their bits."
)
flags.mark_flags_as_required(["src", "dst"])


def main(argv: list[str]) -> None:
    del argv
    paths.check_new(_DST.value, "dst")
    dtype = None if _DTYPE.value == "stored" else _DTYPE.value
    how = cast(Format, _TO.value), dtype, _ADAPTER.value, cast(Quantised | None, quantising.HOW.value)
    print(convert(hub.directory(_SRC.value), _DST.value, *how).to_json())


if __name__ == "__main__":
    launcher.run(main)
