"""What the making of training data has in common: lines for training, counts, and the accuracy of every question."""

import abc
import collections
import json
from collections.abc import Mapping, Sequence
from typing import Any

from internvl_jax.data import Prompt, Prompts
from internvl_jax.making.responses import PairConfig, Response


class Annotations(abc.ABC):
    """Lines of all questions, in their order, and what is to be said about them.

    Attributes:
      unit: what a line is.
      files: further files, text by name.
      accuracies: lines of accuracies.jsonl.
    """

    unit = "pair"
    files: Mapping[str, str] = {}

    def __init__(self, prompts: Prompts, config: PairConfig):
        self.prompts, self.config = prompts, config
        self.accuracies: list[str] = []
        self._totals: collections.Counter[str] = collections.Counter()

    @abc.abstractmethod
    def add(self, entry: dict[str, Any]) -> None:
        """Takes in one question."""

    @abc.abstractmethod
    def finish(self) -> tuple[dict[str, list[str]], dict[str, Any]]:
        """Lines by data set, and counts of its own."""

    @property
    def counts(self) -> dict[str, Any]:
        """Counts of questions and responses, and how right these were."""
        totals = self._totals
        return {
            **{name: totals[name] for name in ("questions", "responses", "one_sided", "grader_errors")},
            "accuracy": totals["right"] / totals["graded"] if totals["graded"] else None,
        }

    def read(self, entry: dict[str, Any], name: str) -> list[Response]:
        """Responses of an entry; those to the question itself are counted."""
        responses = [Response(**each) for each in entry.get(name, ())]
        if name == "responses":
            self._totals.update(questions=1, responses=len(responses))
            if self.config.graded:
                self._add_accuracy(entry, responses)
        return responses

    def _add_accuracy(self, entry: dict[str, Any], responses: Sequence[Response]) -> None:
        graded = [each.right for each in responses if each.accuracy is not None]
        self._totals.update(graded=len(graded), right=sum(graded), grader_errors=len(responses) - len(graded))
        self._totals["one_sided"] += len(set(graded)) == 1
        accuracy = sum(graded) / len(graded) if graded else None
        line = {"key": entry["key"], "name": entry["name"], "accuracy": accuracy, "responses": len(graded)}
        self.accuracies.append(json.dumps(line, ensure_ascii=False))


def shown_by(prompt: Prompt) -> dict[str, Any]:
    """What a line for training says of the pictures and the video of a prompt."""
    pictures, footage = list(prompt.pictures), prompt.footage
    entry: dict[str, Any] = {"image": pictures[0] if len(pictures) == 1 else pictures} if pictures else {}
    if footage is not None:
        entry["video"] = footage.path
        if footage.clip is not None:
            entry["clip"] = footage.clip
    return entry
