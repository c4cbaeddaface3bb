"""Preference pairs from a model's own responses, by the two released ways of making MMPR, and by the same means the
labels of steps that a critic learns from (`step_labels`).

1. Correctness: responses to a question are sampled and graded; right ones are paired with wrong ones.
2. DropoutNTP: a response is cut, and the model goes on without seeing the pictures; the whole response is preferred to
   that continuation.
3. Of all pairs of a question at most so many are chosen, so that over the run preferred responses are neither longer
   nor shorter than the others (`choose_pairs`); what is still out of balance then is left out (`in_balance`).

Responses are kept batch by batch, and a run that was killed goes on where it stopped.
Source: released `tools/reasoning_data_pipeline` (mmpr_data_pipeline_*.py), MPO paper (arXiv 2411.10442).
"""

import collections
import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from internvl_jax.data import Processor, Prompt, Prompts, screen_prompts
from internvl_jax.errors import InputError
from internvl_jax.inference import follow_sampler
from internvl_jax.making.annotations import Annotations, shown_by
from internvl_jax.making.responses import Grade, PairConfig, Responder, Response, Split, at_blank_lines, open_sampler
from internvl_jax.making.resumable import ResumableFolder
from internvl_jax.making.step_labels import StepLabels
from internvl_jax.models import InternVL
from internvl_jax.sharding import flatten, placed, whole

_LOG = logging.getLogger(__name__)
RESPONSES, ACCURACIES, META = "responses.jsonl", "accuracies.jsonl", "meta.json"
_LATER = ("max_pairs", "length_slack", "max_broken", "right_share")  # settings that no response depends on
# Questions wait for the rows of those before them, so that few rows stand idle: so many times what is sampled at once.
_AHEAD = 4
_CHOICE = 2  # random stream of a question, besides those of its responses

Pair = tuple[Response, Response]  # chosen, rejected


def make_pairs(
    model: InternVL,
    processor: Processor,
    prompts: Prompts,
    config: PairConfig,
    out: str | os.PathLike,
    grade: Grade | None = None,
    progress: Callable[[int, int], None] | None = None,
    split: Split = at_blank_lines,
) -> dict[str, Any]:
    """Writes the folder `out`: an MMPR annotation for every data set of the prompts, meta.json, what was sampled
    (responses.jsonl) and, where responses are graded, accuracies.jsonl, which `prompts.screen_prompts` can filter by.

    Args:
        model, processor: as `load` gives them.
        prompts: the questions; they need answers where correctness decides. DropoutNTP takes the response that a prompt
            brings along, if it does.
        out: the folder to make, which appears when it is whole. An interrupted run goes on, and ends with the bytes of
            one that was not.
        grade: gives the scores of responses, given the true answers; DropoutNTP needs none.
        progress: called with the numbers of questions done and of all, after every batch.
        split: the steps of a response, see `at_blank_lines`.

    Where the model lies in several processes, process 0 makes pairs while the others `assist`.

    Returns:
        questions, responses, pairs (with process: lines), accuracy (of graded responses, None without), seconds, and
        further counts.

    Raises:
        InputError: bad prompts or settings, too many broken prompts, or no pairs.
    """
    started = time.perf_counter()
    fingerprint = _fingerprint(model)  # of all processes' parts, so before anything can fail here alone
    with _responding(Responder(model, processor, config, grade, split)) as responder:
        for dataset in prompts.datasets:
            if pathlib.Path(dataset.name).name != dataset.name:  # it names a file of pairs
                raise InputError(
                    f"the data set {dataset.name!r} can't name a file; call it something else in the meta file"
                )
        screened = screen_prompts(prompts, processor, config.max_prompt_tokens)
        asked = _distinct(prompts, screened.numbers, config)
        drawn = {name: value for name, value in dataclasses.asdict(config).items() if name not in _LATER}
        if config.method != "process":
            del drawn["completions"]
        settings = {**drawn, "prompts": _digest(asked), "model": fingerprint}
        with ResumableFolder(out, settings, RESPONSES) as folder:
            numbers, size = list(asked.values()), _AHEAD * config.batch_size // config.samples
            batches = [numbers[start : start + size] for start in range(0, len(numbers), size)]
            # Whole batches alone: other questions beside it change how an answer is rounded, and so what is drawn.
            done = folder.resume([len(batch) for batch in batches])
            if done:
                _LOG.info("%s has %d of %d batches of questions; going on from there", folder.path, done, len(batches))
            broken = len(screened.broken) + sum("broken" in entry for entry in folder.entries())
            _check_broken(broken, config)
            for count, batch in enumerate(batches[done:], done + 1):
                entries = responder.answer([(number, prompts[number]) for number in batch])
                broken += sum("broken" in entry for entry in entries)
                _check_broken(broken, config)
                folder.append(entries)
                if progress is not None:
                    progress(min(count * size, len(numbers)), len(numbers))
            summary = _write(folder, prompts, config)
            folder.finish()
    left_out = {"too_long": screened.too_long, "broken": broken}
    return summary | left_out | {"seconds": round(time.perf_counter() - started, 3)}


