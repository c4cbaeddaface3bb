"""What a model can do: answers to a file of questions, greedy or sampled, graded by kind; and how well it reads.

1. An `Answerer` asks a model the questions of a prompt file; answers are kept as JSONL. A Flash model's may come with
   thresholds, or with decisions on every tile.
   `test` has a model answer all test questions.
2. `score` grades them: accuracy by kind with 95 % intervals (Wilson), and the share of well-formed answers.
3. `reading` lets a pretrained model write on after pictures: digits of single boxes, and whole boards.
"""

import itertools
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, get_args

import numpy as np
from PIL import Image

from cascade import boards, progress, questions
from cascade.boards import BoardLayout, Split
from internvl_jax.data import ChatInputs, Processor, tile_image
from internvl_jax.evaluation import wilson
from internvl_jax.inference import (
    MODEL_THRESHOLDS,
    Decided,
    Engine,
    Ladders,
    Request,
    SamplingParams,
    Thresholds,
    Vocabulary,
    load,
)
from internvl_jax.models import InternVL
from internvl_jax.validation import read_lines

ANSWER_TOKENS = 56
ROWS = 128
READINGS = 2000  # single digits of either size that are read
LADDERS = Ladders(rows=(ROWS,), prompts=(16, 48, 72, 96), tiles=(8, 128, 768), slots=(32, 80, 112, 144))


class Asked(NamedTuple):
    """A question of a prompt file, by kind, and its answer."""

    kind: str
    image: pathlib.Path
    text: str
    answer: str


class Said(NamedTuple):
    """What a model said to a question, in how many tokens (the one that ends it included), and how many it saw."""

    asked: Asked
    text: str
    tokens: int
    image_tokens: int

    @property
    def right(self) -> bool:
        return questions.grade(self.text, self.asked.answer).accuracy == 1

    @property
    def formed(self) -> bool:
        return questions.grade(self.text, self.asked.answer).format == 1


class CascadeScore(NamedTuple):
    """The share of n answers of a kind that is right, with its 95 % interval, and the share that is well-formed."""

    kind: str
    n: int
    accuracy: float
    low: float
    high: float
    formed: float


def read_questions(path: pathlib.Path) -> list[Asked]:
    """The questions of a prompt file."""
    kinds = {kind.text: name for name, kind in questions.KINDS.items()}
    entries = [entry for _, entry in read_lines(path)]
    return [Asked(kinds[e["question"]], path.parent / e["image"], e["question"], e["answer"]) for e in entries]


def score(said: Sequence[Said]) -> list[CascadeScore]:
    """A score for every kind, then one for all questions together."""
    scores = []
    for kind in (*questions.KINDS, "all"):
        chosen = [one for one in said if kind in (one.asked.kind, "all")]
        if chosen:
            right, n = sum(one.right for one in chosen), len(chosen)
            scores.append(CascadeScore(kind, n, right / n, *wilson(right, n), sum(one.formed for one in chosen) / n))
    return scores


def table(scores: Sequence[CascadeScore]) -> str:
    """The scores as a Markdown table, which also reads well on a terminal."""
    lines = [
        "| kind of question | n | accuracy | 95 % interval | well-formed |",
        "|:-----------------|-----:|---------:|----------------:|------------:|",
    ]
    lines += [
        f"| {s.kind:16} | {s.n:4} | {s.accuracy:8.2%} | {s.low:6.2%} .. {s.high:6.2%} | {s.formed:11.2%} |"
        for s in scores
    ]
    return "\n".join(lines)


