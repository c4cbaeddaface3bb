"""Rollout batches: groups of responses that the policy samples, graded, and taken apart into optimizer steps.

1. Prompts come in an order that is a function of seed and position. Each gets a group of responses, whose random
   streams depend on seed, the prompt's place and the response's number alone.
2. Responses are graded in worker processes; rewards become advantages within their group.
3. The trainer's own code gives the log-probabilities that ratios are taken to: at the first step of a batch they are 1.
   The sampler's are compared with them, which shows a sampler that has drifted from the trainer.
4. The batch is written down (`WORKDIR/rollouts`), so that a run stopped within it goes on with the same responses.
"""

import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from internvl_jax.data import (
    PromptStream,
    RowConfig,
    Skipped,
    encode_prompt,
    open_prompts,
    read_accuracies,
    screen_prompts,
)
from internvl_jax.errors import InputError
from internvl_jax.grading import Graders, Score
from internvl_jax.inference import Rollout, TextStream
from internvl_jax.losses import gspo
from internvl_jax.sharding import Params
from internvl_jax.training.run.initial import read_reference
from internvl_jax.training.run.score import make_scorer
from internvl_jax.training.run.state import TrainState
from internvl_jax.training.stages.base import SourceParts
from internvl_jax.training.stages.gspo.objective import RolloutBatch
from internvl_jax.training.stages.gspo.partial_rollouts import PartialRollouts
from internvl_jax.training.stages.gspo.response_rows import ResponseLayout, lay_out, most_rows
from internvl_jax.training.stages.gspo.rounds import (
    ResponseGroup,
    Round,
    figures,
    read_round,
    stale_figures,
    warn_of_equal_rewards,
    write_round,
)
from internvl_jax.training.stages.gspo.sampling_weights import check_memory, resharder, sampling_place
from internvl_jax.training.stages.gspo.settings import GspoConfig

FOLDER = "rollouts"