@contextlib.contextmanager
def _responding(responder: Responder) -> Iterator[Responder]:
    """Who answers; the other processes of a pod hear how it ends."""
    problem = "process 0 failed"
    try:
        yield responder
        problem = ""
    except InputError as error:
        problem = str(error)
        raise
    finally:
        responder.close(problem)


def assist(model: InternVL, processor: Processor, config: PairConfig) -> None:
    """The part of the other processes where process 0 makes pairs with a model that lies in several of them.

    Raises:
      InputError: what process 0 raised.
    """
    _fingerprint(model)
    follow_sampler(open_sampler(model, processor, config), flatten(model))


def choose_pairs(candidates: Iterable[Pair], limit: int, balance: int, rng: np.random.Generator) -> list[Pair]:
    """At most `limit` pairs of one question.

    Each next pair is of responses that were used least so far, and of those the one that brings the balance closest to
    0: or else a preference for long or for short responses is learned along with that for right ones. (The release
    draws pairs at random.)

    Args:
        candidates: the pairs to choose from, all different.
        balance: the tokens of chosen minus those of rejected responses, over all pairs before.
        rng: breaks ties.
    """
    pool = list(candidates)
    pool = [pool[k] for k in rng.permutation(len(pool))]
    uses: collections.Counter[Response] = collections.Counter()
    pairs: list[Pair] = []
    while pool and len(pairs) < limit:
        costs = [
            (uses[chosen] + uses[rejected], abs(balance + _excess((chosen, rejected)))) for chosen, rejected in pool
        ]
        pairs.append(pool.pop(min(range(len(pool)), key=costs.__getitem__)))
        uses.update(pairs[-1])
        balance += _excess(pairs[-1])
    return pairs


def in_balance(lengths_I2: np.ndarray, slack: float) -> np.ndarray:
    """Which pairs stay, bool [I], for chosen and rejected responses to be about as long.

    Pairs that are longest on the side that is longer in sum go first, until the sums differ by no more than `slack` of
    the larger one. At least half of the pairs stay: where nearly every right response is shorter than the wrong ones,
    lengths cannot be balanced.

    Args:
        lengths_I2: how many tokens the chosen and the rejected response of each pair have.
        slack: 0 for equal sums, 1 for any.
    """
    stay_I = np.ones(len(lengths_I2), bool)
    sums, excess_I = lengths_I2.sum(axis=0), lengths_I2[:, 0] - lengths_I2[:, 1]
    sign = np.sign(sums[0] - sums[1])
    for k in np.argsort(-sign * excess_I, kind="stable"):
        room, apart = slack * sums.max(), sign * (sums[0] - sums[1])
        if apart <= room or 2 * (stay_I.sum() - 1) < len(stay_I):
            break
        if sign * excess_I[k] <= apart + room:  # or it would tip over to the other side
            stay_I[k], sums = False, sums - lengths_I2[k]
    return stay_I


def right_and_wrong(responses: Sequence[Response]) -> list[Pair]:
    """All pairs of a right and a wrong response of different texts; a right one that was cut off is not chosen."""
    right = {each.text: each for each in responses if each.right and each.ended}
    wrong = {each.text: each for each in responses if each.wrong}
    return _sound(itertools.product(right.values(), wrong.values()))


def whole_and_continued(responses: Sequence[Response], continuations: Sequence[Response]) -> list[Pair]:
    """Each response with its continuation; one that was cut off is not chosen."""
    pairs = zip(responses, continuations, strict=True)
    return _sound({(whole.text, other.text): (whole, other) for whole, other in pairs if whole.ended}.values())


def _sound(pairs: Iterable[Pair]) -> list[Pair]:
    """Pairs that an annotation may have, see `preferences.parse_pair`."""
    texts = (((chosen.text.strip(), rejected.text.strip()), (chosen, rejected)) for chosen, rejected in pairs)
    return [pair for (chosen, rejected), pair in texts if chosen and rejected and chosen != rejected]


def _excess(pair: Pair) -> int:
    return pair[0].tokens - pair[1].tokens


def _distinct(prompts: Prompts, numbers: np.ndarray, config: PairConfig) -> dict[str, int]:
    """Numbers of the questions by key, each question once."""
    asked: dict[str, int] = {}
    for number in np.unique(numbers).tolist():
        prompt = prompts[number]
        if config.graded and not prompt.answer:
            raise InputError(f"{prompt.name} has no answer to grade by; write it, or make pairs by dropout_ntp.")
        if any(isinstance(picture, bytes) for picture in prompt.pictures):
            raise InputError(
                f"{prompt.name} holds its picture itself, but pairs name theirs by path; write it to a file."
            )
        asked.setdefault(prompt.key, number)
    return asked


