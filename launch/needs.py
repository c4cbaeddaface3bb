"""Which flags must be given, where that depends on others."""

from collections.abc import Callable
from typing import Any

from absl import flags

_MISSING = "Flag --{} must have a value other than None."
# What evaluation does without a model, and without data: flags and the values that say so.
_MODEL_FREE: dict[str, Callable[[Any], bool]] = {"prompts_only": bool, "rescore": bool, "suite": ["list"].__eq__}
_DATA_FREE: dict[str, Callable[[Any], bool]] = {"suite": ["list"].__eq__}


def checkpoint() -> None:
    """--checkpoint is given, unless nothing is asked of a model."""
    _require("checkpoint", _MODEL_FREE)


def data() -> None:
    """--data is given, unless nothing is read."""
    _require("data", _DATA_FREE)


def _require(name: str, excuses: dict[str, Callable[[Any], bool]]) -> None:
    def is_enough(value: Any) -> bool:
        known = flags.FLAGS
        return value is not None or any(other in known and test(known[other].value) for other, test in excuses.items())

    flags.register_validator(name, is_enough, _MISSING.format(name))
