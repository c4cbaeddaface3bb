"""The sentencepiece vocabulary of InternLM2, around the `sentencepiece` package.

1. tokenizer.model is the vocabulary proper. How it treats spaces (a space in front of texts, runs of spaces) is written
   in it, and the package obeys.
2. The JSON files beside it name tokens: some give a piece of the model another name, some come after its last one.
   A text is cut at the tokens that users may write (`<box>`), and what lies between is encoded piece by piece alone.
3. `<s>` stands in front of a sequence unless tokenizer_config.json says `"add_bos_token": false`.
"""

import itertools
import json
import pathlib
import re
from collections.abc import Iterable, Mapping

import sentencepiece

from internvl_jax.data.text import token_files
from internvl_jax.data.text.vocabulary import TEXT_TOKENS
from internvl_jax.errors import InputError
from internvl_jax.validation import read_file

MODEL = "tokenizer.model"
_SPACE = "▁"  # U+2581, sentencepiece's


class Pieces:
    """A `vocabulary.TextVocabulary` of tokenizer.model and the files beside it, name -> contents."""

    def __init__(self, files: Mapping[str, bytes]):
        self._files = dict(files)
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=files[MODEL])
            self._model.id_to_piece(list(range(self._model.vocab_size())))  # raises for a piece that is not UTF-8
        except (RuntimeError, ValueError):
            raise InputError(f"{MODEL} is not a sentencepiece model; copy the file again.") from None
        config, named = token_files.config_of(files), token_files.added_of(files)
        for token in config.additional_special_tokens or []:
            text = token_files.text_of(token, "")
            if text not in named and (token_id := self._piece(text)) is not None:
                named[text] = token_id, True
        self._ids = {token: token_id for token, (token_id, _) in named.items()}
        self.added = {token_id: token for token, token_id in self._ids.items()}
        self.control = {
            token_id: token for token, (token_id, special) in named.items() if special and token not in TEXT_TOKENS
        }
        self.size = max([self._model.vocab_size() - 1, *self.added]) + 1
        begin = self.id_of(token_files.text_of(config.bos_token, "<s>"))
        self.begin = () if config.add_bos_token is False or begin is None else (begin,)
        self._written = {token: i for token, i in self._ids.items() if i not in self.control}
        self._splits = _any_of(self._written)
        # A model may know the string of a control token as a piece that no text is split within.
        self._known = _any_of([token for token in self.control.values() if self._piece(token) is not None])

    def __reduce__(self) -> tuple[type["Pieces"], tuple[dict[str, bytes]]]:
        return Pieces, (self._files,)

    @classmethod
    def load(cls, directory: pathlib.Path) -> "Pieces":
        """Raises InputError where a file can't be read as what it is."""
        return cls({MODEL: read_file(directory / MODEL), **token_files.read(directory)})

    @property
    def definition(self) -> str:
        return json.dumps([self._files[MODEL].hex(), self._ids, sorted(self.control), self.begin])

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in self._splits.split(text):
            encoded = [[self._written[part]]] if part in self._written else self._model.encode(self._cut(part))
            ids += itertools.chain.from_iterable(encoded)
        return ids

    def id_of(self, token: str) -> int | None:
        return self._ids[token] if token in self._ids else self._piece(token)

    def bytes_of(self, token_id: int) -> bytes:
        model = self._model
        if not 0 <= token_id < model.vocab_size() or model.is_control(token_id) or model.is_unknown(token_id):
            return b""
        piece = model.id_to_piece(token_id)
        return bytes([int(piece[1:-1], 16)]) if model.is_byte(token_id) else piece.replace(_SPACE, " ").encode()

    def save(self, directory: pathlib.Path, names: Mapping[str, str]) -> None:
        del names  # they stand in the files, which leave as they came
        for name, contents in self._files.items():
            (directory / name).write_bytes(contents)

    def _piece(self, token: str) -> int | None:
        token_id = self._model.piece_to_id(token)
        return None if token_id == self._model.unk_id() and self._model.id_to_piece(token_id) != token else token_id

    def _cut(self, text: str) -> list[str]:
        """The text in parts that have no control token's string: each is cut behind its first character."""
        cuts = [match.start() + 1 for match in self._known.finditer(text)]
        return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def _any_of(tokens: Iterable[str]) -> re.Pattern:
    """Matches, and splits at and keeps, any of these strings."""
    return re.compile("(" + ("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)") + ")")
