"""Candidates for many questions, and then the choice among them. The model that answers is let go of before a critic is
loaded, so that the larger of the two is what must fit.
"""

import sys
from collections.abc import Sequence
from typing import Any

import jax

from internvl_jax.evaluation import BestOfFiles
from internvl_jax.inference import SamplingParams, Thresholds, candidate_seeds, complete_groups
from launch import answering, bars, best_of_flags, resuming


def write(files: Sequence[BestOfFiles], sampling: SamplingParams, thresholds: Thresholds) -> None:
    """Writes what is missing of the candidates and the choices of all files.

    Args:
      sampling: how all candidates but the first are drawn.
    """
    settings = resuming.known_by(sampling, thresholds) | {"best_of": best_of_flags.BEST_OF.value}
    _answer(files, sampling, thresholds, settings)
    by = best_of_flags.chosen_by()
    print(f"the best of {best_of_flags.BEST_OF.value} by {by}", file=sys.stderr)
    with best_of_flags.chooser() as choose:
        for file in files:
            with bars.questions(desc="choosing", total=len(file.indices)) as bar:
                file.choose(choose, settings | {"by": by}, bars.advance(bar))


def _answer(
    files: Sequence[BestOfFiles], sampling: SamplingParams, thresholds: Thresholds, settings: dict[str, Any]
) -> None:
    """Nothing keeps the model once this returns."""
    if jax.process_count() == 1 and all(file.answered(settings) for file in files):  # others wait for the first process
        return
    seeds = candidate_seeds(best_of_flags.BEST_OF.value, sampling)
    with answering.opened() as (model, processor):
        for file in files:
            ask = lambda talks, batch=file.batch: complete_groups(
                model, processor, talks, seeds, batch, sampling, None, thresholds
            )
            with bars.questions(desc="answering", total=len(file.indices)) as bar:
                file.answer(ask, settings, bars.advance(bar))
