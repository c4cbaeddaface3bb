"""Best-of-N on the boards: a policy's eight answers to a test question, chosen among by vote and by a critic.

1. `make_labels`: the policy answers prompts of reinforcement, and completes its own answers from every step; the share
   of right completions says which steps are right.
2. `train_critic`: the policy's model learns to say so.
3. `compare`: of the greedy answer and seven drawn ones to each test question the vote chooses one, and the critic, by
   the mean, the least and the last of its steps' scores.

Answers have no blank lines, so a step is what `steps` makes of a chain: what was read, and each sum.
"""

import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from cascade import evaluation, progress, stages
from cascade.evaluation import Answerer, Said
from cascade.recipe import CascadeRecipe
from configs.experiments import sft
from internvl_jax.data import open_prompts
from internvl_jax.evaluation import wilson
from internvl_jax.grading import Graders
from internvl_jax.inference import AGGREGATIONS, Critic, VoteChoice, load, message, ranking
from internvl_jax.making import pairs
from internvl_jax.validation import read_lines

Policy = Literal["sft", "mpo", "gspo"]
SYSTEM = "Is each step right? Say + or -."  # the released text would take more tokens than all else
_STEP = re.compile(r"[^:=]*(?::|=\d+)|.+", re.DOTALL)


class Tried(NamedTuple):
    """The share of n questions that are answered rightly by what a way of choosing takes, with the 95 % interval, and
    how many it wins and loses against the greedy answer.
    """

    way: str
    n: int
    accuracy: float
    low: float
    high: float
    won: int
    lost: int


def run(folder: pathlib.Path, policy: Policy, recipe: CascadeRecipe) -> dict[str, Any]:
    """All three, each taken as it is where it has ended; prints the comparison, and returns accuracies."""
    with progress.clock(folder, f"labels_{policy}"):
        make_labels(folder, policy, recipe)
    with progress.clock(folder, f"critic_{policy}"):
        train_critic(folder, policy, recipe)
    with progress.clock(folder, f"best_of_{policy}"):
        tried = compare(folder, policy, recipe)
    print(f"\nbest of {recipe.candidates} answers of {policy}\n\n{table(tried)}\n", flush=True)
    return {each.way: round(each.accuracy, 4) for each in tried}


def steps(text: str) -> list[str]:
    """The steps of an answer; joined they are the answer."""
    return _STEP.findall(text) or [text]


def make_labels(folder: pathlib.Path, policy: Policy, recipe: CascadeRecipe) -> None:
    """Labels of the steps of a policy's answers to the first prompts of reinforcement."""
    out = folder / f"labels_{policy}"
    if out.exists():
        return
    asked = folder / f"labels_{policy}.jsonl"
    lines = [json.dumps(line) for _, line in read_lines(folder / "data" / "rl.jsonl")][: recipe.labelled]
    progress.write_whole(asked, "".join(f"{line}\n" for line in lines))
    prompts, model = open_prompts(str(asked), str(folder / "data")), load(folder / policy, dtype="float32")
    with (
        progress.bar(f"questions for labels, {policy}", len(prompts)) as shown,
        Graders(recipe.labels.reward, 5.0, workers=0) as graders,
    ):
        advance = lambda done, _: shown.update(done - shown.n)
        pairs.make_pairs(*model, prompts, recipe.labels, out, graders.grade, advance, steps)


def train_critic(folder: pathlib.Path, policy: Policy, recipe: CascadeRecipe) -> pathlib.Path:
    """The policy's model, trained on the labels; its conversations have a system text of their own."""
    path = folder / f"critic_{policy}.jsonl"
    if not path.exists():
        (entry,) = json.loads((folder / f"labels_{policy}" / pairs.META).read_text()).values()
        lines = [line for _, line in read_lines(pathlib.Path(entry["annotation"]))]
        bare = [json.dumps({**line, "conversations": line["conversations"][1:]}) for line in lines]
        progress.write_whole(path, "".join(f"{line}\n" for line in bare))
    config = sft.get_config("tiny")
    meta = {"critic": {"root": str(folder / "data"), "annotation": str(path), "data_augment": False}}
    config.data.meta, config.data.system = str(folder / f"critic_{policy}.meta.json"), SYSTEM
    progress.write_whole(pathlib.Path(config.data.meta), json.dumps(meta) + "\n")
    return stages.train(config, recipe.critic, folder, f"critic_{policy}", policy, recipe)


