"""How an answer is asked for: parameters by our names and OpenAI's, held against their bounds."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Annotated, Any

from msgspec import Meta

from internvl_jax.errors import InputError
from internvl_jax.validation import Fraction, Positive, check_fields, nearest

BIASES = 300  # biases of a row, as many as OpenAI takes; part of the compiled shapes

Id = Annotated[int, Meta(ge=0, lt=2**31)]
Bias = tuple[Id, Annotated[float, Meta(ge=-100, le=100)]]
Penalty = Annotated[float, Meta(ge=-2, le=2)]

_OPENAI = {"max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens", "stop": "stop_strings"}


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """How one answer is written.

    Attributes:
      max_new_tokens: the answer ends after so many tokens, the stop token included.
      temperature: 0 takes the best token each time.
      top_k: draw from the k best tokens only; 0 for all.
      top_p: draw from the smallest set of best tokens that holds this probability; 1 for all.
      repetition_penalty: divides positive and multiplies negative logits of tokens in prompt or answer; 1 for none.
      seed: the seed of the row's random stream.
      stop_token_ids: ids that end the answer besides the model's own.
      stop_strings: end the answer where one of them begins; it isn't part of the answer.
      min_p: draw only from tokens of at least this share of the best one's probability; 0 for all.
      presence_penalty: taken from the logits of tokens in the answer.
      frequency_penalty: taken from them as often as they are in the answer.
      logit_bias: (token, what is added to its logit); -100 and 100 all but forbid and force it.
      min_tokens: no stop token before the answer has so many tokens, and no stop string that ends within them.
      ignore_eos: the model's own stop ids don't end the answer.
      logprobs: how many of the best tokens are reported beside every chosen one.
    """

    max_new_tokens: Annotated[int, Meta(ge=1, lt=2**31)] = 256
    temperature: Annotated[float, Meta(ge=0, le=10**6)] = 0.0
    top_k: Annotated[int, Meta(ge=0, lt=2**31)] = 0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    repetition_penalty: Positive = 1.0
    seed: Annotated[int, Meta(ge=0, lt=2**32)] = 0
    stop_token_ids: tuple[Id, ...] = ()
    stop_strings: tuple[Annotated[str, Meta(min_length=1)], ...] = ()
    min_p: Fraction = 0.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    logit_bias: Annotated[tuple[Bias, ...], Meta(max_length=BIASES, description=f"(at most {BIASES} of them)")] = ()
    min_tokens: Annotated[int, Meta(ge=0, lt=2**31)] = 0
    ignore_eos: bool = False
    logprobs: Annotated[int, Meta(ge=0, le=20)] = 0

    def __post_init__(self) -> None:
        check_fields(self, "sampling")
        # A frozen value is hashed.
        for name in ("stop_token_ids", "stop_strings"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "logit_bias", tuple(map(tuple, self.logit_bias)))
        ids = [token for token, _ in self.logit_bias]
        if len(set(ids)) < len(ids):
            twice = next(token for token in ids if ids.count(token) > 1)
            raise InputError(f"sampling.logit_bias has token {twice} twice; give it one bias")
        if self.min_tokens > self.max_new_tokens:
            raise InputError(
                f"sampling.min_tokens is {self.min_tokens}, but max_new_tokens only {self.max_new_tokens}; "
                "lower one or raise the other"
            )

    @classmethod
    def named(cls, **values: Any) -> "SamplingParams":
        """From the names of fields, or OpenAI's: `max_tokens` or `max_completion_tokens`, and `stop`, a text or
        several. Lists may stand for tuples, an object of ids, which may be texts, for the pairs of `logit_bias`.

        Raises:
          InputError: a name that is none of these or given twice, or a value that can't be.
        """
        fields = {field.name for field in dataclasses.fields(cls)}
        params: dict[str, Any] = {}
        for name, value in values.items():
            field = _OPENAI.get(name, name)
            if field not in fields:
                known = sorted([*fields, *_OPENAI])
                raise InputError(f"sampling has no parameter {name!r}{nearest(name, known)}; it has {', '.join(known)}")
            if field in params:
                raise InputError(f"sampling has {field} twice, as {name} too; give one of them")
            value = (value,) if name == "stop" and isinstance(value, str) else value
            value = _pairs(value) if name == "logit_bias" and isinstance(value, dict) else value
            params[field] = tuple(value) if isinstance(value, list) else value
        return cls(**params)

    @property
    def shaped(self) -> bool:
        """Whether `sampling.Shaping` is needed for it."""
        return bool(
            self.repetition_penalty != 1
            or self.presence_penalty
            or self.frequency_penalty
            or self.logit_bias
            or self.min_tokens
        )

    def stop_ids(self, own: Sequence[int]) -> tuple[int, ...]:
        """All ids that end the answer, each once; `own` are the model's."""
        return tuple(dict.fromkeys((*(() if self.ignore_eos else own), *self.stop_token_ids)))


def _pairs(biases: dict[Any, Any]) -> tuple[tuple[int, Any], ...]:
    for key in biases:
        if not re.fullmatch("[0-9]{1,10}", str(key)):
            raise InputError(f"sampling.logit_bias has the key {str(key)[:40]!r}; its keys must be ids of tokens")
    return tuple((int(key), bias) for key, bias in biases.items())
