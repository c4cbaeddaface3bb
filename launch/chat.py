"""Asks a model about images.

    python -m launch.chat --checkpoint=DIR --image=photo.jpg --prompt="What is this?"

prints the answer as the last line. Without --prompt it opens a conversation: type a message and Enter; `/image PATH`
adds a picture to the next message, `/clear` starts anew, `/quit` (or Ctrl-D) ends.
"""

from absl import flags

from internvl_jax.inference import chat, terminal
from launch import checkpoint
from launch import main as launcher

_PROMPT = flags.DEFINE_string("prompt", None, "one question; without it, a conversation in the terminal")
_IMAGE = flags.DEFINE_multi_string("image", [], "picture for the (first) question; may be given several times")
_REASONING = flags.DEFINE_enum("reasoning", None, ["low", "medium", "high"], "effort of GPT-OSS models; low is theirs")
_SAMPLING = {
    "thinking": flags.DEFINE_boolean("thinking", False, "also show what the model thinks before it answers"),
    "max_new_tokens": flags.DEFINE_integer("max_new_tokens", 256, "longest answer, in tokens"),
    "temperature": flags.DEFINE_float("temperature", 0.0, "0 gives the likeliest answer, higher values vary it"),
    "top_p": flags.DEFINE_float("top_p", 1.0, "draw from the likeliest tokens of this total probability"),
    "top_k": flags.DEFINE_integer("top_k", 0, "draw from this many likeliest tokens; 0 for all"),
    "repetition_penalty": flags.DEFINE_float("repetition_penalty", 1.0, "above 1 avoids repetition"),
    "seed": flags.DEFINE_integer("seed", 0, "of the random draws"),
}


def main(argv: list[str]) -> None:
    del argv
    sampling = {name: flag.value for name, flag in _SAMPLING.items()}
    model, processor = checkpoint.load()
    processor = processor.with_reasoning(_REASONING.value) if _REASONING.value else processor
    if _PROMPT.value is None:
        terminal.converse(model, processor, sampling, _IMAGE.value)
    else:
        print(chat(model, processor, [terminal.message(_PROMPT.value, _IMAGE.value)], **sampling))


if __name__ == "__main__":
    launcher.run(main)