def compare(folder: pathlib.Path, policy: Policy, recipe: CascadeRecipe) -> list[Tried]:
    """What each way of choosing makes of the answers to the test questions."""
    groups = candidates(folder, policy, recipe)
    path = folder / "answers" / f"best_of_{policy}.choices.json"
    if not path.exists():
        with Graders("exact", 5.0, workers=0) as graders:
            vote = VoteChoice(graders)
            chosen = {"vote": [vote((), [one.text for one in group]).best for group in groups]}
        progress.write_whole(path, json.dumps(chosen | _judged(folder, policy, groups)) + "\n")
    chosen = {"greedy": [0] * len(groups), **json.loads(path.read_text())}
    chosen["any"] = [next((k for k, one in enumerate(group) if one.right), 0) for group in groups]
    right = {way: [group[best].right for group, best in zip(groups, every)] for way, every in chosen.items()}
    return [_tried(way, every, right["greedy"]) for way, every in right.items()]


def candidates(folder: pathlib.Path, policy: Policy, recipe: CascadeRecipe) -> list[list[Said]]:
    """The answers to every test question, the greedy one first."""
    path = folder / "answers" / f"best_of_{policy}.jsonl"
    drawn = recipe.candidates - 1
    if not path.exists():
        answerer = Answerer(*load(folder / policy, dtype="float32"))
        asked = evaluation.read_questions(folder / "data" / "test.jsonl")
        with progress.bar(f"answers to choose among, {policy}", len(asked) * (1 + drawn)) as bar:
            first = answerer.ask(asked, progress=lambda done: bar.update(done - bar.n))
            update = lambda done: bar.update(len(asked) + done - bar.n)
            more = answerer.ask(asked, 1.0, drawn, recipe.seed, update)
        groups = [[one, *more[drawn * k : drawn * (k + 1)]] for k, one in enumerate(first)]
        evaluation.write_answers([one for group in groups for one in group], path)
    said = evaluation.read_answers(path)
    return [said[start : start + 1 + drawn] for start in range(0, len(said), 1 + drawn)]


def table(tried: Sequence[Tried]) -> str:
    """As a Markdown table."""
    lines = ["| choice | accuracy | 95 % interval | won | lost |", "|:-------|---------:|--------------:|----:|-----:|"]
    lines += [f"| {t.way} | {t.accuracy:.2%} | {t.low:.2%} .. {t.high:.2%} | {t.won} | {t.lost} |" for t in tried]
    return "\n".join(lines)


def _judged(folder: pathlib.Path, policy: Policy, groups: Sequence[Sequence[Said]]) -> dict[str, list[int]]:
    """Whom the critic chooses, by what of its scores counts."""
    critic = Critic(*load(folder / f"critic_{policy}", dtype="float32"))
    chosen: dict[str, list[int]] = {f"critic, {how}": [] for how in AGGREGATIONS}
    with progress.bar(f"answers judged, {policy}", len(groups)) as bar:
        for group in groups:
            asked = group[0].asked
            question = [message(asked.text, [str(asked.image)])]
            scores = critic.score(question, ["\n\n".join(steps(one.text)) for one in group])
            for how, worth in AGGREGATIONS.items():
                chosen[f"critic, {how}"].append(ranking([worth(each) for each in scores])[0])
            bar.update()
    return chosen


def _tried(way: str, right: Sequence[bool], greedy: Sequence[bool]) -> Tried:
    n, won = len(right), sum(ours and not theirs for ours, theirs in zip(right, greedy))
    lost = sum(theirs and not ours for ours, theirs in zip(right, greedy))
    return Tried(way, n, sum(right) / n, *wilson(sum(right), n), won, lost)
