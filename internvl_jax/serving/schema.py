"""The requests of the OpenAI API, field by field: what is honoured, what is harmless, and nothing else.

null stands for a field that isn't there, as clients send both. Types are strict: false is not 0. Fields that other
servers ignore in silence although they would change the answer are refused by name.

Source: openai 3.57 (2026-11) and vLLM 0.32 for the names of what OpenAI's API lacks.
"""

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema

from internvl_jax.serving.refusals import Refusal

# Given and not null, these would change the answer, and are not built.
_REFUSED = {
    "functions": "tools are not supported: the released chat templates have none",
    "function_call": "tools are not supported: the released chat templates have none",
    "audio": "this model doesn't speak",
    "prediction": "predicted outputs are not supported",
    "web_search_options": "this server fetches nothing from the web",
    "moderation": "moderation is not supported",
    "guided_json": "use response_format or structured_outputs",
    "guided_regex": "use structured_outputs",
    "guided_choice": "use structured_outputs",
    "guided_grammar": "grammars are not supported; use structured_outputs",
    "best_of": "best_of is for chats; use n",
    "suffix": "this model doesn't fill in text between two others",
    "tool": "tools are not supported: the released chat templates have none",
}


def _only(wanted: bool) -> Callable[[bool], bool]:
    """Of a flag, the value that it may have: to Literal 0 would be False."""

    def check(value: bool) -> bool:
        if value is not wanted:
            raise ValueError(f"only {str(wanted).lower()} is supported")
        return value

    return check


# What pydantic puts into a path where a field may be several things.
_KINDS = {"response_format": ("text", "json_object", "json_schema")}

_No = Annotated[bool, AfterValidator(_only(False)), WithJsonSchema({"type": "boolean", "const": False})]
_Yes = Annotated[bool, AfterValidator(_only(True)), WithJsonSchema({"type": "boolean", "const": True})]
Tokens = Annotated[int, Field(ge=1, lt=2**31)]
Id = Annotated[int, Field(ge=0, lt=2**31)]
Share = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Text = Annotated[str, Field(min_length=1)]
TileLimit = Annotated[int, Field(ge=1, le=4096)]
Seconds = Annotated[float, Field(ge=0, le=10**6)]


T = TypeVar("T")
_BIASES = 300  # as many as OpenAI takes
_MANY = 4096  # messages, or parts of one: each costs more than its characters
# The first element that is wrong is enough: with an error for each of a body's millions the server would end.
_All = Annotated[list[T], Field(fail_fast=True, max_length=_MANY)]
_Some = Annotated[list[T], Field(fail_fast=True, min_length=1, max_length=_MANY)]
_Ids = Annotated[list[T], Field(fail_fast=True, min_length=1)]  # the limits say how many tokens there may be


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, protected_namespaces=())


class ImageUrl(_Strict):
    """A picture: a data URL, or an address that the server was told to fetch from."""

    url: Text
    detail: Literal["auto", "low", "high"] | None = None
    max_dynamic_patch: TileLimit | None = None


class TextPart(_Strict):
    """Text."""

    type: Literal["text"]
    text: str


class ImagePart(_Strict):
    """A picture between texts."""

    type: Literal["image_url"]
    image_url: ImageUrl


class VideoUrl(_Strict):
    """A video as a data URL, and which of its frames are shown, see `data.VideoOptions`."""

    url: Text
    num_frames: TileLimit | None = None
    fps: Annotated[float, Field(gt=0, le=1000)] | None = None
    clip: Annotated[list[Seconds], Field(fail_fast=True, min_length=2, max_length=2)] | None = None


class VideoPart(_Strict):
    """A video between texts."""

    type: Literal["video_url"]
    video_url: VideoUrl


class SystemMessage(_Strict):
    """What the model is told before the conversation."""

    role: Literal["system", "developer"]
    content: str | _All[TextPart]
    name: str | None = None


Shown = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]


class UserMessage(_Strict):
    """What a user says and shows."""

    role: Literal["user"]
    content: str | _Some[Shown]
    name: str | None = None


class AssistantMessage(_Strict):
    """An earlier answer, as clients keep it; what was thought then is not shown again."""

    role: Literal["assistant"]
    content: str | _All[TextPart] = ""
    name: str | None = None
    refusal: None = None
    audio: None = None
    annotations: _All[Any] | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


