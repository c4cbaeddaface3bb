"""The best of several answers to a question, for `launch.chat`."""

import sys
from collections.abc import Sequence
from typing import Any

from internvl_jax.data import Messages, Processor
from internvl_jax.errors import InputError
from internvl_jax.inference import (
    Answer,
    SamplingParams,
    Thresholds,
    candidate_seeds,
    complete_groups,
    message,
    saying,
)
from launch import answering, best_of_flags, critics, drawing, sampling_flags, showing


def is_asked() -> bool:
    """See `best_of_flags.is_asked`; InputError also for a grader with nothing to say."""
    several = best_of_flags.is_asked()
    if best_of_flags.GRADER.present and (not several or critics.CRITIC.value is not None):
        raise InputError("--grader says here which answers agree; give it with --best_of=8, and no --critic")
    return several


def answer(
    prompt: str | None, shown: Sequence[str | dict[str, Any]], sampling: SamplingParams, thresholds: Thresholds
) -> tuple[Answer, Processor]:
    """The best answer, and the processor of the model that gave it. What each is worth is said on stderr.

    Args:
      shown: see `message`.
      sampling: as flags have it.
    """
    if prompt is None or sampling_flags.THINKING.value is False:
        raise InputError("--best_of is for one question; give --prompt, and no --nothinking")
    messages = [message(prompt, shown)]
    candidates, processor = _candidates(messages, best_of_flags.drawn(sampling), thresholds)
    with best_of_flags.chooser() as choose, saying("choosing"):
        choice = choose(messages, [each.text for each in candidates])
    print(f"the best of {len(candidates)} by {best_of_flags.chosen_by()}:", file=sys.stderr)
    for number, (each, value) in enumerate(zip(candidates, choice.values, strict=True)):
        mark, text = "*" if number == choice.best else " ", " ".join(each.text.split())
        print(f"{mark} {value:.3f}  {text[-90:]}", file=sys.stderr)
    return candidates[choice.best], processor


def _candidates(
    messages: Messages, sampling: SamplingParams, thresholds: Thresholds
) -> tuple[Sequence[Answer], Processor]:
    """Nothing keeps the model once this returns: a critic may need its room."""
    seeds = candidate_seeds(best_of_flags.BEST_OF.value, sampling)
    with answering.opened() as (model, processor), saying("compiling, then answering"):
        drawing.draw_router(model, processor, showing.IMAGE.value, thresholds)
        (group,) = complete_groups(model, processor, [messages], seeds, sampling=sampling, thresholds=thresholds)
    return group, processor
