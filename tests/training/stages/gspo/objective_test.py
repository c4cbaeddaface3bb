"""Reinforcement on a toy: what holds at the first step, on any mesh, after a stop; and that a reward is learned."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from internvl_jax.data.processor import ChatInputs
from internvl_jax.data.reading.prompts import open_prompts
from internvl_jax.data.rows.batch import RowConfig
from internvl_jax.errors import InputError
from internvl_jax.grading import Score
from internvl_jax.models import FLASH_PARTS
from internvl_jax.training import Group, train
from internvl_jax.training.run import hooks, setup
from internvl_jax.training.run.hooks import plot_health
from internvl_jax.training.run.initial import read_initial
from internvl_jax.training.run.setup import check
from internvl_jax.training.stages.gspo import rollouts
from internvl_jax.training.stages.gspo.response_rows import lay_out
from internvl_jax.training.stages.gspo.rounds import read_round
from internvl_jax.training.stages.gspo.stage import GSPO
from tests.programs import build, save_start
from tests.training import toy

MODELS = {"dense": toy.MODEL, "moe": toy.MOE, "gpt_oss": toy.GPT_OSS}


def begin(config, devices=None):
    """(program, source, state) of a run at its first step."""
    config, processor = setup.prepare(config)
    program = build(config, devices)
    source = setup.open_source(config, program, processor)
    source.start(None)
    params = read_initial(config.run.init_from, program)
    return program, source, program.from_params(params)


@pytest.mark.parametrize("family", MODELS)
def test_at_the_first_step_of_a_rollout_batch_the_ratio_is_1(start, tmp_path, family):
    model = MODELS[family]
    if family != "dense":
        save_start(toy.config(start, tmp_path / "unused", model), tmp_path / "start")
    given = {"init_from": str(tmp_path / "start")} if family != "dense" else {}
    config = toy.gspo_config(start, tmp_path / "w", model, mesh="data=8", **given)
    if family != "dense":
        config.stage.routes = "note"
    program, source, state = begin(config)
    batch = source.take(state)
    assert (batch.rows.slots_BJ >= 0).sum() > batch.rows.tile_mask_G.sum() > 0  # responses share tiles
    _, metrics = program.step(state, program.place(batch))
    assert float(metrics["max_logprob_difference"]) < 1e-5
    assert abs(float(metrics["max_ratio"]) - 1) < 1e-5
    assert float(metrics["clip_fraction"]) == 0 and np.isfinite(metrics["grad_norm"])
    # The sampler, which decodes token by token with a cache, agrees with the trainer.
    assert source.notes()["max_sampler_difference"] < 1e-4


@pytest.mark.parametrize("choice", ["note", "replay"])
def test_the_experts_that_the_sampler_took(start, tmp_path, choice):
    """They are the trainer's own at the first step; other ones are counted, or replayed with live weights."""
    save_start(toy.config(start, tmp_path / "unused", toy.MOE), tmp_path / "start")
    config = toy.gspo_config(start, tmp_path / "w", toy.MOE, mesh="data=8", init_from=str(tmp_path / "start"))
    config.stage.routes = choice
    program, source, state = begin(config)
    config, _ = setup.prepare(config)
    batch = source.take(state)
    noted = batch.routes_BTLK[..., 0, 0] >= 0
    # All tokens but the last of each response.
    assert noted.sum() == (batch.rows.segments_BT > 0).sum() - batch.keep_BX.sum()
    other = batch._replace(routes_BTLK=np.where(batch.routes_BTLK >= 0, (batch.routes_BTLK + 1) % 8, -1))
    other = other._replace(routes_BTLK=other.routes_BTLK.astype(np.int16))
    found = []
    for each in (batch, other):
        params = read_initial(config.run.init_from, program)
        after, metrics = program.step(program.from_params(params), program.place(each))
        found.append(jax.device_get((metrics, after.params["lm.layers.mlp.router.weight"], after.opt_state[1].mu)))
    (same, *_), (moved, _, moments) = found
    assert same["router_agreement"] > 0.999 and same["max_logprob_difference"] < 1e-4
    assert moved["router_agreement"] < 0.9
    assert (moved["max_logprob_difference"] > 1e-3) == (choice == "replay")
    assert np.any(moments["lm.layers.mlp.router.weight"])


@pytest.fixture(scope="module")
def sampled(start, tmp_path_factory):
    """Config, responses of one rollout batch, and what a step on one device makes of them."""
    config = toy.gspo_config(start, tmp_path_factory.mktemp("gspo") / "w", mesh="fsdp=1", rows=32)
    program, source, state = begin(config, jax.devices()[:1])
    batch = source.take(state)
    rng = np.random.default_rng(0)  # an older policy, so that ratios differ
    batch = batch._replace(old_BT=batch.old_BT + rng.normal(0, 0.4, batch.old_BT.shape).astype(np.float32))
    state, metrics = program.step(state, program.place(batch))
    return config, source, batch, jax.device_get((metrics, state.params))