class StreamOptions(_Strict):
    """What a stream tells besides text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class JsonSchema(_Strict):
    """A schema with its name."""

    name: Text
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class TextFormat(_Strict):
    """Any text."""

    type: Literal["text"]


class ObjectFormat(_Strict):
    """Some JSON object."""

    type: Literal["json_object"]


class SchemaFormat(_Strict):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


class StructuredOutputs(_Strict):
    """vLLM's name for what an answer must look like: one of these."""

    json_: Annotated[dict[str, Any] | None, Field(alias="json")] = None
    json_object: bool | None = None
    regex: Text | None = None
    choice: _Some[Text] | None = None


class TemplateOptions(_Strict):
    """vLLM's way to switch thinking."""

    enable_thinking: bool | None = None


class PictureOptions(_Strict):
    """vLLM's way to limit tiles."""

    max_dynamic_patch: TileLimit | None = None


class TileThresholds(_Strict):
    """How readily a Flash model compresses tiles, see `inference.Thresholds`."""

    relative: Share | None = None
    absolute: Share | None = None


class Generation(_Strict):
    """What chats and plain completions have in common."""

    model: str | None = None
    max_tokens: Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Text | _All[Text] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: Annotated[dict[str, Bias], Field(fail_fast=True, max_length=_BIASES)] | None = None
    user: str | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Share | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    stop_token_ids: _All[Id] | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    skip_special_tokens: _Yes | None = None
    include_stop_str_in_output: _No | None = None
    priority: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    request_id: Annotated[str, Field(pattern="^[A-Za-z0-9_-]{1,64}$")] | None = None


class ChatRequest(Generation):
    """The body of POST /v1/chat/completions."""

    messages: _Some[Message]
    max_completion_tokens: Tokens | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")] | None = None
    structured_outputs: StructuredOutputs | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    include_reasoning: bool | None = None
    tools: _All[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    modalities: _All[Literal["text"]] | None = None
    chat_template_kwargs: TemplateOptions | None = None
    mm_processor_kwargs: PictureOptions | None = None
    max_dynamic_patch: TileLimit | None = None
    thresholds: TileThresholds | None = None
    return_tiles: bool | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    verbosity: str | None = None
    parallel_tool_calls: bool | None = None


class CompletionRequest(Generation):
    """The body of POST /v1/completions: text that the model goes on with."""

    prompt: Text | _Some[Text] | _Ids[Id] | _Some[_Ids[Id]]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: _No | None = None


class TokenizeRequest(_Strict):
    """The body of POST /tokenize: a text, or a conversation as the model would read it."""

    model: str | None = None
    prompt: Text | None = None
    messages: _Some[Message] | None = None
    max_dynamic_patch: TileLimit | None = None


class DetokenizeRequest(_Strict):
    """The body of POST /detokenize."""

    model: str | None = None
    tokens: Annotated[list[Id], Field(fail_fast=True)]


def explained(problems: Sequence[Any]) -> Refusal:
    """Says what is wrong with a body, from what pydantic found."""
    deepest = max(problems, key=lambda problem: len(problem["loc"]))  # of several that a value might have been
    location, kind = deepest["loc"][deepest["loc"][:1] == ("body",) :], deepest["type"]
    if len(location) == 1 and location[0] in _REFUSED and kind == "extra_forbidden":
        name = location[0]
        return Refusal(400, f"{name} can't be had: {_REFUSED[name]}.", name, "unsupported_parameter")
    where = _place(location)
    if not where:
        return Refusal(400, "the body must be a JSON object, sent with Content-Type: application/json.")
    if kind == "union_tag_invalid":
        found = str(deepest["ctx"]["tag"])[:40]
        reason = f" ({_REFUSED[found]})" if found in _REFUSED else ""
        what = f"{deepest['ctx']['discriminator']} is {found!r}{reason}; it must be {deepest['ctx']['expected_tags']}"
    else:
        what = "there is no such field" if kind == "extra_forbidden" else _lower(deepest["msg"])
    return Refusal(400, f"{where}: {what}.", where)


def _place(location: tuple[int | str, ...]) -> str:
    """messages[0].content, without the names that pydantic gives to alternatives."""
    text, before = "", None
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif (
            re.fullmatch("[A-Za-z_]+", part)
            and not isinstance(before, int)
            and part not in _KINDS.get(before, ("str",))
        ):
            text += f".{part}"
        before = part
    return text.removeprefix(".")[:200]


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


class Error(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer that says no."""

    error: Error
