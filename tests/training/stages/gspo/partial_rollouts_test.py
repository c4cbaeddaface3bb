"""Responses that later rollout batches end: what they keep, how old they get, what they weigh, how a run goes on."""

import copy
import dataclasses

import jax
import numpy as np
import pytest

from internvl_jax.training.run import setup
from internvl_jax.training.run.initial import read_initial
from tests.programs import save_start
from tests.training import toy
from tests.training.stages.gspo.objective_test import begin

LONGEST = 24


def of_many_lengths(config, program, source):
    """The state of a run whose model is likely to stop, after some tokens more than after others."""
    params = dict(read_initial(config.run.init_from, program))
    (stop, *_) = source._processor.stop_ids
    params["lm.head.weight"] = params["lm.head.weight"].at[stop].multiply(12)
    return program.from_params(params)


@pytest.mark.parametrize("staleness", [pytest.param(1, marks=pytest.mark.soak), 2])
def test_what_is_left_goes_on(start, tmp_path, staleness):
    config = toy.gspo_config(start, tmp_path / "w", mesh="fsdp=8", rows=16)
    changes = {"sample_prompts": 3, "ahead": 3, "staleness": staleness, "importance_cap": 1.02}
    config.stage = dataclasses.replace(config.stage, max_new_tokens=LONGEST, **changes)
    config.optim.learning_rate = 2e-2
    program, source, _ = begin(config)
    state = of_many_lengths(config, program, source)
    again, processor = setup.prepare(config)
    lefts, stale, capped, partly = [], [], [], 0
    for step in range(8):
        position = source.position()
        other = setup.open_source(again, program, processor)
        other.start(None if step == 0 else position)
        taken = other.take(state)
        other.close()
        batch = source.take(state)
        jax.tree.map(np.testing.assert_array_equal, batch, taken)  # as after a kill
        notes = source.notes()
        assert {k: v for k, v in other.notes().items() if "second" not in k} == {
            k: v for k, v in notes.items() if "second" not in k
        }
        groups = source._round.groups[2 * (step % 2) :][:2]
        before = {group.number: group for group in lefts[-1]} if lefts else {}
        if step % 2 == 0:
            lefts.append(copy.deepcopy(source._partial.groups))
            assert len(source._round.groups) == 4 and len(lefts[-1]) == 3
            assert len({group.place for group in lefts[-1]}) == 3
            assert min(group.begun for group in lefts[-1]) > step // 2 - staleness
            going = [each for group in lefts[-1] for each in group.responses if not each.finished]
            partly += sum(0 < len(each.tokens) < LONGEST for each in going)
            # What this policy has drawn, after what others had, are the trainer's log-probabilities.
            assert notes["max_sampler_difference"] < 1e-4
            stale.append(notes["stale_tokens"])
            for group in source._round.groups:
                kept = before[group.number].responses if group.number in before and sum(group.stale) else []
                assert group.stale == ([len(each.tokens) for each in kept] or [0] * 4)
                for tokens, sampled, each in zip(group.tokens, group.sampled, kept, strict=bool(kept)):
                    np.testing.assert_array_equal(tokens[: len(each.tokens)], each.tokens)
                    np.testing.assert_array_equal(sampled[: len(each.tokens)], each.logprobs)
        state, metrics = program.step(state, program.place(batch))
        pairs = [pair for group in groups for pair in zip(group.old, group.sampled, strict=True)]
        weights = [min(np.exp(np.mean(old - sampled)), 1.02) for old, sampled in pairs]
        np.testing.assert_allclose(metrics["importance_weight"], np.mean(weights), rtol=1e-5)
        capped.append(float(metrics["importance_capped"]))
        assert capped[-1] == np.mean(np.array(weights) >= 1.02)
    source.close()
    assert stale[0] == 0 < min(stale[1:]) and partly and 0 < max(capped) and min(capped) < 1


def test_experts_of_what_was_left_are_replayed(start, tmp_path):
    """Those of its last reading, by one policy: the ratio of a first step is 1 in later batches too."""
    save_start(toy.config(start, tmp_path / "unused", toy.MOE), tmp_path / "start")
    config = toy.gspo_config(start, tmp_path / "w", toy.MOE, mesh="data=8", init_from=str(tmp_path / "start"))
    config.stage = dataclasses.replace(config.stage, routes="replay", sample_prompts=2, ahead=3, staleness=2)
    program, source, _ = begin(config)
    state = of_many_lengths(config, program, source)
    for step in range(6):
        batch = source.take(state)
        noted = batch.routes_BTLK[..., 0, 0] >= 0
        assert noted.sum() == (batch.rows.segments_BT > 0).sum() - batch.keep_BX.sum()
        state, metrics = program.step(state, program.place(batch))
        if step % 2 == 0:
            assert float(metrics["max_logprob_difference"]) < 1e-4
            assert step == 0 or source.notes()["stale_tokens"] > 0
    source.close()