NAMES = ("loss", "policy", "clip_fraction", "logprob_difference", "max_logprob_difference", "max_ratio", "entropy")


@pytest.mark.parametrize(
    "given",
    [{"mesh": "fsdp=4,tensor=2", "rules": "fsdp_tp"}, {"mesh": "fsdp=8", "micro_batches": 4}],
)
def test_any_mesh_and_micro_batches_equal_one_batch(sampled, given):
    config, _, batch, (expected, params) = sampled
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, **given))
    program, source, state = begin(config)
    source.close()
    state, metrics = program.step(state, program.place(batch))
    for name in (*NAMES, "grad_norm", "samples"):
        np.testing.assert_allclose(metrics[name], expected[name], rtol=2e-5, atol=1e-7, err_msg=name)
    assert 0 < expected["clip_fraction"] < 1
    # At a first step of Adam every gradient has the same size: those that are noise beside zero are left out.
    for path in ("lm.embed.weight", "lm.head.weight", "projector.fc2.weight"):
        np.testing.assert_allclose(state.params[path], params[path], atol=1e-4, err_msg=path)


def test_packed_responses_equal_responses_alone(sampled):
    config, source, batch, (expected, _) = sampled
    packed = int(np.max(batch.rows.segments_BT))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, token_budget=70))
    program, other, state = begin(config, jax.devices()[:1])
    groups = source._round.groups[: config.stage.mini_batch]
    layouts = [maker._lay_out(groups) for maker in (source, other)]
    assert packed > 1 == int(np.max(layouts[1].rows.segments_BT))
    old = layouts[0].pick(batch.old_BT)
    responses = lambda values_BX: layouts[1].spread(_by_response(layouts[0], values_BX))
    alone = batch._replace(
        rows=layouts[1].rows,
        old_BT=layouts[1].place(old),
        advantages_BX=responses(batch.advantages_BX),
        keep_BX=responses(batch.keep_BX),
    )
    other.close()
    _, metrics = program.step(state, program.place(alone))
    for name in (*NAMES, "grad_norm"):
        np.testing.assert_allclose(metrics[name], expected[name], rtol=2e-5, atol=1e-7, err_msg=name)


def _by_response(layout, values_BX):
    numbers_BX = layout.responses_BX
    found = np.zeros(numbers_BX.max() + 1, values_BX.dtype)
    found[numbers_BX[numbers_BX >= 0]] = values_BX[numbers_BX >= 0]
    return found


def test_a_reward_is_learned_and_a_stopped_run_goes_on_within_a_rollout_batch(start, tmp_path):
    def config():
        made = toy.gspo_config(start, tmp_path / "w", steps=31, save_every=15, keep_every=15, mesh="data=8")
        made.optim.learning_rate, made.data.token_budget = 1.5e-2, 67  # a response a row: short rows are quick
        return made

    train(config())
    lines = hooks.read_metrics(tmp_path / "w")
    rewards = [line["reward"] for line in lines]
    assert np.mean(rewards[-6:]) > 2 * np.mean(rewards[:6])
    assert lines[-1]["entropy"] < lines[0]["entropy"]
    read = (tmp_path / "w" / "rollouts" / "000003.jsonl").read_text().splitlines()
    assert len(read) == 4 and len(json.loads(read[0])["responses"]) == 4
    # Step 15 stands between the two steps of a rollout batch.
    forget(tmp_path / "w", after=15)
    for path in (tmp_path / "w" / "rollouts").glob("*"):
        if int(path.stem) > 7:
            path.unlink()
    train(config())
    timeless = lambda lines: [{k: v for k, v in line.items() if "second" not in k} for line in lines]
    assert timeless(hooks.read_metrics(tmp_path / "w")) == timeless(lines)
    forget(tmp_path / "w", after=15)
    (tmp_path / "w" / "rollouts" / "000007.npz").unlink()
    with pytest.raises(InputError, match=r"000007\.npz can't be used .* within this rollout batch"):
        train(config())


def forget(workdir, after):
    """Removes checkpoints, so that a run goes on from an earlier one."""
    for path in (workdir / "checkpoints").iterdir():
        if path.name.isdigit() and int(path.name) > after:
            shutil.rmtree(path)
    assert (workdir / "checkpoints" / str(after)).is_dir()


