"""Text to token ids and back, around the `tokenizers` library.

1. `Tokenizer.load` reads a released directory: tokenizer.json, or vocab.json + merges.txt with the added tokens beside
   them. Which strings are special is read from the files.
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
from collections.abc import Iterable

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from internvl_jax.errors import InputError

# Released added tokens that are part of what a message says. InternVL's files mark the second line special, yet
# training data contains them as plain strings (grounding answers), so they have to be encoded from text.
TEXT_TOKENS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
TEXT_TOKENS += ("<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")
# What a tokenizer trained here adds, in the released order.
TRAINED_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<img>", "</img>")
TRAINED_TOKENS += ("<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")

# Qwen2's rule of what may not merge across (its public tokenizer files).
_QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Tokenizer:
    """A byte-level BPE vocabulary with its added tokens.

    definition: the contents of a tokenizer.json. eos, pad: strings of the tokens that end and fill a sequence.
    """

    def __init__(self, definition: str, *, eos: str, pad: str):
        fields = json.loads(definition)
        if not {"added_tokens", "decoder", "model"} <= fields.keys() or "ByteLevel" not in json.dumps(
            fields["decoder"]
        ):
            raise InputError("tokenizer.json is not a byte-level BPE, the only kind this model family uses.")
        fields |= {"truncation": None, "padding": None}  # some files carry them; nothing is ever cut here
        for token in fields["added_tokens"]:
            token["special"] = token["special"] and token["content"] not in TEXT_TOKENS
        self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(fields, ensure_ascii=False))
        self._tokenizer.encode_special_tokens = True  # the library's name for: special strings in text stay text
        self._added = {token["id"]: token["content"] for token in fields["added_tokens"]}
        self._control = {token["id"]: token["content"] for token in fields["added_tokens"] if token["special"]}
        longest_first = sorted(self._control.values(), key=len, reverse=True)
        self._control_pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._names = {"eos": eos, "pad": pad}
        self.eos, self.pad = self.token_id(eos), self.token_id(pad)

    def __reduce__(self):
        # The library's own pickling forgets encode_special_tokens (0.23.3); worker processes get the definition.
        return functools.partial(Tokenizer, **self._names), (self._tokenizer.to_str(),)

    @classmethod
    def load(cls, directory: str | pathlib.Path) -> "Tokenizer":
        """Reads tokenizer.json, or vocab.json + merges.txt and the added tokens of the other files, of a directory.

        Raises InputError where files are missing or unreadable.
        """
        return _load(pathlib.Path(directory))

    def save(self, directory: str | pathlib.Path) -> None:
        """Writes tokenizer.json and tokenizer_config.json, which `load` and transformers read."""
        directory = pathlib.Path(directory)
        (directory / "tokenizer.json").write_text(self._tokenizer.to_str(), encoding="utf-8")
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": self._names["eos"],
            "pad_token": self._names["pad"],
        }
        (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @functools.cached_property
    def digest(self) -> str:
        """Hex digest of everything that decides which ids a text gets."""
        return hashlib.sha256(json.dumps([self._tokenizer.to_str(), self._names]).encode()).hexdigest()

    @functools.cached_property
    def vocab_size(self) -> int:
        """The largest id plus one. A model's embedding table may have more rows."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def added_tokens(self) -> dict[str, int]:
        """Tokens besides the vocabulary proper, string -> id."""
        return {token: token_id for token_id, token in sorted(self._added.items())}

    def token_id(self, token: str) -> int:
        """The id of one token given as its string; InputError if the vocabulary lacks it."""
        token_id = self._tokenizer.token_to_id(token)
        if token_id is None:
            raise InputError(f"the tokenizer has no token {token!r}; use the tokenizer files of the model itself.")
        return token_id

    image_start = functools.cached_property(lambda self: self.token_id("<img>"))
    image_end = functools.cached_property(lambda self: self.token_id("</img>"))
    image_context = functools.cached_property(lambda self: self.token_id("<IMG_CONTEXT>"))
    im_start = functools.cached_property(lambda self: self.token_id("<|im_start|>"))
    im_end = functools.cached_property(lambda self: self.token_id("<|im_end|>"))

    def encode(self, text: str) -> list[int]:
        """Ids of text written by a user or a model: the strings of control tokens in it are plain text."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def split_special(self, markup: str) -> list[int | str]:
        """Our own markup as control token ids and the strings between them."""
        items, end = [], 0
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
        return b"".join(self._bytes(int(i), skip_special) for i in ids).decode("utf-8", errors="replace")

    def decode_stream(self, *, skip_special: bool = True) -> "DecodeStream":
        """Decodes token by token; see DecodeStream."""
        return DecodeStream(functools.partial(self._bytes, skip_special=skip_special))

    def _bytes(self, token_id: int, skip_special: bool) -> bytes:
        if token_id in self._added:
            return b"" if skip_special and token_id in self._control else self._added[token_id].encode()
        token = self._tokenizer.id_to_token(token_id)
        return b"" if token is None else bytes(_byte_of_char()[char] for char in token)


class DecodeStream:
    """Text that is complete so far: `feed` each id, then `finish`; the joined parts equal `Tokenizer.decode`.

    Attributes:
      ended: never; other streams find out by themselves where an answer is over.
    """

    ended = False

    def __init__(self, token_bytes):
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
    return Tokenizer(tokenizer.to_str(), eos="<|im_end|>", pad="<|endoftext|>")


def _byte_level(model) -> tokenizers.Tokenizer:
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


@functools.cache
def _byte_of_char() -> dict[str, int]:
    """Byte-level BPE's alphabet: printable Latin-1 bytes stand for themselves, the others are shifted above 255."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _load(directory: pathlib.Path) -> Tokenizer:
    config = _read_json(directory / "tokenizer_config.json") | _read_json(directory / "special_tokens_map.json")
    if (directory / "tokenizer.json").exists():
        definition = json.dumps(_read_json(directory / "tokenizer.json"), ensure_ascii=False)
    elif (directory / "vocab.json").exists() and (directory / "merges.txt").exists():
        definition = _from_vocabulary(directory, config)
    else:
        raise InputError(
            f"{directory} has no tokenizer: neither tokenizer.json nor vocab.json with merges.txt; copy them there."
        )
    # Where no file names them: the ends that the whole released Qwen3-based family uses.
    eos, pad = config.get("eos_token") or "<|im_end|>", config.get("pad_token") or "<|endoftext|>"
    return Tokenizer(definition, eos=_content(eos), pad=_content(pad))


def _from_vocabulary(directory: pathlib.Path, config: dict) -> str:
    """A tokenizer.json from vocab.json, merges.txt and the added tokens named in the other files."""
    added = _read_json(directory / "added_tokens.json")
    special = dict.fromkeys(added, True)
    for token_id, token in config.get("added_tokens_decoder", {}).items():
        added[token["content"]] = int(token_id)
        special[token["content"]] = token["special"]
    vocab = _read_json(directory / "vocab.json")
    lines = (directory / "merges.txt").read_text(encoding="utf-8").split("\n")
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    # The library numbers added tokens by itself unless the model knows them already.
    tokenizer = _byte_level(models.BPE(vocab=vocab | added, merges=merges))
    for token in sorted(added, key=added.__getitem__):
        add = tokenizer.add_special_tokens if special[token] else tokenizer.add_tokens
        add([tokenizers.AddedToken(token, special=special[token], normalized=False)])
    return tokenizer.to_str()


def _content(token: str | dict) -> str:
    """Special tokens are written as a string or as {"content": ...}."""
    return token if isinstance(token, str) else token["content"]


def _read_json(path: pathlib.Path) -> dict:
    """The object in a JSON file; empty if there is no such file."""
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); copy the file again.") from None