def _check_broken(broken: int, config: PairConfig) -> None:
    if broken > config.max_broken:
        raise InputError(
            f"{broken} prompts are broken, more than the {config.max_broken} allowed; correct those that the log "
            "names, or allow more."
        )


def _digest(asked: dict[str, int]) -> str:
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]


def _fingerprint(model: InternVL) -> str:
    """A digest of the model, by a row of every parameter: enough to tell one step of a training from another."""
    params, place = flatten(model), model.runtime.placement
    first = lambda params: {path: whole(leaf[(0,) * (leaf.ndim - 1)]) for path, leaf in params.items()}
    with placed(place):
        rows = first(params) if place is None else jax.jit(first)(params)
    digest = hashlib.sha256()
    for path, leaf in sorted(params.items()):
        digest.update(f"{path} {leaf.shape} {leaf.dtype}".encode() + np.asarray(rows[path]).tobytes())
    return digest.hexdigest()[:32]


class _Pairs(Annotations):
    """Pairs of all questions, in their order, and what is to be said about them."""

    def __init__(self, prompts: Prompts, config: PairConfig):
        super().__init__(prompts, config)
        self._balance = 0
        self._pairs: list[tuple[str, str]] = []  # data set and line
        self._lengths: list[tuple[int, int]] = []  # of chosen and rejected

    def add(self, entry: dict[str, Any]) -> None:
        """Takes in one question."""
        responses = self.read(entry, "responses")
        if self.config.method == "correctness":
            candidates = right_and_wrong(responses)
        else:
            candidates = whole_and_continued(responses, self.read(entry, "continuations"))
        rng = np.random.default_rng((self.config.seed, entry["number"], _CHOICE))
        prompt = self.prompts[entry["number"]]
        for pair in choose_pairs(candidates, self.config.max_pairs, self._balance, rng):
            self._pairs.append((prompt.dataset.name, _line(prompt, pair)))
            self._lengths.append((pair[0].tokens, pair[1].tokens))
            self._balance += _excess(pair)

    def finish(self) -> tuple[dict[str, list[str]], dict[str, Any]]:
        """Lines by data set, and counts with the mean lengths of chosen and rejected responses."""
        lengths_I2 = np.array(self._lengths, np.int64).reshape(-1, 2)
        stay_I = in_balance(lengths_I2, self.config.length_slack)
        lines: dict[str, list[str]] = {}
        for (name, line), stay in zip(self._pairs, stay_I, strict=True):
            if stay:
                lines.setdefault(name, []).append(line)
        means = lengths_I2[stay_I].sum(axis=0) / max(1, stay_I.sum())
        counts = {
            "pairs": int(stay_I.sum()),
            "chosen_tokens": round(float(means[0]), 2),
            "rejected_tokens": round(float(means[1]), 2),
            "out_of_balance": int((~stay_I).sum()),
        }
        return lines, counts


def _write(folder: ResumableFolder, prompts: Prompts, config: PairConfig) -> dict[str, Any]:
    """Writes what follows from the responses, and returns the counts of the summary."""
    annotations = _ANNOTATIONS[config.method](prompts, config)
    for entry in folder.entries():
        annotations.add(entry)
    by_dataset, counts = annotations.finish()
    counts = annotations.counts | counts
    if not by_dataset:
        raise InputError(
            f"no {annotations.unit} came out of {counts['responses']} responses to {counts['questions']} questions, of "
            f"which {counts['one_sided']} got right or wrong ones only; {counts['grader_errors']} could not be graded "
            f"({folder.path / RESPONSES} has all): take more samples, longer responses or other questions."
        )
    meta = {}
    for dataset in prompts.datasets:
        lines, name = by_dataset.get(dataset.name, ()), f"{dataset.name}_{config.method}"
        if lines:
            meta[name] = {
                "root": dataset.root,
                "annotation": str(folder.out / f"{name}.jsonl"),
                "data_augment": dataset.data_augment,
                "repeat_time": 1,
                "length": len(lines),
            }
            _write_lines(folder.path / f"{name}.jsonl", lines)
    for name, text in annotations.files.items():
        (folder.path / name).write_text(text, encoding="utf-8")
    if annotations.accuracies:
        _write_lines(folder.path / ACCURACIES, annotations.accuracies)
    _write_lines(folder.path / META, [json.dumps(meta, indent=2, ensure_ascii=False)])
    return counts


def _line(prompt: Prompt, pair: Pair) -> str:
    """A line of an MMPR annotation."""
    own = {"question": prompt.question, "chosen": pair[0].text, "rejected": pair[1].text}
    if prompt.answer:
        own["answer_gt"] = prompt.answer
    if prompt.system is not None:
        own["system_prompt"] = prompt.system
    return json.dumps(shown_by(prompt) | own, ensure_ascii=False)


def _write_lines(path: pathlib.Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


_ANNOTATIONS: dict[str, Callable[[Prompts, PairConfig], Annotations]] = {
    "correctness": _Pairs,
    "dropout_ntp": _Pairs,
    "process": StepLabels,
}
