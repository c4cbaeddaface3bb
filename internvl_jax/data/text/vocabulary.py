"""What a tokenizer knows of its vocabulary, and the byte-level BPE of Qwen and GPT-OSS around the `tokenizers` library.

A vocabulary is a brick of `tokenizer.Tokenizer`; the other one is `pieces.Pieces`.
"""

import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any, Protocol

import tokenizers

from internvl_jax.errors import InputError

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
    """A byte-level BPE. definition: the contents of a tokenizer.json."""

    begin: tuple[int, ...] = ()

    def __init__(self, definition: str):
        fields = json.loads(definition)
        if not {"added_tokens", "decoder", "model"} <= fields.keys() or "ByteLevel" not in json.dumps(
            fields["decoder"]
        ):
            raise InputError("tokenizer.json is not a byte-level BPE, the only kind of it that these families use.")
        fields |= {"truncation": None, "padding": None}  # some files carry them; nothing is ever cut here
        for token in fields["added_tokens"]:
            token["special"] = token["special"] and token["content"] not in TEXT_TOKENS
        self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(fields, ensure_ascii=False))
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
        return b"" if token is None else bytes(_byte_of_char()[char] for char in token)

    def save(self, directory: pathlib.Path, names: Mapping[str, str]) -> None:
        (directory / "tokenizer.json").write_text(self.definition, encoding="utf-8")
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": names["eos"],
            "pad_token": names["pad"],
        }
        (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def content(token: str | dict) -> str:
    """Special tokens are written as a string or as {"content": ...}."""
    return token if isinstance(token, str) else token["content"]


def added_tokens(config: Mapping[str, Any], added: Mapping[str, int]) -> dict[str, tuple[int, bool]]:
    """String -> id and whether it is special, of tokenizer_config.json and added_tokens.json, which marks all so."""
    found = {token: (token_id, True) for token, token_id in added.items()}
    for token_id, token in config.get("added_tokens_decoder", {}).items():
        found[token["content"]] = int(token_id), token["special"]
    return found


def read_json(path: pathlib.Path) -> dict:
    """The object in a JSON file; empty if there is no such file."""
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); copy the file again.") from None


@functools.cache
def _byte_of_char() -> dict[str, int]:
    """Byte-level BPE's alphabet: printable Latin-1 bytes stand for themselves, the others are shifted above 255."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
