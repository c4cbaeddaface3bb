"""What a tokenizer knows of its vocabulary, and the byte-level BPE of Qwen and GPT-OSS around the `tokenizers` library.

A vocabulary is a brick of `tokenizer.Tokenizer`; the other one is `pieces.Pieces`.
"""

import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Protocol

import tokenizers

from internvl_jax.data.text.token_files import Definition
from internvl_jax.errors import InputError
from internvl_jax.validation import convert, first_line, parse_json

# Released added tokens that are part of what a message says. InternVL's files mark the second line special, yet
# training data contains them as plain strings (grounding answers), so they have to be encoded from text.
_THOUGHTS_AND_TOOLS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
TEXT_TOKENS = (*_THOUGHTS_AND_TOOLS, "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")


class TextVocabulary(Protocol):
    """What a tokenizer makes ids of."""

    @property
    def added(self) -> Mapping[int, str]:
        """id -> string of the tokens besides the vocabulary proper."""

    @property
    def control(self) -> Mapping[int, str]:
        """Those of them that text never becomes."""

    @property
    def begin(self) -> tuple[int, ...]:
        """Ids in front of every sequence."""

    @property
    def size(self) -> int:
        """The largest id plus one."""

    @property
    def definition(self) -> str:
        """All that decides which ids a text gets."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text; the strings of control tokens in it stay text."""

    def id_of(self, token: str) -> int | None:
        """The id of one token given as its string."""

    def bytes_of(self, token_id: int) -> bytes:
        """What an id adds to a text; nothing for an id that is not of the vocabulary proper."""

    def save(self, directory: pathlib.Path, names: Mapping[str, str]) -> None:
        """Writes the files that it is read from; `names` are the strings of the tokens 'eos' and 'pad'."""


class BytePairs:
    """A byte-level BPE. definition: the contents of a tokenizer.json; name: that file, for messages."""

    begin: tuple[int, ...] = ()

    def __init__(self, definition: str, name: str = "tokenizer.json"):
        fields = parse_json(definition.encode(), name)
        if "ByteLevel" not in json.dumps(convert(fields, Definition, name).decoder):
            raise InputError(f"{name} is not a byte-level BPE, the only kind of it that these families use.")
        fields |= {"truncation": None, "padding": None}  # some files carry them; nothing is ever cut here
        for token in fields["added_tokens"]:
            token["special"] = token["special"] and token["content"] not in TEXT_TOKENS
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(fields, ensure_ascii=False))
        except (
            BaseException
        ) as error:  # the library raises nothing narrower, and panics of its Rust code are no Exception
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise InputError(f"{name} is damaged ({first_line(error)}); copy the file again.") from None
        self._tokenizer.encode_special_tokens = True  # the library's name for: special strings in text stay text
        self.added = {token["id"]: token["content"] for token in fields["added_tokens"]}
        self.control = {token["id"]: token["content"] for token in fields["added_tokens"] if token["special"]}

    def __reduce__(self) -> tuple[type["BytePairs"], tuple[str]]:
        # The library's own pickling forgets encode_special_tokens (0.23.3); worker processes get the definition.
        return BytePairs, (self.definition,)

    @functools.cached_property
    def size(self) -> int:
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def definition(self) -> str:
        return self._tokenizer.to_str()

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def id_of(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def bytes_of(self, token_id: int) -> bytes:
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        known = _byte_of_char()
        # As the library: a token with a character of no byte stands for itself.
        return bytes(map(known.__getitem__, token)) if known.keys() >= set(token) else token.encode()

    def save(self, directory: pathlib.Path, names: Mapping[str, str]) -> None:
        (directory / "tokenizer.json").write_text(self.definition, encoding="utf-8")
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": names["eos"],
            "pad_token": names["pad"],
        }
        (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


@functools.cache
def _byte_of_char() -> dict[str, int]:
    """Byte-level BPE's alphabet: printable Latin-1 bytes stand for themselves, the others are shifted above 255."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
