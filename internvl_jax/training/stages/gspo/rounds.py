"""A rollout batch as data: groups of graded responses, their figures, and the files to go on from."""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from internvl_jax.data import Prompt
from internvl_jax.errors import InputError
from internvl_jax.files import whole_file
from internvl_jax.grading import Score
from internvl_jax.training.stages.gspo import partial_groups
from internvl_jax.training.stages.gspo.partial_groups import PartialGroup
from internvl_jax.validation import parse_json, read_arrays

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass
class ResponseGroup:
    """A prompt with its responses.

    Attributes:
      number: the prompt's number in its data.
      tokens: int32, the tokens of every response.
      sampled: float32, the sampler's log-probabilities of these tokens, under the policies that drew them.
      old: float32, the trainer's log-probabilities; empty in a group that no step learns from.
      texts: what every response says, thinking included.
      scores: every response's score.
      finished: for every response, False if it was cut.
      stale: how many tokens of every response older policies drew, which come first; none where that is not kept.
      reference: the same as `old` under the frozen reference; empty without one.
      routes: every response's experts (`Rollout.routes`); None where they are not noted.
    """

    number: int
    tokens: list[np.ndarray]
    sampled: list[np.ndarray]
    texts: list[str]
    scores: list[Score]
    finished: list[bool]
    stale: list[int] = dataclasses.field(default_factory=list)
    old: list[np.ndarray] = dataclasses.field(default_factory=list)
    reference: list[np.ndarray] = dataclasses.field(default_factory=list)
    routes: list[np.ndarray | None] = dataclasses.field(default_factory=list)

    @property
    def varied(self) -> bool:
        """Whether the rewards of the responses that could be graded differ: otherwise every advantage is 0."""
        return len({score.reward for score in self.scores if score.error is None}) > 1


@dataclasses.dataclass
class Round:
    """A rollout batch.

    Attributes:
      number: the batch's number in the run.
      consumed: how many prompts the run has taken after this batch.
      groups: a group for every prompt.
      notes: figures of the whole batch, for the log.
      left: groups that were begun, for later batches.
    """

    number: int
    consumed: int
    groups: list[ResponseGroup]
    notes: dict[str, float]
    left: list[PartialGroup] = dataclasses.field(default_factory=list)


def figures(groups: Sequence[ResponseGroup]) -> dict[str, float]:
    """Means over the responses of a rollout batch; rewards over those that could be graded, log-probabilities over
    the tokens that the batch's own policy drew, in groups that steps learn from.
    """
    scores = [score for group in groups for score in group.scores]
    graded = [score for score in scores if score.error is None]
    lengths = [len(tokens) for group in groups for tokens in group.tokens]
    learned = [group for group in groups if group.old]
    parts = [part for group in learned for part in zip(group.sampled, group.old, group.stale, strict=True)]
    differences = [(sampled - old)[stale:] for sampled, old, stale in parts]
    difference = np.abs(np.concatenate(differences or [np.zeros(0, np.float32)]))
    difference = difference if difference.size else np.zeros(1, np.float32)
    mean = lambda values: float(np.mean(list(values) or [0.0]))
    return {
        "reward": mean(score.reward for score in graded),
        "accuracy": mean(score.accuracy for score in graded),
        "format": mean(score.format for score in graded),
        "response_tokens": mean(lengths),
        "longest_response": float(max(lengths)),
        "truncated": mean(not finished for group in groups for finished in group.finished),
        "zero_advantage": mean(not group.varied for group in groups),
        "grader_errors": float(len(scores) - len(graded)),
        "sampler_difference": float(np.mean(difference)),
        "max_sampler_difference": float(np.max(difference)),
    }


def stale_figures(groups: Sequence[ResponseGroup]) -> dict[str, float]:
    """The share of tokens that older policies drew, and of the groups that have such tokens."""
    tokens = sum(len(tokens) for group in groups for tokens in group.tokens)
    return {
        "stale_tokens": sum(sum(group.stale) for group in groups) / max(1, tokens),
        "stale_groups": sum(sum(group.stale) > 0 for group in groups) / len(groups),
    }


def warn_of_equal_rewards(made: Round) -> None:
    """Warns of a rollout batch that its steps can learn nothing from."""
    if not any(group.varied for group in made.groups):
        _LOG.warning(
            "rollout batch %d: in no group do rewards differ (their mean is %.2f), so its steps learn nothing; the "
            "questions may be too easy or too hard for this model, or stage.reward not what they need",
            made.number,
            made.notes["reward"],
        )


