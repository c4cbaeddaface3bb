"""What a request of the API asks for, as values of this project."""

import dataclasses
import hashlib
import secrets
from typing import Any, Literal

from internvl_jax.data import ThinkingSwitch
from internvl_jax.errors import InputError
from internvl_jax.inference import MODEL_THRESHOLDS, SamplingParams, Thresholds
from internvl_jax.serving.limits import Limits
from internvl_jax.serving.refusals import Refusal
from internvl_jax.serving.schema import (
    ChatRequest,
    CompletionRequest,
    Generation,
    ImagePart,
    Message,
    SchemaFormat,
    VideoPart,
)

Shape = tuple[Literal["json_schema", "json_object", "regex", "choice"], Any]
Told = Literal["none", "last", "each"]

_EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high"}


@dataclasses.dataclass(frozen=True)
class Order:
    """How a prompt is answered.

    Attributes:
      sampling: how, for answers that bring no seed of their own; the longest answer is None where the request names
        none.
      max_tokens: the longest answer; None where the request names none.
      seeds: one for each answer; None: the greedy one.
      thinking: whether the model thinks before it answers; 'auto' leaves it to the conversation's system text.
      effort: how much, for models that have the choice.
      max_tiles: the most tiles of a picture that brings no limit of its own.
      thresholds: how readily a Flash model compresses tiles.
      shape: what the answer must look like, see `Grammars`.
      stream: whether pieces are sent as they come.
      usage: whether a stream ends with what the request took; 'each' has that on every piece.
      logprobs: whether log-probabilities are told.
      reasoning: whether what the model thought is told.
      tiles: whether it is told which tiles were compressed.
      priority, adapter: see `inference.Request`.
      name: what the answer's id ends with.
      told: how many of the answers are told, those that most agree with; None: all.
    """

    sampling: SamplingParams
    max_tokens: int | None
    seeds: tuple[int | None, ...]
    thinking: ThinkingSwitch = "auto"
    effort: str | None = None
    max_tiles: int | None = None
    thresholds: Thresholds = MODEL_THRESHOLDS
    shape: Shape | None = None
    stream: bool = False
    usage: Told = "none"
    logprobs: bool = False
    reasoning: bool = True
    tiles: bool = False
    priority: int = 0
    adapter: str | None = None
    name: str = ""
    told: int | None = None


def chat_order(request: ChatRequest, limits: Limits) -> Order:
    """How a chat is answered.

    Raises:
      Refusal: what can't be.
    """
    if request.tools is not None and (request.tool_choice != "none" or not request.tools):
        raise Refusal(400, "tools are not supported: the released chat templates have none; leave them out.", "tools")
    if request.top_logprobs is not None and not request.logprobs:
        raise Refusal(400, "top_logprobs needs logprobs to be true.", "top_logprobs")
    thinking, effort = _thinking(request)
    tiles = request.mm_processor_kwargs and request.mm_processor_kwargs.max_dynamic_patch
    thresholds = request.thresholds and Thresholds(request.thresholds.relative, request.thresholds.absolute)
    order = _order(
        request,
        limits,
        request.max_completion_tokens or request.max_tokens,
        request.top_logprobs or 0,
        thinking=thinking,
        effort=effort,
        max_tiles=request.max_dynamic_patch or tiles,
        thresholds=thresholds or MODEL_THRESHOLDS,
        shape=_shape(request),
        logprobs=bool(request.logprobs),
        reasoning=request.include_reasoning is not False,
        tiles=bool(request.return_tiles),
    )
    return order if request.best_of is None else _best_of(request.best_of, order, request, limits)


def _best_of(best_of: int, order: Order, request: ChatRequest, limits: Limits) -> Order:
    """The same with answers to choose among: the greedy one, and others."""
    n = request.n or 1
    if not n <= best_of <= limits.choices:
        message = (
            f"best_of is {best_of}; it must be at least n, {n}, and at most {limits.choices}, as this server has it."
        )
        raise Refusal(400, message, "best_of")
    if request.stream:
        raise Refusal(400, "best_of chooses among whole answers; leave out stream.", "best_of")
    if best_of > 1 and order.sampling.temperature == 0:
        raise Refusal(400, "best_of draws answers, and at temperature 0 all are the same.", "best_of")
    return dataclasses.replace(order, seeds=(None, *_seeds(request.seed, best_of - 1)), told=n)


def completion_orders(request: CompletionRequest, limits: Limits) -> list[tuple[Order, str | list[int]]]:
    """How texts are gone on with, each as it would be alone.

    Raises:
      Refusal: what can't be.
    """
    prompts = _prompts(request.prompt)
    if len(prompts) > limits.waiting_requests:
        message = f"prompt has {len(prompts)} texts; this server takes at most {limits.waiting_requests}."
        raise Refusal(400, message, "prompt")
    if sum(len(prompt) for prompt in prompts if isinstance(prompt, str)) > limits.text_chars:
        raise Refusal(400, f"prompt is longer than the {limits.text_chars:,} characters that are taken.", "prompt")
    logprobs = request.logprobs
    order = lambda: _order(request, limits, request.max_tokens, logprobs or 0, logprobs=logprobs is not None)
    name = order().name
    return [(dataclasses.replace(order(), name=name), prompt) for prompt in prompts]


