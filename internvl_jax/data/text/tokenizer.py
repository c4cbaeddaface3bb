"""Text to token ids and back.

1. `Tokenizer.load` reads a released directory: tokenizer.json, or vocab.json + merges.txt with the added tokens beside
   them, or tokenizer.model of sentencepiece. Which strings are special is read from the files.
2. Added tokens are of two kinds. *Control* tokens frame a conversation or stand for pixels (`<|im_end|>`,
   `<IMG_CONTEXT>`): text never turns into them (`encode`), only our own markup does (`encode_special`). *Text* tokens
   (`<think>`, `<box>`) are written by users and by the model inside a message, and are encoded wherever they stand.
3. Decoding joins bytes, so a stream of tokens gives the same text as all of them at once.
"""

import codecs
import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from internvl_jax.data.text import pieces, token_files
from internvl_jax.data.text.vocabulary import BytePairs, TextVocabulary
from internvl_jax.errors import InputError
from internvl_jax.validation import convert, first_line, read_file, read_json, shown

# What a tokenizer trained here adds, in the released order.
_TURN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<img>", "</img>")
TRAINED_TOKENS = (*_TURN_TOKENS, "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")

# Qwen2's rule of what may not merge across (its public tokenizer files).
_QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_HALF_PAIR = re.compile("[\ud800-\udfff]")