def write_round(folder: pathlib.Path, made: Round, prompts: Sequence[Prompt], keep: int, weighed: bool = False) -> None:
    """`NUMBER.npz` to go on from, of the last few batches, and `NUMBER.jsonl` to read, of all.

    Args:
      prompts: those of the run.
      keep: how many of the last batches stay.
      weighed: whether steps take the sampler's log-probabilities.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for group in made.groups:
        prompt = prompts[group.number]
        said = [
            {"text": text, **score._asdict(), "finished": finished}
            for text, score, finished in zip(group.texts, group.scores, group.finished, strict=True)
        ]
        lines.append(
            json.dumps({"prompt": prompt.name, "answer": prompt.answer, "responses": said}, ensure_ascii=False)
        )
    with whole_file(folder / f"{made.number:06d}.jsonl") as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    groups = made.groups
    flat = lambda parts, dtype: np.concatenate([*(part for group in groups for part in parts(group)), []]).astype(dtype)
    zeros = lambda group: [np.zeros(len(tokens)) for tokens in group.tokens]
    more = {**_routes(groups), **partial_groups.to_arrays(made.left, len(groups[0].tokens))}
    if weighed:
        more["sampled"] = flat(lambda group: group.sampled, np.float32)
    with whole_file(folder / f"{made.number:06d}.npz") as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            consumed=made.consumed,
            notes=json.dumps(made.notes),
            numbers=[group.number for group in groups],
            lengths=[[len(tokens) for tokens in group.tokens] for group in groups],
            tokens=flat(lambda group: group.tokens, np.int32),
            old=flat(lambda group: group.old or zeros(group), np.float32),
            reference=flat(lambda group: group.reference or zeros(group), np.float32),
            scores=[[(*score[:3], score.error is not None) for score in group.scores] for group in groups],
            finished=[group.finished for group in groups],
            **more,
        )
    for path in folder.glob("[0-9]" * 6 + ".npz"):  # ours; whatever else lies there stays
        if int(path.stem) <= made.number - keep:
            path.unlink()


def _routes(groups: Sequence[ResponseGroup]) -> dict[str, Any]:
    found = [routes for group in groups for routes in group.routes]
    if found[0] is None:
        return {}
    return {"routes": np.concatenate(found), "route_lengths": [len(routes) for routes in found]}


# The arrays of a batch, for `read_arrays`: P prompts of S responses.
_ARRAYS = {
    "consumed": "i0",
    "notes": "U0",
    "numbers": "i1",
    "lengths": "i2",
    "tokens": "i1",
    "old": "f1",
    "reference": "f1",
    "scores": "f3",
    "finished": "b2",
}
_MORE = {"routes": "i3", "route_lengths": "i1", "sampled": "f1", **partial_groups.ARRAYS}


def _check_sizes(stored: Mapping[str, np.ndarray]) -> None:
    lengths_PS = stored["lengths"]
    tokens = int(lengths_PS.sum())
    sizes = {"numbers": lengths_PS.shape[:1], "scores": (*lengths_PS.shape, 4), "finished": lengths_PS.shape}
    sizes |= dict.fromkeys(("tokens", "old", "reference", *stored.keys() & {"sampled"}), (tokens,))
    wrong = [name for name, shape in sizes.items() if stored[name].shape != shape]
    if wrong or lengths_PS.size == 0 or lengths_PS.min() < 0:
        raise InputError(f"its arrays {wrong or ['lengths']} don't fit one another")
    if "routes" in stored and (
        stored["route_lengths"].shape != (lengths_PS.size,) or stored["route_lengths"].sum() != len(stored["routes"])
    ):
        raise InputError("its routes don't fit its responses")


def read_round(folder: pathlib.Path, number: int) -> Round:
    """A rollout batch that was written down, without its texts."""
    path = folder / f"{number:06d}.npz"
    try:
        stored = read_arrays(path, _ARRAYS, _MORE)
        notes = parse_json(str(stored["notes"]).encode(), "its notes")
        _check_sizes(stored)
        left = partial_groups.from_arrays(stored)
    except InputError as error:
        raise InputError(
            f"{path} can't be used ({error}), but the checkpoint stands within this rollout batch, or goes on with "
            "what it left; restore the file, or remove the checkpoint to go on from the one before"
        ) from error
    groups: list[ResponseGroup] = []
    routes: list[np.ndarray | None] = [None] * stored["lengths"].size
    if "routes" in stored:
        routes[:] = np.split(stored["routes"], np.cumsum(stored["route_lengths"])[:-1])
    ends = np.cumsum(stored["lengths"].reshape(-1))[:-1]
    split = {name: np.split(stored[name], ends) for name in ("tokens", "sampled", "old", "reference") if name in stored}
    size = stored["lengths"].shape[1]
    for p, prompt in enumerate(stored["numbers"].tolist()):
        mine = slice(p * size, (p + 1) * size)
        scores = [
            Score(reward, accuracy, form, "see the log" if failed else None)
            for reward, accuracy, form, failed in stored["scores"][p].tolist()
        ]
        finished = stored["finished"][p].tolist()
        own = {name: parts[mine] for name, parts in split.items()}
        groups.append(
            ResponseGroup(
                prompt,
                own["tokens"],
                own.get("sampled", []),
                [],
                scores,
                finished,
                old=own["old"],
                reference=own["reference"],
                routes=routes[mine],
            )
        )
    return Round(number, int(stored["consumed"]), groups, notes, left)
