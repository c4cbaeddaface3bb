"""What the Flash model makes of its router, at which thresholds.

1. On the questions for development: image tokens against accuracy over many thresholds, and beside them a router that
   compresses as many tiles of every board, but any. What a model answers depends on what is compressed alone, so that
   most thresholds share most answers, and each is asked for once.
2. Of the thresholds that save enough the most accurate ones are taken. No question of the test has a part in that.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cascade import evaluation, progress
from cascade.evaluation import Answerer, Said
from cascade.recipe import CascadeRecipe
from internvl_jax.inference import Decided, Thresholds, load

_RANDOM_STREAM = 1


class Point(NamedTuple):
    """Thresholds, and what they lead to: image tokens a question, the share they save, and the share answered rightly.

    `random_accuracy` is that of as many compressed tiles of each board, drawn at random.
    """

    kind: str  # which threshold varies: absolute, while the relative one is 0, or the other way round
    threshold: float
    tokens: float
    saved: float
    accuracy: float
    random_accuracy: float

    @property
    def thresholds(self) -> Thresholds:
        relative = self.threshold if self.kind == "relative" else 0.0
        return Thresholds(relative, self.threshold if self.kind == "absolute" else 0.0)


def probabilities(folder: pathlib.Path, name: str) -> list[np.ndarray]:
    """The router's, of the tiles of every question of a prompt file; kept in answers/router_NAME.json."""
    path = folder / "answers" / f"router_{name}.json"
    if not path.exists():
        answerer = Answerer(*load(folder / "router", dtype="float32"))
        asked = evaluation.read_questions(folder / "data" / f"{name}.jsonl")
        with progress.bar(f"routing questions of {name}", len(asked)) as bar:
            found = answerer.probabilities(asked, lambda done: bar.update(done - bar.n))
        progress.write_whole(path, json.dumps([probability_G.tolist() for probability_G in found]) + "\n")
    return [np.array(row, np.float32) for row in json.loads(path.read_text())]


def at_random(compressed: Sequence[np.ndarray], seed: int) -> list[Decided]:
    """Decisions that compress as many tiles of every question, but any; those of fewer are among those of more."""
    decided = []
    for number, compress_G in enumerate(compressed):
        rank_G = np.random.default_rng((seed, _RANDOM_STREAM, number)).permutation(len(compress_G))
        decided.append(_decided(rank_G < compress_G.sum()))
    return decided


def _decided(compress_G: np.ndarray) -> Decided:
    return Decided(tuple(compress_G.tolist()))


def sweep(folder: pathlib.Path, recipe: CascadeRecipe) -> list[Point]:
    """Every threshold of the recipe on the questions for development; kept in answers/sweep.json."""
    path = folder / "answers" / "sweep.json"
    if not path.exists():
        points = _score_thresholds(folder, recipe)
        progress.write_whole(path, json.dumps([point._asdict() for point in points], indent=2) + "\n")
    return [Point(**entry) for entry in json.loads(path.read_text())]


def choose(points: Sequence[Point], saving: float) -> Point:
    """The most accurate of the points that save so much, and the one that saves more among equals; the one that saves
    most where none saves so much.
    """
    enough = [point for point in points if point.saved >= saving]
    return max(enough, key=lambda p: (p.accuracy, p.saved)) if enough else max(points, key=lambda p: p.saved)


def test(folder: pathlib.Path, name: str, recipe: CascadeRecipe) -> list[Said]:
    """Greedy answers to all test questions of the Flash model, or of the one whose tiles are drawn at random."""
    thresholds = choose(sweep(folder, recipe), recipe.sweep.saving).thresholds
    found = probabilities(folder, "test")
    if name == "flash":
        return evaluation.test(folder / "router", folder, name, [thresholds] * len(found))
    compressed = [thresholds.decide(probability_G, recipe.flash) for probability_G in found]
    return evaluation.test(folder / "router", folder, name, at_random(compressed, recipe.seed))


def _score_thresholds(folder: pathlib.Path, recipe: CascadeRecipe) -> list[Point]:
    found = probabilities(folder, "dev")
    tried = [("absolute", value) for value in recipe.sweep.absolute]
    tried += [("relative", value) for value in recipe.sweep.relative]
    points, decided, drawn = [Point(kind, value, 0, 0, 0, 0) for kind, value in tried], [], []
    for point in points:
        compressed = [point.thresholds.decide(probability_G, recipe.flash) for probability_G in found]
        decided.append([_decided(compress_G) for compress_G in compressed])
        drawn.append(at_random(compressed, recipe.seed))
    said = _answer(folder, {pair for each in (*decided, *drawn) for pair in enumerate(each)})
    full = recipe.model.tokens_per_tile * np.mean([len(probability_G) for probability_G in found])
    for place, (ours, others) in enumerate(zip(decided, drawn, strict=True)):
        tokens, right = np.mean([(said[pair].image_tokens, said[pair].right) for pair in enumerate(ours)], axis=0)
        random = np.mean([said[pair].right for pair in enumerate(others)])
        points[place] = Point(*points[place][:2], float(tokens), float(1 - tokens / full), float(right), float(random))
    return points


def _answer(folder: pathlib.Path, wanted: set[tuple[int, Decided]]) -> dict[tuple[int, Decided], Said]:
    """Greedy answers to questions for development, by number and decision."""
    answerer = Answerer(*load(folder / "router", dtype="float32"))
    asked = evaluation.read_questions(folder / "data" / "dev.jsonl")
    pairs = sorted(wanted, key=lambda pair: (sum(pair[1].compress), pair[0], pair[1].compress))  # by length
    with progress.bar("answers for all thresholds", len(pairs)) as bar:
        said = answerer.ask(
            [asked[number] for number, _ in pairs],
            progress=lambda done: bar.update(done - bar.n),
            thresholds=[decided for _, decided in pairs],
        )
    return dict(zip(pairs, said, strict=True))
