"""How answers are written and whether the model thinks before: flags, and what holds where they aren't given."""

from typing import Any

from absl import flags

from internvl_jax.data import THINKING_SAMPLING, ThinkingSwitch
from internvl_jax.errors import InputError
from internvl_jax.inference import SamplingParams

# Tokens of a thinking answer where no flag says more: those that the release allows would fill a machine's memory.
_THINKING_TOKENS = 8192

THINKING = flags.DEFINE_boolean(
    "thinking",
    None,
    "ask the model to think before it answers, at temperature 0.6 and top_p 0.95, and show that too; --nothinking "
    "keeps it from thinking (launch.chat)",
)
REASONING = flags.DEFINE_enum("reasoning", None, ["low", "medium", "high"], "effort of GPT-OSS models; low is theirs")
_SAMPLING = {
    "temperature": flags.DEFINE_float("temperature", None, "0, the default, gives the likeliest answer, higher varies"),
    "top_p": flags.DEFINE_float("top_p", None, "draw from the likeliest tokens of this total probability; default: 1"),
    "top_k": flags.DEFINE_integer("top_k", 0, "draw from this many likeliest tokens; 0 for all"),
    "repetition_penalty": flags.DEFINE_float("repetition_penalty", 1.0, "above 1 avoids repetition"),
    "seed": flags.DEFINE_integer("seed", 0, "of the random draws"),
}


def sampling(max_new_tokens: int | None, usual: int) -> SamplingParams:
    """How answers are written; InputError for values that can't be.

    Args:
      max_new_tokens: the longest; None for `usual`, or for a thinking answer's.
    """
    if THINKING.value and REASONING.value:
        raise InputError("--thinking and --reasoning each set the system text; give one of them")
    values: dict[str, Any] = {"temperature": 0.0, "top_p": 1.0} | (THINKING_SAMPLING if THINKING.value else {})
    values |= {name: flag.value for name, flag in _SAMPLING.items() if flag.value is not None}
    longest = _THINKING_TOKENS if THINKING.value else usual
    return SamplingParams(max_new_tokens=longest if max_new_tokens is None else max_new_tokens, **values)


def think() -> ThinkingSwitch:
    """The hard switch."""
    return "auto" if THINKING.value is None else "on" if THINKING.value else "off"
