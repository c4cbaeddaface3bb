"""How pairs, or labels of steps, are made: flags."""

from typing import Any

from absl import flags

from internvl_jax.errors import InputError
from internvl_jax.making import METHODS, PairConfig

_SETTINGS = {
    "method": flags.DEFINE_enum("method", "correctness", METHODS, "how pairs are made"),
    "samples": flags.DEFINE_integer(
        "samples", None, "responses to a question; default: 32, of process 4, of dropout_ntp 1", 1
    ),
    "temperature": flags.DEFINE_float("temperature", 1.0, "of the draws"),
    "top_k": flags.DEFINE_integer("top_k", 50, "draw from this many likeliest tokens; 0 for all"),
    "max_new_tokens": flags.DEFINE_integer("max_new_tokens", 4096, "longest response", lower_bound=1),
    "max_prompt_tokens": flags.DEFINE_integer("max_prompt_tokens", 8192, "longer prompts are left out", lower_bound=1),
    "start_ratio": flags.DEFINE_float("start_ratio", 0.5, "dropout_ntp: share of a response that is kept"),
    "max_pairs": flags.DEFINE_integer("max_pairs", 15, "pairs of a question, at most"),
    "length_slack": flags.DEFINE_float("length_slack", 0.1, "share by which mean lengths in pairs may differ; 1: any"),
    "reward": flags.DEFINE_string("reward", "answer", "how responses are graded"),
    "max_broken": flags.DEFINE_integer("max_broken", 0, "so many prompts may be unreadable; more stop the run"),
    "batch_size": flags.DEFINE_integer("batch_size", 32, "responses at a time", lower_bound=1),
    "completions": flags.DEFINE_integer("completions", 4, "process: completions of the beginning of a response", 1),
    "right_share": flags.DEFINE_float(
        "right_share", 0.0, "process: a step is right if more of them than this share are"
    ),
    "seed": flags.DEFINE_integer("seed", 0, "of the draws", lower_bound=0),
}
_READ_BY = {  # by those methods alone
    "start_ratio": ("dropout_ntp",),
    "max_pairs": ("correctness", "dropout_ntp"),
    "length_slack": ("correctness", "dropout_ntp"),
    "reward": ("correctness", "process"),
    "completions": ("process",),
    "right_share": ("process",),
}


def config() -> PairConfig:
    """What the flags say; InputError for one that the method doesn't read."""
    settings: dict[str, Any] = {name: flag.value for name, flag in _SETTINGS.items()}
    for name, methods in _READ_BY.items():
        if _SETTINGS[name].present and settings["method"] not in methods:
            raise InputError(f"--{name} is nothing to --method={settings['method']}; leave it out")
    settings["samples"] = settings["samples"] or {"correctness": 32, "dropout_ntp": 1, "process": 4}[settings["method"]]
    return PairConfig(**settings)
