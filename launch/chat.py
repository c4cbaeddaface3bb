"""Asks a model about images.

    python -m launch.chat --checkpoint=DIR --image=photo.jpg --prompt="What is this?"

prints the answer as the last line. Without --prompt it opens a conversation: type a message and Enter; `/image PATH`
adds a picture to the next message, `/clear` starts anew, `/quit` (or Ctrl-D) ends.

A Flash model shows tiles with a quarter of their tokens where its router finds that enough; two flags set how readily.
With --prompt, stderr then says how many tokens each picture took, and --router_picture=FILE.png draws which tiles.
"""

import sys
from typing import Any

from absl import flags

from internvl_jax.data import split_thinking
from internvl_jax.errors import InputError
from internvl_jax.evaluation import router_overlay
from internvl_jax.files import whole_file
from internvl_jax.inference import SamplingParams, Thresholds, complete, terminal
from launch import checkpoint
from launch import main as launcher

_PROMPT = flags.DEFINE_string("prompt", None, "one question; without it, a conversation in the terminal")
_IMAGE = flags.DEFINE_multi_string("image", [], "picture for the (first) question; may be given several times")
_REASONING = flags.DEFINE_enum("reasoning", None, ["low", "medium", "high"], "effort of GPT-OSS models; low is theirs")
_THINKING = flags.DEFINE_boolean("thinking", False, "also show what the model thinks before it answers")
_PICTURE = flags.DEFINE_string("router_picture", None, "Flash: draw the router's decisions into this PNG file")
_SAMPLING = {
    "max_new_tokens": flags.DEFINE_integer("max_new_tokens", 256, "longest answer, in tokens"),
    "temperature": flags.DEFINE_float("temperature", 0.0, "0 gives the likeliest answer, higher values vary it"),
    "top_p": flags.DEFINE_float("top_p", 1.0, "draw from the likeliest tokens of this total probability"),
    "top_k": flags.DEFINE_integer("top_k", 0, "draw from this many likeliest tokens; 0 for all"),
    "repetition_penalty": flags.DEFINE_float("repetition_penalty", 1.0, "above 1 avoids repetition"),
    "seed": flags.DEFINE_integer("seed", 0, "of the random draws"),
}
_THRESHOLDS = {
    "relative": flags.DEFINE_float("relative_threshold", None, "Flash: share of tiles kept full; default: the model's"),
    "absolute": flags.DEFINE_float(
        "absolute_threshold", None, "Flash: compress a tile the router gives this probability; default: the model's"
    ),
}


def main(argv: list[str]) -> None:
    del argv
    sampling: dict[str, Any] = {name: flag.value for name, flag in _SAMPLING.items()}
    thresholds = Thresholds(**{name: flag.value for name, flag in _THRESHOLDS.items()})
    model, processor = checkpoint.load()
    processor = processor.with_reasoning(_REASONING.value) if _REASONING.value else processor
    if _PROMPT.value is None:
        if _PICTURE.value:
            raise InputError("--router_picture draws the pictures of one question; give it with --prompt")
        settings = {**sampling, "thinking": _THINKING.value, "thresholds": thresholds}
        terminal.converse(model, processor, settings, _IMAGE.value)
        return
    if _PICTURE.value:
        drawn = router_overlay(model, processor, _IMAGE.value, thresholds)
        with whole_file(_PICTURE.value) as temporary:
            drawn.save(temporary, "png")
    messages, params = [terminal.message(_PROMPT.value, _IMAGE.value)], SamplingParams(**sampling)
    answer = complete(model, processor, messages, params, thresholds)
    if model.config.flash is not None:
        print(f"tokens of the pictures: {list(answer.picture_tokens)}", file=sys.stderr)
    print(answer.text if _THINKING.value else split_thinking(answer.text)[1])


if __name__ == "__main__":
    launcher.run(main)