def _prompts(given: Any) -> list[str | list[int]]:
    """One or several: a text, tokens, or a list of either."""
    return [given] if isinstance(given, str) or isinstance(given[0], int) else given


def conversation(messages: list[Message]) -> list[dict[str, Any]]:
    """Messages as `data.Processor` reads them; see `contents.admit` for the tiles of pictures."""
    return [
        {
            "role": "system" if message.role == "developer" else message.role,
            "content": message.content if isinstance(message.content, str) else [*map(_part, message.content)],
        }
        for message in messages
    ]


def _part(part: Any) -> dict[str, Any]:
    if isinstance(part, VideoPart):
        return {"type": "video_url", "video_url": part.video_url.model_dump(exclude_none=True)}
    if not isinstance(part, ImagePart):
        return {"type": "text", "text": part.text}
    return {"type": "image_url", "image_url": part.image_url.model_dump(exclude_none=True)}


def _order(request: Generation, limits: Limits, max_tokens: int | None, best: int, **more: Any) -> Order:
    n = request.n or 1
    if n > limits.choices:
        raise Refusal(400, f"n is {n}; this server gives at most {limits.choices} answers.", "n")
    stops = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    if len(stops) > limits.stops:
        raise Refusal(400, f"stop has {len(stops)} strings; this server takes at most {limits.stops}.", "stop")
    if request.stream_options is not None and not request.stream:
        raise Refusal(400, "stream_options needs stream to be true.", "stream_options")
    defaults = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "min_tokens": 0}
    defaults |= {"presence_penalty": 0.0, "frequency_penalty": 0.0, "ignore_eos": False}
    given = {name: getattr(request, name) for name in defaults}
    try:
        sampling = SamplingParams.named(
            **{name: default if given[name] is None else given[name] for name, default in defaults.items()},
            max_new_tokens=max_tokens or 2**31 - 1,
            top_k=max(request.top_k or 0, 0),
            stop_token_ids=tuple(request.stop_token_ids or ()),
            stop_strings=stops,
            logit_bias=request.logit_bias or {},
            logprobs=best,
        )
    except InputError as error:
        raise Refusal(400, f"{error}.") from None
    options = request.stream_options
    usage: Told = "last" if options and options.include_usage else "none"
    if options and options.continuous_usage_stats:
        usage = "each"
    return Order(
        sampling,
        max_tokens,
        _seeds(request.seed, n),
        stream=bool(request.stream),
        usage=usage,
        priority=request.priority or 0,
        name=request.request_id or secrets.token_hex(12),
        **more,
    )


def _seeds(seed: int | None, n: int) -> tuple[int, ...]:
    """uint32: answer i has the seed plus i, as it is where it is one of ours and scattered where it isn't."""
    if seed is None:
        return tuple(secrets.randbits(32) for _ in range(n))
    folded = lambda value: int.from_bytes(hashlib.blake2b(str(value).encode(), digest_size=4).digest(), "little")
    return tuple(value if 0 <= value < 2**32 else folded(value) for value in range(seed, seed + n))


def _thinking(request: ChatRequest) -> tuple[ThinkingSwitch, str | None]:
    """Whether and how much the model thinks; an effort of 'none' is off, any other on."""
    effort = request.reasoning_effort
    options = request.chat_template_kwargs
    switch = None if options is None else options.enable_thinking
    if effort is not None and switch is not None and (effort != "none") != switch:
        raise Refusal(
            400, f"reasoning_effort is {effort!r} and enable_thinking {switch}; give one.", "reasoning_effort"
        )
    if effort is not None:
        return ("off", None) if effort == "none" else ("on", _EFFORTS[effort])
    return "auto" if switch is None else "on" if switch else "off", None


def _shape(request: ChatRequest) -> Shape | None:
    found: list[Shape] = []
    if isinstance(request.response_format, SchemaFormat):
        found.append(("json_schema", request.response_format.json_schema.schema_))
    elif request.response_format is not None and request.response_format.type == "json_object":
        found.append(("json_object", None))
    if (wanted := request.structured_outputs) is not None:
        wishes: list[Shape] = [
            ("json_schema", wanted.json_),
            ("json_object", wanted.json_object),
            ("regex", wanted.regex),
            ("choice", wanted.choice),
        ]
        found += [(kind, value) for kind, value in wishes if value]
    if len(found) > 1:
        raise Refusal(400, f"the answer can't be {found[0][0]} and {found[1][0]}; give one.", "response_format")
    return found[0] if found else None