def constant(response, truth):
    return Score(0.5, 0.0, 0.5)


def test_groups_of_equal_rewards(start, tmp_path):
    """Kept they have a finite gradient of zero, dropped no weight; resampling gives up after a while."""
    for choice in ("keep", "drop", "resample"):
        config = toy.gspo_config(start, tmp_path / choice, mesh="data=8")
        config.stage.reward, config.stage.zero_variance = f"{__name__}:constant", choice
        config.stage.max_resamples = 2
        program, source, state = begin(config)
        batch = source.take(state)
        _, metrics = program.step(state, program.place(batch))
        assert metrics["loss"] == 0 and metrics["grad_norm"] == 0 and metrics["nonfinite"] == 0
        assert batch.keep_BX.sum() == (0 if choice == "drop" else 8)
        notes = source.notes()
        assert notes["zero_advantage"] == 1 and notes["reward"] == 0.5
        assert notes["resampled"] == (8 if choice == "resample" else 0)
        assert source.position()["consumed"] == (12 if choice == "resample" else 4)


def picky(response, truth):
    return constant(response, truth) if truth == "red" else toy.vowels(response, truth)


def test_groups_of_equal_rewards_among_others(start, tmp_path):
    """Dropped they take no rows, and the gradient is that of the others; resampled, other prompts take their place."""
    found, config = {}, toy.gspo_config(start, tmp_path / "w", mesh="data=8")
    config.stage.reward, config.stage.mini_batch, config.run.rows = f"{__name__}:picky", 4, 16
    for choice in ("keep", "drop", "resample"):
        config.stage.zero_variance = choice
        program, source, state = begin(config)
        batch = source.take(state)
        assert [len(group.old) for group in source._round.groups] == [
            4 if group.varied or choice != "drop" else 0 for group in source._round.groups
        ]
        _, metrics = program.step(state, program.place(batch))
        found[choice] = source._round.groups, batch, metrics, source.notes()
    groups, batch, metrics, notes = found["keep"]
    varied = sum(group.varied for group in groups)
    assert 0 < varied < 4 and notes["zero_advantage"] == 1 - varied / 4
    _, dropped, theirs, others = found["drop"]
    assert batch.keep_BX.sum() == (batch.rows.samples_BX >= 0).sum() == 16
    assert dropped.keep_BX.sum() == (dropped.rows.samples_BX >= 0).sum() == 4 * varied
    np.testing.assert_allclose(theirs["grad_norm"] * varied, metrics["grad_norm"] * 4, rtol=1e-4)
    assert {name: others[name] for name in ("reward", "zero_advantage")} == {
        name: notes[name] for name in ("reward", "zero_advantage")
    }
    groups, *_, notes = found["resample"]
    assert len(groups) == 4 and all(group.varied for group in groups)
    assert notes["resampled"] >= 4 - varied and notes["zero_advantage"] == 0


def partly(response, truth):
    if len(response) % 3 == 0:
        raise ValueError("three")
    return Score(float(len(response) % 2), 0.0, 0.0)


def test_a_response_that_could_not_be_graded_is_left_out_of_its_group(start, tmp_path):
    """Also where a run goes on from a rollout batch that was written down."""
    config = toy.gspo_config(start, tmp_path / "w", mesh="data=8")
    config.stage.reward = f"{__name__}:partly"
    program, source, state = begin(config)
    batch = source.take(state)
    groups = source._round.groups[: config.stage.mini_batch]
    failed_PG = np.array([[score.error is not None for score in group.scores] for group in groups])
    assert 0 < failed_PG.sum() < failed_PG.size - 2
    assert source.notes()["grader_errors"] == sum(s.error is not None for g in source._round.groups for s in g.scores)
    stored = read_round(tmp_path / "w" / "rollouts", 0).groups[: config.stage.mini_batch]
    for each in (groups, stored):
        advantages, keep = (values.reshape(failed_PG.shape) for values in rollouts._advantages(each, config.stage))
        alone_P1 = (~failed_PG).sum(axis=1, keepdims=True) < 2
        np.testing.assert_array_equal(keep, ~failed_PG & ~alone_P1)
        np.testing.assert_allclose(np.where(keep, advantages, 0).sum(axis=1), 0, atol=1e-5)
    assert batch.keep_BX.sum() == keep.sum()
    _, metrics = program.step(state, program.place(batch))
    assert np.isfinite(metrics["grad_norm"]) and metrics["grad_norm"] > 0


def odd(response, truth):
    return Score(float(len(response) % 2), 0.0, 0.0)