class Rollouts:
    """Batches of a policy's own responses, see `base.Source`."""

    def __init__(self, settings: GspoConfig, parts: SourceParts):
        run, data, program, processor = parts.run, parts.pipeline, parts.program, parts.processor
        self._settings, self._run, self._data, self._program = settings, run, data, program
        self._processor, self._reference_source = processor, parts.reference
        prompts = open_prompts(data.meta, allow_outside_root=data.allow_outside_root)
        accuracies = read_accuracies(settings.accuracies) if settings.accuracies else None
        bounds = (settings.lowest_accuracy, settings.highest_accuracy)
        screened = screen_prompts(
            prompts, processor, settings.max_prompt_tokens, accuracies, bounds, data.tile_budget, answered=True
        )
        self._skipped = Skipped(data.max_skipped)
        self._skipped.extend(screened.broken.values())
        self._check_rows(screened.most_tiles)
        place = sampling_place(program)
        check_memory(settings, program, place, run.dtype)
        self.digest = screened.digest
        self._stream = PromptStream(prompts, screened.numbers, run.seed)
        self._partial = PartialRollouts(settings, parts, place, self._stream, self._skipped)
        image = processor.image_config
        self._layout = RowConfig(
            data.token_budget,
            data.tile_budget,
            image.tile_size,
            image.tokens_per_tile,
            processor.tokenizer.image_context,
            weighting="token",
            several=True,
        )
        self._graders = Graders(settings.reward, settings.grader_seconds, settings.grader_workers)
        self._to_sampling = resharder(program, place, run.dtype)
        self._score = make_scorer(program, program.graphdef, run.micro_batches, run.logprob_chunk)
        self._score_reference = make_scorer(program, program.reference_graphdef, run.micro_batches, run.logprob_chunk)
        self._reference: Params | None = None
        self._folder = pathlib.Path(run.workdir) / FOLDER
        self._round: Round | None = None
        self._next_round = self._used = 0

    @property
    def _steps(self) -> int:
        """Optimizer steps of a rollout batch."""
        return self._settings.prompts // self._settings.mini_batch

    def start(self, position: Any) -> None:
        if self._settings.kl:
            self._reference = read_reference(self._reference_source, self._program, self._run.init_from)
        if position is None:
            return
        if position["prompts"] != self.digest:
            raise InputError(
                f"the saved data position belongs to other prompts than the {len(self._stream)} that "
                f"{self._data.meta} and the filters leave; restore them or start a new run"
            )
        self._next_round, self._used = position["round"], position["used"]
        self._partial.consumed = position["consumed"]
        if self._used or (self._settings.ahead and self._next_round):
            self._round = read_round(self._folder, self._next_round - 1)
            self._partial.groups = self._round.left

    def take(self, state: TrainState) -> RolloutBatch:
        settings = self._settings
        if self._used in (0, self._steps):
            self._round = None  # let go of the old one first
            self._round = self._collect(state.params)
            self._next_round, self._used = self._next_round + 1, 0
        groups = self._learned(self._round.groups[self._used * settings.mini_batch :][: settings.mini_batch])
        self._used += 1
        layout = self._lay_out(groups)
        advantages, keep = _advantages(groups, settings)
        flat = lambda name: [values for group in groups for values in getattr(group, name)]
        batch = RolloutBatch(
            layout.rows,
            layout.place(flat("old")),
            layout.spread(advantages),
            layout.spread(keep),
            layout.place(flat("reference")) if settings.kl else None,
            layout.place_routes(flat("routes")) if settings.routes != "ignore" else None,
            layout.place(flat("sampled")) if settings.importance_cap else None,
        )
        return self._program.share.of(batch)

    def notes(self) -> dict[str, float]:
        return {"skipped": len(self._skipped.reasons), **self._round.notes}

    def position(self) -> Any:
        return {
            "prompts": self.digest,
            "round": self._next_round,
            "consumed": self._partial.consumed,
            "used": 0 if self._used == self._steps else self._used,
        }

    def close(self) -> None:
        self._graders.__exit__()

    def _collect(self, params: Params) -> Round:
        """Samples, grades and scores a rollout batch, and writes it down."""
        settings, seconds, started = self._settings, {"grading": 0.0}, time.perf_counter()
        varied: list[ResponseGroup] = []
        equal: list[ResponseGroup] = []
        drawn = 0
        self._partial.age()
        sampling_params = self._to_sampling(params)
        for _ in range(settings.max_resamples + 1 if settings.zero_variance == "resample" else 1):
            wanted = settings.prompts - len(varied)
            sampled = self._sample(sampling_params, wanted, seconds)
            drawn += len(sampled)
            for group in sampled:
                (equal if settings.zero_variance == "resample" and not group.varied else varied).append(group)
            if len(varied) == settings.prompts:
                break
        del sampling_params  # views of the parameters, which the step that follows takes over
        groups = varied + equal[: settings.prompts - len(varied)]
        seconds["sampling"] = time.perf_counter() - started - seconds["grading"]
        started = time.perf_counter()
        self._score_groups(groups, self._score, params, "old")
        if self._reference is not None:
            reference = self._program.reference_of(params, self._reference)
            self._score_groups(groups, self._score_reference, reference, "reference")
            del reference
        seconds["scoring"] = time.perf_counter() - started
        notes = figures(groups) | (stale_figures(groups) if settings.ahead else {})
        notes |= {"resampled": float(drawn - len(groups))}
        notes |= {f"{name}_seconds": value for name, value in seconds.items()}
        made = Round(self._next_round, self._partial.consumed, groups, notes, self._partial.groups)
        if jax.process_index() == 0:
            warn_of_equal_rewards(made)
            weighed = settings.importance_cap > 0
            write_round(self._folder, made, self._stream.prompts, self._rounds_kept(), weighed)
        return made

    def _sample(self, params: Params, wanted: int, seconds: dict[str, float]) -> list[ResponseGroup]:
        """Graded groups of so many prompts."""
        sampled = self._partial.sample(params, wanted, self._next_round)
        started = time.perf_counter()
        texts = [[self._text(response) for response in group.responses] for group in sampled]
        scores = self._grade(texts, [self._stream.prompts[group.number].answer for group in sampled])
        seconds["grading"] += time.perf_counter() - started
        groups: list[ResponseGroup] = []
        for group, said, graded in zip(sampled, texts, scores, strict=True):
            tokens, logprobs, finished, routes = map(list, zip(*group.responses, strict=True))
            stale = group.stale or [0] * len(tokens)
            groups.append(ResponseGroup(group.number, tokens, logprobs, said, graded, finished, stale, routes=routes))
        return groups

    def _text(self, response: Rollout) -> str:
        """What graders read: all that was written but the token that ended it."""
        stream = TextStream(self._processor)
        tokens = response.tokens[:-1] if response.finished else response.tokens
        return "".join(stream.feed(token) for token in tokens.tolist()) + stream.finish()

    def _grade(self, texts: list[list[str]], answers: list[str]) -> list[list[Score]]:
        group = self._settings.group
        flat = [text for said in texts for text in said]
        truths = [answer for answer in answers for _ in range(group)]
        if jax.process_count() == 1:
            scores = self._graders.grade(flat, truths)
        else:
            # One process grades for all: time limits could fall differently.
            graded = self._graders.grade(flat, truths) if jax.process_index() == 0 else []
            table = np.array([[s.reward, s.accuracy, s.format, s.error is not None] for s in graded], np.float64)
            table = multihost_utils.broadcast_one_to_all(table if len(graded) else np.zeros((len(flat), 4)))
            scores = [
                Score(reward, accuracy, form, "see process 0" if failed else None)
                for reward, accuracy, form, failed in table.tolist()
            ]
        return [scores[start : start + group] for start in range(0, len(scores), group)]

    def _learned(self, groups: list[ResponseGroup]) -> list[ResponseGroup]:
        """The groups that take rows: all, or those that something can be learned from; one at least."""
        if self._settings.zero_variance != "drop":
            return groups
        return [group for group in groups if group.varied] or groups[:1]

    def _lay_out(self, groups: Sequence[ResponseGroup]) -> ResponseLayout:
        prompts = [encode_prompt(self._stream.prompts[group.number], self._processor) for group in groups]
        run = self._run
        return lay_out(prompts, [group.tokens for group in groups], self._layout, run.rows, run.micro_batches)

    def _check_rows(self, most_tiles: int) -> None:
        prompts, group, rows = self._settings.mini_batch, self._settings.group, self._run.rows
        tokens, tiles = self._data.token_budget, self._data.tile_budget
        longest = self._settings.max_prompt_tokens + self._settings.max_new_tokens
        needed = most_rows(prompts, group, longest, most_tiles, tokens, tiles)
        if needed > rows:
            raise InputError(
                f"{prompts} x {group} responses about up to {most_tiles} tiles may fill {needed} rows of {tokens} "
                f"tokens and {tiles} tiles, but run.rows is {rows}; raise data.tile_budget or run.rows"
            )

    def _score_groups(self, groups: list[ResponseGroup], score: Any, params: Params, name: str) -> None:
        """Fills in log-probabilities, in the very rows that steps will take."""
        for start in range(0, len(groups), self._settings.mini_batch):
            part = self._learned(groups[start : start + self._settings.mini_batch])
            layout = self._lay_out(part)
            routes = None
            if self._settings.routes == "replay":
                routes = layout.place_routes([each for group in part for each in group.routes])
            given = {"rows": layout.rows, "routes_BTLK": routes}
            mine = self._program.place(self._program.share.of(given))
            found = iter(layout.pick(np.asarray(score(params, **mine))))
            for group in part:
                setattr(group, name, [next(found) for _ in group.tokens])

    def _rounds_kept(self) -> int:
        """How many of the last rollout batches a kept checkpoint may need."""
        run = self._run
        return run.keep_last * run.save_every // self._steps + 2


def _advantages(groups: Sequence[ResponseGroup], settings: GspoConfig) -> tuple[np.ndarray, np.ndarray]:
    """float32 and bool `[responses]`: the advantage of every response, and whether the loss counts it.

    One that could not be graded is in no mean and no loss, nor is one that is left alone by that.
    """
    rewards_QA = np.array([[score.reward for score in group.scores] for group in groups], np.float32)
    graded_QA = np.array([[score.error is None for score in group.scores] for group in groups])
    keep_QA = graded_QA & (graded_QA.sum(axis=1) > min(1, settings.group - 1))[:, None]
    if settings.mask_overlong:
        keep_QA &= np.array([group.finished for group in groups])
    if settings.zero_variance == "drop":
        keep_QA &= np.array([group.varied for group in groups])[:, None]
    return np.asarray(gspo.advantages(rewards_QA, graded_QA)).reshape(-1), keep_QA.reshape(-1)
