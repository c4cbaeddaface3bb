"""Conversations to tokens: the released chat templates, in one place.

1. A message is a role and parts: strings and IMAGE slots. `from_released` makes messages of released JSONL records,
   where "<image>" in human turns stands for a picture.
2. A `Template` writes every turn as markup and text; text is encoded as plain text, so nobody can write a control token
   into a message, and each IMAGE slot becomes `<img>` + context tokens + `</img>`.
3. For training, the answer and the token that ends it are supervised; nothing is ever cut off. How thinking is told
   from the answer is `thinking`'s business.
"""

import dataclasses
import enum
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from internvl_jax.data.text.thinking import Channels, Tags
from internvl_jax.data.text.tokenizer import Tokenizer
from internvl_jax.errors import InputError
from internvl_jax.validation import shown

PLACEHOLDER, VIDEO_PLACEHOLDER = "<image>", "<video>"
# Lines of frames, as the released code writes them for SFT and for MPO; the latter is the guide's too.
FRAME_SFT, FRAME_MPO = "Frame-{}: ", "Frame{}: "


class Slot(enum.Enum):
    """Marks where something that is not text stands in a message."""

    IMAGE = "image"


IMAGE = Slot.IMAGE


@dataclasses.dataclass(frozen=True)
class Message:
    """One turn. role: system, user or assistant. parts: strings, always plain text, and IMAGE slots, in order."""

    role: str
    parts: tuple[str | Slot, ...]