def test_overlong_responses_are_out_of_numerator_and_denominator(start, tmp_path):
    config = toy.gspo_config(start, tmp_path / "w", mesh="data=8")
    config.stage.reward, config.stage.mask_overlong = f"{__name__}:odd", True
    program, source, state = begin(config)
    batch = source.take(state)
    assert source.notes()["truncated"] == 1  # an untrained model rarely stops within 7 tokens
    _, metrics = program.step(state, program.place(batch))
    assert not batch.keep_BX.any() and metrics["loss"] == 0 and np.isfinite(metrics["grad_norm"])


def test_prompts_of_a_known_accuracy_out_of_bounds_are_left_out(start, tmp_path):
    config = toy.gspo_config(start, tmp_path / "w", mesh="data=8")
    prompts = open_prompts(config.data.meta)
    known = [{"key": prompt.key, "accuracy": n / 10} for n, prompt in enumerate(prompts[k] for k in range(11))]
    (tmp_path / "accuracies.jsonl").write_text("".join(json.dumps(each) + "\n" for each in known))
    config.stage.accuracies = str(tmp_path / "accuracies.jsonl")
    _, source, _ = begin(config)
    # 0.2 to 0.8, and the one that nothing is known about.
    assert sorted(source._stream.numbers(8, 0).tolist()) == [2, 3, 4, 5, 6, 7, 8, 11]


def test_a_position_belongs_to_its_prompts(start, tmp_path):
    lines = (start / "prompts.jsonl").read_text()
    (tmp_path / "prompts.jsonl").write_text(lines)
    meta = {"prompts": {"root": str(start / "images"), "annotation": str(tmp_path / "prompts.jsonl")}}
    (tmp_path / "prompts.json").write_text(json.dumps(meta))
    config = toy.gspo_config(start, tmp_path / "w", mesh="data=8")
    config.data.meta = str(tmp_path / "prompts.json")
    _, source, _ = begin(config)
    position = source.position()
    source.start(position)
    (tmp_path / "prompts.jsonl").write_text(lines.replace('"answer": "red"', '"answer": "blue"', 1))
    _, source, _ = begin(config)
    with pytest.raises(InputError, match=r"belongs to other prompts than the 12 that .*prompts\.json"):
        source.start(position)


def test_rows_that_tiles_may_fill_are_checked_before_anything_is_sampled(start, tmp_path):
    config = toy.gspo_config(start, tmp_path / "w", mesh="fsdp=1", rows=3)
    config.stage.group, config.data.tile_budget = 3, 1
    with pytest.raises(
        InputError, match="2 x 3 responses about up to 1 tiles may fill 4 rows of 173 tokens and 1 tile"
    ):
        begin(config, jax.devices()[:1])


def test_the_kl_to_the_reference_of_a_flash_model(start, tmp_path):
    """The reference lacks what a Flash model has besides its base."""
    flash = toy.config(start, tmp_path / "unused", toy.FLASH)
    flash.optim.groups = (Group(FLASH_PARTS, frozen=True), *flash.optim.groups)
    save_start(flash, tmp_path / "start")
    config = toy.gspo_config(
        start, tmp_path / "w", toy.FLASH, mesh="data=8", steps=2, init_from=str(tmp_path / "start")
    )
    config.stage.kl, config.optim.groups = 0.1, (Group(FLASH_PARTS, frozen=True), *config.optim.groups)
    train(config)
    assert hooks.read_metrics(tmp_path / "w")[0]["kl"] < 1e-9


