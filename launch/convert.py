"""Converts a released InternVL3.5 checkpoint into a model directory of this project.

    python -m launch.convert --src=InternVL3_5-1B --dst=models/1b --to=orbax

Reads both released formats (GitHub and Hugging Face). The last line of stdout is JSON: tensors, bytes, seconds and
peak_rss.
"""

from absl import flags

from checkpoint_convert import convert_to_orbax
from internvl_jax.errors import InputError
from launch import main as launcher

_SRC = flags.DEFINE_string("src", None, "Folder of a released checkpoint: config.json, safetensors, tokenizer files.")
_DST = flags.DEFINE_string("dst", None, "Folder to write; it must not exist yet.")
_TO = flags.DEFINE_string("to", "orbax", "Format to write; 'orbax' is the one that training and chat read.")
flags.mark_flags_as_required(["src", "dst"])


def main(argv: list[str]) -> None:
    del argv
    if _TO.value != "orbax":
        raise InputError(f"--to={_TO.value} is not supported yet; use --to=orbax")
    print(convert_to_orbax(_SRC.value, _DST.value).to_json())


if __name__ == "__main__":
    launcher.run(main)