@dataclasses.dataclass(frozen=True)
class Template:
    """How a model family writes a conversation.

    Each turn is head + text + end; `speech` says how an assistant's text is written. The last turn, where it is an
    assistant's, ends in `stop`, every other in `end`: tokens that the model itself writes. `after_end` follows either.
    default_system: system text where a conversation has none; None for no system turn at all. efforts: system texts by
    reasoning effort; empty where a family has no such choice.
    """

    name: str
    default_system: str | None
    efforts: Mapping[str, str]
    system_head: str
    user_head: str
    assistant_head: str
    speech: Tags | Channels
    end: str
    stop: str
    after_end: str

    def with_reasoning(self, effort: str) -> "Template":
        """The template that asks for this much reasoning, where a conversation brings no system text of its own."""
        if effort not in self.efforts:
            raise InputError(
                f"reasoning effort {effort!r} is unknown to the chat template {self.name!r}; "
                + (f"use one of {', '.join(self.efforts)}." if self.efforts else "leave it out.")
            )
        return dataclasses.replace(self, default_system=self.efforts[effort])

    def with_system(self, text: str | None) -> "Template":
        """The template with this system text where a conversation brings none; itself for None."""
        return self if text is None else dataclasses.replace(self, default_system=text)

    def encode_prompt(
        self,
        messages: Sequence[Message],
        image_token_counts: Sequence[int],
        tokenizer: Tokenizer,
        system: str | None = None,
        begun: str = "",
    ) -> np.ndarray:
        """int32 tokens [T] of a conversation, ready for the model to answer where the last turn is not its own.

        image_token_counts: context tokens of each picture, in order. system: text for the system turn where messages
        have none; None for the template's own. begun: how the answer starts, for the model to go on from there.
        Raises InputError for other roles or a wrong number of pictures.
        Source: released `conversation.py`, with its habit of leaving an empty user turn open. Earlier answers of
        GPT-OSS stand in their channel, as in training; the release writes them as its callers gave them.
        """
        tokens, turns = [*tokenizer.begin], self._with_system(messages, system)
        for i, (message, parts) in enumerate(_fill(turns, image_token_counts, tokenizer), 1):
            if message.role == "user" and message.parts in ((), ("",)):
                tokens += tokenizer.encode_special(self.user_head)
            else:
                tokens += self._turn(message.role, parts, tokenizer, last=i == len(turns))[0]
        if messages[-1].role != "assistant":
            head = tokenizer.split_special(self.assistant_head)
            tokens += tokenizer.encode_items([*head, *self.speech.begin(begun, tokenizer)])
        return np.asarray(tokens, np.int32)

    def encode_training(
        self,
        conversations: Sequence[dict],
        image_token_counts: Sequence[int],
        tokenizer: Tokenizer,
        *,
        extra_placeholders_are_text: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(int32 tokens [T], bool supervised [T]) of the `conversations` of one released JSONL record.

        A record that consists of one `pretrain` turn is supervised everywhere but on picture tokens. Otherwise each
        answer is supervised with the markup of its channels and the token that ends it. More placeholders than
        pictures are an error, unless extra_placeholders_are_text: then the ones left over stay text, as the release
        does it.
        """
        messages = from_released(conversations, len(image_token_counts), extra_placeholders_are_text)
        if messages[0].role == "pretrain":
            ((_, parts),) = _fill(messages, image_token_counts, tokenizer)
            tokens_T = np.asarray([*tokenizer.begin, *tokenizer.encode_items(parts)], np.int32)
            picture = (tokenizer.image_start, tokenizer.image_context, tokenizer.image_end)
            return tokens_T, ~np.isin(tokens_T, picture)
        turns = self._with_system(messages, None)
        tokens, supervised = [*tokenizer.begin], [False] * len(tokenizer.begin)
        for i, (message, parts) in enumerate(_fill(turns, image_token_counts, tokenizer), 1):
            turn, answer = self._turn(message.role, parts, tokenizer, last=i == len(turns))
            tokens += turn
            supervised += [message.role == "assistant" and k in answer for k in range(len(turn))]
        return np.asarray(tokens, np.int32), np.asarray(supervised, bool)

    def _with_system(self, messages: Sequence[Message], system: str | None) -> list[Message]:
        """The messages with a system turn in front, unless they have one or there is none to add."""
        if not messages:
            raise InputError("a conversation has no messages; give at least one.")
        for i, message in enumerate(messages):
            if message.role not in ("system", "user", "assistant") or (message.role == "system" and i > 0):
                raise InputError(
                    f"message {i} of a conversation has role {message.role!r}; roles are user, assistant, and system "
                    "for the first message alone."
                )
        system = self.default_system if system is None else system
        if messages[0].role == "system" or system is None:
            return list(messages)
        return [Message("system", (system,)), *messages]

    def _turn(self, role: str, parts: Sequence[Any], tokenizer: Tokenizer, last: bool) -> tuple[list[int], range]:
        """Tokens of a turn, and which of them the speaker wrote: all between the head and what follows the end.

        A head may end in a newline that merges with newlines at the start of the text. The release encodes a turn as
        one string and leaves out as many tokens as the head alone has; so does this. Parts are ids and strings, an
        assistant's strings alone.
        """
        heads = {"system": self.system_head, "user": self.user_head, "assistant": self.assistant_head}
        ending = self.stop if last and role == "assistant" else self.end
        head, end = tokenizer.split_special(heads[role]), tokenizer.split_special(ending + self.after_end)
        body = self.speech.items(parts, tokenizer) if role == "assistant" else parts
        tokens = tokenizer.encode_items([*head, *body, *end])
        after = len(tokenizer.encode_special(self.after_end))
        return tokens, range(len(tokenizer.encode_items(head)), len(tokens) - after)


def frame_parts(count: int) -> list[str | Slot]:
    """The frames of a video in a message, each on a line, `Frame1: <image>`, as in the release's guide."""
    return [part for number in range(1, count + 1) for part in (f"Frame{number}: ", IMAGE, "\n")]


def frame_lines(count: int, head: str) -> str:
    """The frames of a video in the place of `<video>` in a text. head: a line's beginning, such as FRAME_SFT."""
    return "\n".join(f"{head.format(number)}{PLACEHOLDER}" for number in range(1, count + 1))


def from_released(
    conversations: Sequence[dict], num_images: int, extra_placeholders_are_text: bool = False
) -> list[Message]:
    """Messages of a released JSONL record: [{"from": "system" | "human" | "gpt" | "pretrain", "value": text}, ...].

    "<image>" in human and pretrain turns are the pictures, in order. A single picture without any placeholder stands
    at the start of the first such turn, on a line of its own (the released loader puts it into the very first turn,
    which fails there when that is the system's).
    Raises InputError where the numbers of placeholders and pictures differ, and for unknown roles.
    """
    turns = [_turn_of(entry, i) for i, entry in enumerate(conversations)]
    roles = [role for role, _ in turns]
    if "pretrain" in roles and len(turns) > 1:
        raise InputError("a record mixes a pretrain turn with others; pretrain text stands alone.")
    if "pretrain" not in roles and "assistant" not in roles:
        raise InputError("a record has no gpt turn, so there is nothing to learn from it; add the answer.")
    pictured = [i for i, role in enumerate(roles) if role in ("user", "pretrain")]
    found = sum(turns[i][1].count(PLACEHOLDER) for i in pictured)
    if num_images == 1 and found == 0 and pictured:
        turns[pictured[0]] = (roles[pictured[0]], f"{PLACEHOLDER}\n{turns[pictured[0]][1]}")
        found = 1
    if found < num_images or (found > num_images and not extra_placeholders_are_text):
        raise InputError(f"a record has {found} {PLACEHOLDER} placeholders but {num_images} pictures; make them equal.")
    left = num_images
    messages = []
    for i, (role, text) in enumerate(turns):
        pieces = text.split(PLACEHOLDER, left) if i in pictured else [text]
        left -= len(pieces) - 1
        parts = [part for piece in pieces for part in (IMAGE, piece)][1:]
        messages.append(Message(role, tuple(parts)))
    return messages


def _turn_of(entry: Any, index: int) -> tuple[str, str]:
    roles = {"system": "system", "human": "user", "gpt": "assistant", "pretrain": "pretrain"}
    if not isinstance(entry, dict) or not isinstance(entry.get("value"), str) or entry.get("from") not in [*roles]:
        raise InputError(
            f"turn {index} of a record must be an object with a text 'value' and 'from' one of {', '.join(roles)}."
        )
    return roles[entry["from"]], entry["value"]


def _fill(
    messages: Sequence[Message], image_token_counts: Sequence[int], tokenizer: Tokenizer
) -> Iterator[tuple[Message, list[int | str]]]:
    """Each message with its parts as ids and strings, IMAGE slots replaced by the tokens of the pictures in order."""
    slots = sum(part is IMAGE for message in messages for part in message.parts)
    if slots != len(image_token_counts):
        raise InputError(f"a conversation has {slots} picture slots but {len(image_token_counts)} pictures.")
    counts = iter(image_token_counts)
    for message in messages:
        parts: list[int | str] = []
        for part in message.parts:
            if part is IMAGE:
                parts += [tokenizer.image_start, *[tokenizer.image_context] * next(counts), tokenizer.image_end]
            else:
                parts.append(part)
        yield message, parts


INTERNVL2_5 = Template(
    name="internvl2_5",
    default_system="你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。",
    efforts={},
    system_head="<|im_start|>system\n",
    user_head="<|im_start|>user\n",
    assistant_head="<|im_start|>assistant\n",
    speech=Tags(),
    end="<|im_end|>",
    stop="<|im_end|>",
    after_end="\n",
)


def _gpt_oss_system(effort: str, channels: str) -> str:
    """The released text has this very date, low effort and one channel."""
    return (
        "You are InternVL, a large language model trained by Shanghai AI Laboratory.\nKnowledge cutoff: 2024-06\n"
        f"Current date: 2025-08-06\n\nReasoning: {effort}\n\n# Valid channels: {channels}. "
        "Channel must be included for every message."
    )


_GPT_OSS_EFFORTS = {
    "low": _gpt_oss_system("low", "final"),
    # Not released: who asks for more reasoning has to allow the channel where it goes.
    "medium": _gpt_oss_system("medium", "analysis, final"),
    "high": _gpt_oss_system("high", "analysis, final"),
}

INTERNVL3_5_GPT_OSS = Template(
    name="internvl3_5_gpt_oss",
    default_system=_GPT_OSS_EFFORTS["low"],
    efforts=_GPT_OSS_EFFORTS,
    system_head="<|start|>system<|message|>",
    user_head="<|start|>user<|message|>",
    assistant_head="<|start|>assistant",
    speech=Channels(
        thinking_head="<|channel|>analysis<|message|>",
        thinking_end="<|end|><|start|>assistant",
        answer_head="<|channel|>final<|message|>",
    ),
    end="<|end|>",
    stop="<|return|>",
    after_end="",
)

_TEMPLATES = {template.name: template for template in (INTERNVL2_5, INTERNVL3_5_GPT_OSS)}


def get_template(name: str) -> Template:
    """The template of this name; InputError if there is none, since a guess would cost accuracy silently."""
    if name not in _TEMPLATES:
        raise InputError(f"chat template {shown(name)} is unknown; known are {', '.join(_TEMPLATES)}.")
    return _TEMPLATES[name]