class Answerer:
    """A model, ready for many questions; its programs are compiled once."""

    def __init__(self, model: InternVL, processor: Processor):
        self._engine = Engine(model, Vocabulary.of(processor), LADDERS)
        self._processor = processor

    def ask(
        self,
        asked: Sequence[Asked],
        temperature: float = 0.0,
        samples: int = 1,
        seed: int = 0,
        progress: Callable[[int], object] = lambda done: None,
        thresholds: Iterable[Thresholds | Decided] = itertools.repeat(MODEL_THRESHOLDS),
    ) -> list[Said]:
        """Answers, the samples of a question one after another.

        Args:
          progress: is called with the number of answers so far.
          thresholds: those of every question, one after the other.
        """
        requests = []
        for number, (one, own) in enumerate(zip(asked, thresholds)):
            inputs = self._inputs(one)
            for sample in range(samples):
                sampling = SamplingParams(ANSWER_TOKENS, temperature, seed=(seed * 1009 + number) * samples + sample)
                requests.append(Request(inputs.tokens_T, inputs.tiles_GHWC, sampling, own))
        said: list[Said] = []
        for tokens, image_tokens in self._generate(requests, progress):
            text = self._processor.tokenizer.decode(tokens)
            said.append(Said(asked[len(said) // samples], text, len(tokens), image_tokens))
        return said

    def probabilities(self, asked: Sequence[Asked], progress: Callable[[int], object]) -> list[np.ndarray]:
        """What a Flash model's router makes of the tiles of every question, float32 `[G]`: may they be compressed?"""
        found = []
        for start in range(0, len(asked), ROWS):
            tiles = [self._inputs(one).tiles_GHWC for one in asked[start : start + ROWS]]
            probability_G = self._engine.route(np.concatenate(tiles))
            found += np.split(probability_G, np.cumsum([len(tiles_GHWC) for tiles_GHWC in tiles]))[:-1]
            progress(len(found))
        return found

    def read(self, pictures: Sequence[np.ndarray], lengths: Sequence[int]) -> list[str]:
        """What the model writes after each picture, as in pretraining, cut to so many characters as `lengths` says."""
        tokenizer, config = self._processor.tokenizer, self._processor.image_config
        requests = []
        for picture_HW, length in zip(pictures, lengths, strict=True):
            tiles_GHWC = tile_image(Image.fromarray(picture_HW).convert("RGB"), config)
            context = [tokenizer.image_context] * (config.tokens_per_tile * len(tiles_GHWC))
            prompt = [tokenizer.image_start, *context, tokenizer.image_end, *tokenizer.encode("\n")]
            requests.append(Request(np.array(prompt, np.int32), tiles_GHWC, SamplingParams(length)))
        return [tokenizer.decode(tokens) for tokens, _ in self._generate(requests, lambda done: None)]

    def _inputs(self, asked: Asked) -> ChatInputs:
        content = [{"type": "image", "image": str(asked.image)}, {"type": "text", "text": asked.text}]
        return self._processor([{"role": "user", "content": content}])

    def _generate(
        self, requests: Sequence[Request], progress: Callable[[int], object]
    ) -> Iterator[tuple[list[int], int]]:
        """Tokens of every answer, and how many image tokens the model saw."""
        numbers: dict[int, int] = {}
        said: dict[int, tuple[list[int], int]] = {}
        waiting, done = list(enumerate(requests))[::-1], 0
        while waiting or numbers:
            while waiting and len(numbers) < 2 * ROWS:
                number, request = waiting.pop()
                numbers[self._engine.add(request)] = number
            for token in self._engine.step():
                number = numbers[token.id]
                tokens, _ = said.setdefault(number, ([], int((token.seen.sources_T >= 0).sum())))
                tokens.append(token.token)
                if token.end is not None:
                    del numbers[token.id]
                    done += 1
            progress(done)
        yield from (said[number] for number in range(len(requests)))


def test(
    workdir: pathlib.Path,
    folder: pathlib.Path,
    name: str,
    thresholds: Iterable[Thresholds | Decided] = itertools.repeat(MODEL_THRESHOLDS),
) -> list[Said]:
    """Greedy answers of a model to all test questions; read from the cascade's `answers/NAME.jsonl` if they are there.

    Args:
      workdir: the model's workdir.
      folder: the cascade's folder.
      name: the name of the answers' file.
      thresholds: those of every question, one after the other.
    """
    answers = folder / "answers" / f"{name}.jsonl"
    if not answers.exists():
        answerer = Answerer(*load(workdir, dtype="float32"))
        asked = read_questions(folder / "data" / "test.jsonl")
        with progress.bar(f"test questions, {name}", len(asked)) as bar:
            said = answerer.ask(asked, progress=lambda done: bar.update(done - bar.n), thresholds=thresholds)
        write_answers(said, answers)
    return read_answers(answers)


def read_unseen(workdir: pathlib.Path, split: Split, answers: pathlib.Path, seed: int) -> dict[str, float]:
    """How well a pretrained model reads digits of a split (`reading`), kept in `answers`."""
    if not answers.exists():
        shares = reading(Answerer(*load(workdir, dtype="float32")), split, READINGS, seed)
        progress.write_whole(answers, json.dumps(shares) + "\n")
    return json.loads(answers.read_text())


def reads(said: Said, digits: Sequence[int]) -> bool:
    """Whether the chain of thought has read the board's digits rightly, whatever it made of them."""
    chain = said.text.removeprefix("<think>").partition("</think>")[0]
    return questions.read_digits(chain) == questions.joined(digits)


def pass_at(said: Sequence[Said], samples: int) -> float:
    """The share of questions that any of their samples answers rightly."""
    return float(np.mean(np.array([one.right for one in said]).reshape(-1, samples).any(axis=1)))


def reading(answerer: Answerer, split: Split, count: int, seed: int) -> dict[str, float]:
    """Shares read rightly: single large digits, small digits of full boxes, and whole boards to their stop."""
    rng = np.random.default_rng((seed, get_args(Split).index(split)))
    large = [boards.draw(BoardLayout(1, 1, (1,)), split, rng) for _ in range(count)]
    small = [boards.draw(BoardLayout(1, 1, (4,)), split, rng) for _ in range(count // 4)]
    whole = [boards.draw(boards.random_layout(rng), split, rng) for _ in range(count // 4)]
    said = [
        answerer.read([b.picture_HW for b in group], [len(b.digits) + (group is whole) for b in group])
        for group in (large, small, whole)
    ]
    truth = [[questions.joined(b.digits) for b in group] for group in (large, small, whole)]
    return {
        "large digits": float(np.mean([s == t for s, t in zip(said[0], truth[0])])),
        "small digits": float(np.mean([a == b for s, t in zip(said[1], truth[1]) for a, b in zip(s.ljust(4), t)])),
        "whole boards": float(np.mean([s == f"{t}." for s, t in zip(said[2], truth[2])])),
    }


def write_answers(said: Sequence[Said], path: pathlib.Path) -> None:
    """One JSON object a line: kind, image, question, answer, said, tokens, image_tokens, right."""
    lines = []
    for one in said:
        kind, image, text, answer = one.asked
        line = {"kind": kind, "image": str(image), "question": text, "answer": answer, "said": one.text}
        counts = {"tokens": one.tokens, "image_tokens": one.image_tokens}
        lines.append(json.dumps({**line, **counts, "right": one.right}) + "\n")
    progress.write_whole(path, "".join(lines))


def read_answers(path: pathlib.Path) -> list[Said]:
    """What `write_answers` wrote."""
    entries = [entry for _, entry in read_lines(path)]
    return [
        Said(
            Asked(e["kind"], pathlib.Path(e["image"]), e["question"], e["answer"]),
            e["said"],
            e["tokens"],
            e["image_tokens"],
        )
        for e in entries
    ]
