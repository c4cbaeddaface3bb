"""The files beside a vocabulary that say which tokens are added and which end a text, read and checked.

Source: transformers' tokenizer_config.json, special_tokens_map.json, added_tokens.json, tokenizer.json.
"""

import pathlib
from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import Meta, Struct

from internvl_jax.validation import convert, parse_json, read_file

_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")

# The library takes memory for every id up to the largest; released vocabularies end below 2**18.
TokenId = Annotated[int, Meta(ge=0, lt=2**22)]


class Content(Struct):
    """A special token that is written as an object."""

    content: str


Named = str | Content | None


class Added(Struct):
    """An entry of `added_tokens_decoder`."""

    content: str
    special: bool = False


class Config(Struct):
    """What is read of tokenizer_config.json and special_tokens_map.json."""

    eos_token: Named = None
    pad_token: Named = None
    bos_token: Named = None
    add_bos_token: bool | None = None
    additional_special_tokens: list[str | Content] | None = None
    added_tokens_decoder: dict[TokenId, Added] = {}


class NumberedToken(Struct):
    """An entry of `added_tokens` in tokenizer.json."""

    id: TokenId
    content: str
    special: bool


class Definition(Struct):
    """What is read of tokenizer.json; the library reads it whole."""

    added_tokens: list[NumberedToken]
    model: dict
    decoder: dict


def read(directory: pathlib.Path) -> dict[str, bytes]:
    """Name -> contents of those of the files that are there."""
    return {name: read_file(directory / name) for name in _FILES if (directory / name).exists()}


def config_of(files: Mapping[str, bytes]) -> Config:
    """What tokenizer_config.json says, and special_tokens_map.json where it speaks of the same.

    Raises:
      InputError: a file that isn't of its form.
    """
    return convert({**_object(files, _FILES[0]), **_object(files, _FILES[1])}, Config, _FILES[0])


def added_of(files: Mapping[str, bytes]) -> dict[str, tuple[int, bool]]:
    """String -> id and whether it is special, of added_tokens.json, which marks all so, and of tokenizer_config.json.

    Raises:
      InputError: a file that isn't of its form.
    """
    listed = convert(_object(files, _FILES[2]), dict[str, TokenId], _FILES[2])
    decoder = config_of(files).added_tokens_decoder
    return {token: (token_id, True) for token, token_id in listed.items()} | {
        token.content: (token_id, token.special) for token_id, token in decoder.items()
    }


def text_of(token: Named, default: str) -> str:
    """The string of a special token, or the default where none is named."""
    return (token.content if isinstance(token, Content) else token) or default


def _object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    return convert(parse_json(files.get(name, b"{}"), name), dict, name)