class Tokenizer:
    """A vocabulary with its added tokens.

    eos, pad: strings of the tokens that end and fill a sequence.
    """

    def __init__(self, vocabulary: TextVocabulary, *, eos: str, pad: str):
        self._vocabulary = vocabulary
        longest_first = sorted(vocabulary.control.values(), key=len, reverse=True)
        self._control_pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._names = {"eos": eos, "pad": pad}
        self.eos, self.pad = self.token_id(eos), self.token_id(pad)

    def __reduce__(self) -> tuple[Callable[[TextVocabulary], "Tokenizer"], tuple[TextVocabulary]]:
        return functools.partial(Tokenizer, eos=self._names["eos"], pad=self._names["pad"]), (self._vocabulary,)

    @classmethod
    def load(cls, directory: str | pathlib.Path) -> "Tokenizer":
        """Reads tokenizer.model, tokenizer.json, or vocab.json + merges.txt, with what other files of a directory say.

        Raises InputError where files are missing or unreadable.
        """
        return _load(pathlib.Path(directory))

    def save(self, directory: str | pathlib.Path) -> None:
        """Writes the files that `load` and transformers read."""
        self._vocabulary.save(pathlib.Path(directory), self._names)

    @functools.cached_property
    def digest(self) -> str:
        """Hex digest of everything that decides which ids a text gets."""
        return hashlib.sha256(json.dumps([self._vocabulary.definition, self._names]).encode()).hexdigest()

    @property
    def vocab_size(self) -> int:
        """The largest id plus one. A model's embedding table may have more rows."""
        return self._vocabulary.size

    @property
    def begin(self) -> tuple[int, ...]:
        """Ids in front of every sequence that a model sees."""
        return self._vocabulary.begin

    @property
    def added_tokens(self) -> dict[str, int]:
        """Tokens besides the vocabulary proper, string -> id."""
        return {token: token_id for token_id, token in sorted(self._vocabulary.added.items())}

    def token_id(self, token: str) -> int:
        """The id of one token given as its string; InputError if the vocabulary lacks it."""
        token_id = self._vocabulary.id_of(token)
        if token_id is None:
            raise InputError(f"the tokenizer has no token {shown(token)}; use the tokenizer files of the model itself.")
        return token_id

    image_start = functools.cached_property(lambda self: self.token_id("<img>"))
    image_end = functools.cached_property(lambda self: self.token_id("</img>"))
    image_context = functools.cached_property(lambda self: self.token_id("<IMG_CONTEXT>"))
    im_start = functools.cached_property(lambda self: self.token_id("<|im_start|>"))
    im_end = functools.cached_property(lambda self: self.token_id("<|im_end|>"))

    def encode(self, text: str) -> list[int]:
        """Ids of text written by a user or a model: the strings of control tokens in it are plain text.

        Raises InputError for half of a surrogate pair, which no text in UTF-8 has.
        """
        if half := _HALF_PAIR.search(text):
            raise InputError(
                f"a text has half of a surrogate pair ({half.group()!a}) at character {half.start()}; it was cut "
                "in two or comes from bytes that are not UTF-8."
            )
        return self._vocabulary.encode(text)

    def split_special(self, markup: str) -> list[int | str]:
        """Our own markup as control token ids and the strings between them."""
        items: list[int | str] = []
        end = 0
        for match in self._control_pattern.finditer(markup):
            items += [markup[end : match.start()], self.token_id(match.group())]
            end = match.end()
        return [item for item in [*items, markup[end:]] if item != ""]

    def encode_special(self, markup: str) -> list[int]:
        """Ids of our own markup, in which the strings of control tokens become those tokens."""
        return self.encode_items(self.split_special(markup))

    def encode_items(self, items: Iterable[int | str]) -> list[int]:
        """Ids of a sequence of ids and plain strings; strings that touch are encoded as one, as their join would be."""
        ids, text = [], ""
        for item in items:
            if isinstance(item, str):
                text += item
                continue
            if text:  # a call into the library per picture token would cost more than all the text
                ids += self.encode(text)
                text = ""
            ids.append(item)
        return ids + self.encode(text)

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of ids; control tokens are left out unless skip_special is False.

        Bytes that are not UTF-8 become U+FFFD. Ids that the vocabulary lacks (unused embedding rows) are dropped.
        """
        return b"".join(self.bytes_of(int(i), skip_special) for i in ids).decode("utf-8", errors="replace")

    def decode_stream(self, *, skip_special: bool = True) -> "DecodeStream":
        """Decodes token by token; see DecodeStream."""
        return DecodeStream(functools.partial(self.bytes_of, skip_special=skip_special))

    def bytes_of(self, token_id: int, skip_special: bool = True) -> bytes:
        """What an id adds to a text, which may be a part of a character; nothing for ids that the vocabulary lacks."""
        added, control = self._vocabulary.added, self._vocabulary.control
        if token_id in added:
            return b"" if skip_special and token_id in control else added[token_id].encode()
        return self._vocabulary.bytes_of(token_id)


class DecodeStream:
    """Text that is complete so far: `feed` each id, then `finish`; the joined parts equal `Tokenizer.decode`.

    Attributes:
      ended: never; other streams find out by themselves where an answer is over.
    """

    ended = False

    def __init__(self, token_bytes: Callable[[int], bytes]):
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token_id: int) -> str:
        """The text that this token completes; empty while a character still lacks bytes."""
        return self._decoder.decode(self._token_bytes(int(token_id)))

    def finish(self) -> str:
        """What is left when no token follows: U+FFFD for a character cut short, else empty."""
        return self._decoder.decode(b"", final=True)


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of at most vocab_size tokens learned from texts, with the released family's added tokens last.

    The same texts in the same order give the same tokenizer.
    """
    smallest = 256 + len(TRAINED_TOKENS)
    if vocab_size < smallest:
        raise InputError(f"a vocabulary of {vocab_size} tokens is too small; bytes and added tokens take {smallest}.")
    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(TRAINED_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(list(TRAINED_TOKENS))
    return Tokenizer(BytePairs(tokenizer.to_str()), eos="<|im_end|>", pad="<|endoftext|>")


def _byte_level(model: models.Model) -> tokenizers.Tokenizer:
    """Qwen2's pipeline around a BPE model: NFC, its split rule, bytes as printable characters."""
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_QWEN_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _load(directory: pathlib.Path) -> Tokenizer:
    files = token_files.read(directory)
    config = token_files.config_of(files)
    # Where no file names them: the ends that the whole released Qwen3-based family uses.
    end, fill = "<|im_end|>", "<|endoftext|>"
    if (directory / pieces.MODEL).exists():
        vocabulary: TextVocabulary = pieces.Pieces.load(directory)
        end = fill = "</s>"
    elif (directory / "tokenizer.json").exists():
        file = directory / "tokenizer.json"
        vocabulary = BytePairs(_text(file), str(file))
    elif (directory / "vocab.json").exists() and (directory / "merges.txt").exists():
        vocabulary = BytePairs(_from_vocabulary(directory, files))
    else:
        raise InputError(
            f"{directory} has no tokenizer: neither tokenizer.json nor tokenizer.model nor vocab.json with merges.txt; "
            "copy them there."
        )
    text_of = token_files.text_of
    return Tokenizer(vocabulary, eos=text_of(config.eos_token, end), pad=text_of(config.pad_token, fill))


def _from_vocabulary(directory: pathlib.Path, files: Mapping[str, bytes]) -> str:
    """A tokenizer.json from vocab.json, merges.txt and the added tokens named in the other files."""
    added = token_files.added_of(files)
    vocab = convert(read_json(directory / "vocab.json"), dict[str, token_files.TokenId], str(directory / "vocab.json"))
    lines = _text(directory / "merges.txt").split("\n")
    merges: Any = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    # The library numbers added tokens by itself unless the model knows them already.
    known = {token: token_id for token, (token_id, _) in added.items()}
    try:
        model = models.BPE(vocab=vocab | known, merges=merges)
    except BaseException as error:  # as in `BytePairs`
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise InputError(f"{directory / 'merges.txt'} is damaged ({first_line(error)}); copy the file again.") from None
    tokenizer = _byte_level(model)
    for token, (_, special) in sorted(added.items(), key=lambda item: item[1][0]):
        add = tokenizer.add_special_tokens if special else tokenizer.add_tokens
        add([tokenizers.AddedToken(token, special=special, normalized=False)])
    return tokenizer.to_str()


def _text(path: pathlib.Path) -> str:
    try:
        return read_file(path).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error}); copy the file again.") from None
