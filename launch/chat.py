"""Asks a model about images and videos.

    python -m launch.chat --checkpoint=DIR --image=photo.jpg --prompt="What is this?"

prints the answer as the last line. Without --prompt it opens a conversation: type a message and Enter; `/image PATH`
adds a picture to the next message, `/help` lists the commands, Ctrl-C ends an answer, Ctrl-D the conversation. --video
shows frames of a video, --num_frames of them or --fps a second, of all of it or of a --clip.

A Flash model shows tiles with a quarter of their tokens where its router finds that enough; two flags set how readily.
With --prompt, stderr then says how many tokens each picture took, and --router_picture=FILE.png draws which tiles. For
any model --draw=FILE.png draws boxes and clicks of the answer over the picture, --svg=FILE.png an SVG that it wrote.

--best_of=8 has the model answer eight times, and gives the answer of most, or the one that --critic=DIR holds for best.
"""

import sys

from absl import flags

from internvl_jax.data import Processor, split_thinking
from internvl_jax.inference import Answer, complete, converse, message, saying
from internvl_jax.models import InternVLConfig
from launch import answering, best_of_chat, checkpoint, drawing, own_adapter, sampling_flags, showing, together

_PROMPT = flags.DEFINE_string("prompt", None, "one question; without it, a conversation in the terminal")
_MAX_NEW_TOKENS = flags.DEFINE_integer(
    "max_new_tokens", None, "longest answer, in tokens; default: 256, with --thinking 8192"
)


def main(argv: list[str]) -> None:
    del argv
    sampling, thresholds = sampling_flags.sampling(_MAX_NEW_TOKENS.value, 256), answering.thresholds()
    shown = showing.shown()
    drawing.check(_PROMPT.value, showing.IMAGE.value)
    if best_of_chat.is_asked():
        answer, processor = best_of_chat.answer(_PROMPT.value, shown, sampling, thresholds)
        _tell(answer, processor, checkpoint.model_config())
        return
    with answering.opened() as (model, processor):
        if _PROMPT.value is None:
            thinking = {"thinking": bool(sampling_flags.THINKING.value), "think": sampling_flags.think()}
            settings = {**vars(sampling), **thinking, "thresholds": thresholds}
            converse(model, processor, settings, shown)
            return
        drawing.draw_router(model, processor, showing.IMAGE.value, thresholds)
        messages = [message(_PROMPT.value, shown)]
        with saying("compiling, then answering"):
            answer = complete(model, processor, messages, sampling, thresholds, sampling_flags.think())
    _tell(answer, processor, model.config)


def _tell(answer: Answer, processor: Processor, config: InternVLConfig) -> None:
    if config.flash is not None:
        _tell_tokens(answer, config)
    said = split_thinking(answer.text)[1]
    print(answer.text if sampling_flags.THINKING.value else said, flush=True)
    drawing.draw(said, processor, showing.IMAGE.value)


def _tell_tokens(answer: Answer, config: InternVLConfig) -> None:
    print(f"tokens of the pictures: {list(answer.picture_tokens)}", file=sys.stderr)
    if sum(answer.picture_tokens) == config.tokens_per_tile:
        print("a question with a single tile keeps all of its tokens, whatever the router says", file=sys.stderr)


if __name__ == "__main__":
    together.run(main, own=own_adapter.given)
