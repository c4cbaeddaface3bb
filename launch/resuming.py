"""What answers that are written to files depend on."""

import dataclasses
from typing import Any

from internvl_jax.inference import SamplingParams, Thresholds
from launch import answering, caching, checkpoint, quantising, sampling_flags


def known_by(sampling: SamplingParams, thresholds: Thresholds) -> dict[str, Any]:
    """By what a run that goes on knows answers: those that were begun otherwise are not taken up.

    A flag that isn't given is None, as one is that was not noted when a run began.
    """
    return {
        "sampling": dataclasses.asdict(sampling),
        "thresholds": dataclasses.asdict(thresholds),
        "checkpoint": str(checkpoint.directory()),
        "max_tiles": answering.MAX_TILES.value,
        "reasoning": sampling_flags.REASONING.value,
        "thinking": sampling_flags.THINKING.value or None,
        "quantise": quantising.HOW.value,
        "cache": caching.KEPT.value,
    }