def test_the_health_of_every_step(start, tmp_path, capfd, monkeypatch):
    """Rewards, lengths, differences, entropy, agreement: in the table, the lines, TensorBoard and the picture."""
    monkeypatch.setattr(hooks, "plot_health", plot_health)  # drawn anew, whatever was drawn before
    save_start(toy.config(start, tmp_path / "unused", toy.MOE), tmp_path / "start")
    capfd.readouterr()
    config = toy.gspo_config(start, tmp_path / "w", toy.MOE, mesh="data=8", steps=2, init_from=str(tmp_path / "start"))
    config.stage.routes, config.stage.ahead, config.stage.importance_cap = "note", 1, 2.0
    train(config)
    names = {name for name in GSPO.columns if name != "kl"}
    assert {"reward", "truncated", "zero_advantage", "clip_fraction", "entropy", "router_agreement"} < names
    table = [line.split() for line in capfd.readouterr().err.splitlines()]
    header = next(number for number, cells in enumerate(table) if cells[:1] == ["step"])
    assert names < set(table[header])
    assert [cells[0] for cells in table[header + 1 :][:2]] == ["1/2", "2/2"]
    assert len(table[header]) == len(table[header + 1])
    lines = hooks.read_metrics(tmp_path / "w")
    assert len(lines) == 2 and all(isinstance(line[name], float) for line in lines for name in names)
    (events,) = (tmp_path / "w" / "tensorboard").iterdir()
    assert all(name.encode() in events.read_bytes() for name in names)
    # No peak of a CPU is known: no MFU.
    shown = len({"loss", *names, "grad_norm", "learning_rate", "tokens_per_second", "imbalance"})
    with Image.open(tmp_path / "w" / "health.png") as picture:
        assert picture.size == (round(4 * 3.4 * 120), round(-(-shown // 4) * 2.2 * 120))


def test_the_kl_to_the_reference(start, tmp_path):
    config = toy.gspo_config(start, tmp_path / "w", mesh="data=8", steps=4)
    config.stage.kl = 0.1
    train(config)
    lines = hooks.read_metrics(tmp_path / "w")
    assert lines[0]["kl"] < 1e-9 < lines[-1]["kl"]
    for line in lines:
        assert line["loss"] == pytest.approx(line["policy"] + 0.1 * line["kl"], rel=1e-5, abs=1e-8)


def test_rows_of_responses():
    rng = np.random.default_rng(0)
    config = RowConfig(40, 3, 2, 2, 99, "token", True)
    prompts, responses = [], []
    for number in range(5):
        tiles = rng.integers(0, 255, (number % 3, 2, 2, 3)).astype(np.uint8)
        tokens = np.concatenate([[1, 2], [99] * 2 * len(tiles), [3]]).astype(np.int32)
        prompts.append(ChatInputs(tokens, tiles, ()))
        responses.append([rng.integers(4, 90, rng.integers(2, 9)).astype(np.int32) for _ in range(3)])
    layout = lay_out(prompts, responses, config, rows=8, micro_batches=4)
    flat = [response for group in responses for response in group]
    found = layout.pick(layout.place([response.astype(np.float32) for response in flat]))
    for ours, theirs in zip(found, flat, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    targets = layout.pick(layout.rows.targets_BT)
    for ours, theirs in zip(targets, flat, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    values = np.arange(1, 16)
    assert sorted(layout.spread(values)[layout.responses_BX >= 0].tolist()) == values.tolist()
    # Rows without responses are those of the last micro-batches.
    filled = layout.rows.segments_BT.any(axis=1).reshape(2, 4).T
    assert not filled.all() and filled.any(axis=1).tolist() == sorted(filled.any(axis=1), reverse=True)
    with pytest.raises(InputError, match=r"15 responses fill .* rows of 40 tokens and 3 tiles, but run.rows is 2"):
        lay_out(prompts, responses, config, rows=2, micro_batches=1)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"group": 0}, "stage.group is 0; it must be a whole number from 1"),
        ({"mini_batch": 3}, "stage.mini_batch 3 does not divide stage.prompts 4"),
        ({"mini_batch": 4, "group": 40}, "run.rows is 8, but 4 x 40 responses of the longest kind fill 80 rows"),
        ({"max_new_tokens": 200}, r"max_prompt_tokens \+ max_new_tokens is 260, more than data.token_budget 173"),
        ({"zero_variance": "skip"}, "stage.zero_variance is 'skip'"),
        ({"ahead": 5}, "stage.ahead is 5, above stage.prompts 4"),
        ({"staleness": 0}, "stage.staleness is 0; it must be a whole number from 1"),
        ({"importance_cap": 0.5}, r"stage.importance_cap is 0.5; it must be 0 \(none\), or 1 or more"),
    ],
)
def test_settings_that_no_run_can_have(start, tmp_path, change, sentence):
    config = toy.gspo_config(start, tmp_path / "w")
    config.stage = dataclasses.replace(config.stage, **change)
    with pytest.raises(InputError, match=sentence):
        check(config)


def test_prompts_that_cannot_be_used(start, tmp_path):
    lines = [json.loads(line) for line in (start / "prompts.jsonl").read_text().splitlines()]
    config = toy.gspo_config(start, tmp_path / "w")
    for change, sentence in (
        ({"image": "nowhere.png"}, r"prompts\.jsonl:1: .*nowhere\.png.* This is broken sample number 1"),
        ({"answer": None}, r"prompts\.jsonl:1 has no"),
    ):
        (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps(each) for each in [lines[0] | change, *lines[1:]]))
        meta = {"prompts": {"root": str(start / "images"), "annotation": str(tmp_path / "prompts.jsonl")}}
        (tmp_path / "prompts.json").write_text(json.dumps(meta))
        config.data.meta = str(tmp_path / "prompts.json")
        with pytest.raises(InputError, match=sentence):
            train(config)
