"""Preference optimisation: the recorded step of the released trainer, and what holds whatever the model."""

import dataclasses
import functools
import json
import math
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from checkpoint_convert.released import load_bare
from checkpoint_convert.rows import to_released
from checkpoint_convert.tables import TABLES
from internvl_jax.data.rows.batch import RowConfig, Sample, assemble_row
from internvl_jax.data.rows.pipeline import Pipeline
from internvl_jax.errors import InputError
from internvl_jax.sharding import bind, flatten
from internvl_jax.training import LoraSettings, MpoConfig, train
from internvl_jax.training.run import hooks, setup
from internvl_jax.training.run.initial import read_initial
from internvl_jax.training.stages import preference_rows
from internvl_jax.training.stages.balance import NoBalance
from internvl_jax.training.stages.mpo import Mpo, Pairs
from internvl_jax.training.stages.preference_rows import table_path
from tests.programs import build, save_start
from tests.training import toy


def recorded_pairs(inputs, config):
    """The recorded batch as one packed row: three pairs, each showing its tiles twice."""
    samples, tiles = [], inputs["pixel_values"].transpose(0, 2, 3, 1)[inputs["image_flags"] == 1]
    first = 0
    for number in range(3):
        parts = {
            name: inputs[f"{name}_input_ids"][number][inputs[f"{name}_attention_mask"][number] == 1]
            for name in ("prompt", "chosen", "rejected")
        }
        texts = [np.concatenate([parts["prompt"], parts[name]]) for name in ("chosen", "rejected")]
        asked = np.concatenate([np.arange(len(text)) >= len(parts["prompt"]) for text in texts])
        count = int(np.sum(parts["prompt"] == config.image_token_id)) // config.tokens_per_tile
        blank = np.zeros((count, *tiles.shape[1:]), np.uint8)
        tokens = np.concatenate(texts).astype(np.int32)
        samples.append(Sample(f"pair {number}", tokens, asked, blank, (0, len(texts[0])), number))
        first += count
    assert first == len(tiles)
    layout = RowConfig(
        191, len(tiles) + 1, tiles.shape[1], config.tokens_per_tile, config.image_token_id, "token", True
    )
    padded = np.concatenate([tiles, np.zeros_like(tiles[:1])])
    rows = assemble_row(samples, layout)._replace(tiles_GHWC=padded)
    reference = np.zeros(rows.samples_BX.shape, np.float32)
    reference[0, 0:6:2], reference[0, 1:6:2] = inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
    return Pairs(rows, reference)


def test_the_recorded_step(golden):
    folder = golden / "train_steps"
    inputs, outputs, norms = (dict(np.load(folder / f"mpo_{part}.npz")) for part in ("inputs", "outputs", "grad_norms"))
    logged = json.loads((folder / "mpo_metrics.json").read_text())
    model = load_bare(golden / "chat_qwen3_github", "float32", 312)
    graphdef, params = nnx.split(model, nnx.Param)[0], flatten(model)
    batch, objective = recorded_pairs(inputs, model.config), Mpo(MpoConfig(), NoBalance(), 23)
    before = {name: jnp.asarray(inputs[f"bco_running_{name}"]) for name in ("mean", "count")}
    weights = objective.weights(batch)

    def loss(params):
        outs = objective.forward(bind(graphdef, params), batch, None, None)
        measured = jax.tree.map(lambda value: value[None], objective.measure(outs, batch))
        carry = objective.advance(before, measured)
        terms, sums = objective.terms(outs, batch, carry)
        values = {name: term.total / weights[name] for name, term in terms.items()}
        total = sum(objective.coefficients[name] * value for name, value in values.items())
        return total, (values, outs[1], objective.metrics(sums, carry), carry)

    (total, (values, logps_BX, metrics, carry)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(logps_BX[0, 0:6:2], outputs["chosen_logps"], atol=1e-3)
    np.testing.assert_allclose(logps_BX[0, 1:6:2], outputs["rejected_logps"], atol=1e-3)
    assert float(total) == pytest.approx(float(outputs["loss"]), rel=1e-5)
    assert float(values["generation"]) == pytest.approx(float(outputs["nll_loss"]), rel=1e-5)
    assert float(carry["mean"]) == pytest.approx(float(outputs["bco_delta"]), rel=1e-5)
    # The release logs rewards summed over its three weighted losses.
    scale = sum((0.8, 0.2, 1.0))
    assert scale * metrics["chosen_reward"] == pytest.approx(logged["rewards/chosen"], abs=1e-4)
    assert scale * metrics["reward_margin"] == pytest.approx(logged["rewards/margins"], abs=1e-4)
    assert metrics["accuracy"] == pytest.approx(logged["rewards/accuracies"])
    assert metrics["chosen_logp"] == pytest.approx(logged["logps/chosen"], rel=1e-5)
    released = dict(to_released(TABLES["github", "qwen3"].rows, jax.device_get(grads)))
    largest = max(float(norm) for norm in norms.values())
    assert released.keys() == norms.keys()
    for name, norm in norms.items():
        assert np.linalg.norm(released[name]) == pytest.approx(float(norm), rel=1e-3, abs=1e-7 * largest), name


def first_batch(config):
    """(program, placed batch, start parameters) of a preference run."""
    config, processor = setup.prepare(config)
    program = build(config)
    source = setup.open_source(config, program, processor)
    source.start(None)
    params = read_initial(config.run.init_from, program)
    batch = source.take(None)
    source.close()
    return program, batch, params


MODELS = {"dense": toy.MODEL, "moe": toy.MOE, "gpt_oss": toy.GPT_OSS}


@pytest.fixture(scope="module")
def configure(start, tmp_path_factory):
    """A function that configures a run of a family, from a model that is made when it is first needed."""

    @functools.cache
    def begin(family):
        folder = tmp_path_factory.mktemp(family)
        save_start(toy.config(start, folder / "unused", MODELS[family]), folder / "start")
        return str(folder / "start")

    def config(workdir, family="dense", **run):
        given = {} if family == "dense" else {"init_from": begin(family)}
        return toy.mpo_config(start, workdir, MODELS[family], **given, **run)

    return config


def check_ln_2(metrics):
    """Metrics of a step in which the policy is its reference."""
    metrics = {name: float(value) for name, value in metrics.items()}
    assert metrics["preference"] == pytest.approx(math.log(2), rel=1e-5)
    assert metrics["quality"] == pytest.approx(2 * math.log(2), rel=1e-4)
    assert abs(metrics["delta"]) < 1e-5 and abs(metrics["reward_margin"]) < 1e-5


def steps(config, count=3, devices=None):
    """Metrics and parameters after some steps, in which the policy moves away from its reference."""
    config.optim.eps = 1e-3  # with less, Adam makes whole steps of what is noise beside zero
    config, processor = setup.prepare(config)
    program = build(config, devices)
    source = setup.open_source(config, program, processor)
    source.start(None)
    state = program.from_params(read_initial(config.run.init_from, program))
    lines = []
    for _ in range(count):
        state, metrics = program.step(state, program.place(source.take(state)))
        lines.append({name: float(value) for name, value in metrics.items()})
    source.close()
    return lines, jax.device_get(state.params)


@pytest.mark.parametrize(
    ("family", "balance", "given"),
    [
        ("dense", 0.0, {"mesh": "fsdp=4,tensor=2", "rules": "fsdp_tp", "rows": 16}),
        ("dense", 0.0, {"mesh": "data=2,fsdp=2,tensor=2", "rules": "fsdp_tp", "rows": 16, "micro_batches": 4}),
        ("moe", 0.3, {"mesh": "fsdp=2,expert=2,tensor=2", "rules": "moe", "rows": 16, "micro_batches": 4}),
    ],
)
def test_any_mesh_and_micro_batches_equal_one_batch(configure, tmp_path, family, balance, given):
    """The loss is the sum of its terms by their coefficients, that of experts among them."""
    whole = {"rows": given.get("rows", 8), "balance": balance}
    expected, params = steps(configure(tmp_path / "one", family, **whole), devices=jax.devices()[:1])
    found, others = steps(configure(tmp_path / "other", family, **whole | given))
    coefficients = {"preference": 0.8, "quality": 0.2, "generation": 1.0} | ({"balance": balance} if balance else {})
    check_ln_2(expected[0])
    for ours, theirs in zip(found, expected, strict=True):
        for name in ("loss", *coefficients, "delta", "chosen_reward", "grad_norm"):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-6, err_msg=name)
        total = sum(coefficient * ours[name] for name, coefficient in coefficients.items())
        assert ours["loss"] == pytest.approx(total, rel=1e-6) and all(ours[name] > 0 for name in coefficients)
    assert abs(expected[-1]["delta"]) > 1e-5  # the reference has been left
    for path, value in params.items():
        np.testing.assert_allclose(others[path], value, atol=1e-5, err_msg=path)


def test_a_policy_that_is_the_reference_has_ln_2(configure, tmp_path):
    """As in the first of the steps above."""
    program, batch, params = first_batch(configure(tmp_path, "gpt_oss", mesh="data=8"))
    check_ln_2(program.step(program.from_params(params), program.place(batch))[1])


def test_packed_pairs_equal_pairs_alone(start, tmp_path):
    found = []
    for rows, budget in ((16, 97), (8, 197)):
        config = toy.mpo_config(start, tmp_path / str(rows), mesh="data=8", rows=rows)
        config.stage.pairs, config.data.token_budget = 14, budget
        program, batch, params = first_batch(config)
        pairs = batch._replace(reference_BX=np.zeros_like(batch.reference_BX))
        found.append((program.step(program.from_params(params), program.place(pairs))[1], batch.rows))
    assert found[0][1].segments_BT.max() == 2 < 4 == found[1][1].segments_BT.max()
    for name in ("loss", "preference", "quality", "generation", "chosen_logp", "rejected_logp", "grad_norm"):
        np.testing.assert_allclose(found[1][0][name], found[0][0][name], rtol=1e-5, err_msg=name)


def test_pairs_that_fill_too_many_rows_are_refused_at_the_start(start, tmp_path):
    config = toy.mpo_config(start, tmp_path / "w")
    config.stage.pairs = 16
    with pytest.raises(InputError, match=r"16 pairs fill up to 16 rows of 101 tokens and 5 tiles, but run\.rows is 8"):
        train(config)


def test_a_run_prefers_the_chosen_and_keeps_its_reference(start, tmp_path):
    config = toy.mpo_config(start, tmp_path / "w", steps=12, save_every=5)
    summary = train(config)
    lines = hooks.read_metrics(tmp_path / "w")
    assert summary["step"] == 12
    assert lines[0]["preference"] == pytest.approx(math.log(2), rel=1e-5)
    assert lines[-1]["preference"] < 0.9 * math.log(2) and lines[-1]["reward_margin"] > 0.2
    (cached,) = (tmp_path / "w" / "reference").glob("reference-*.npz")
    table, stamp = np.load(cached)["table"], cached.stat().st_mtime_ns
    assert table.shape == (24, 2) and np.isfinite(table).all() and (table < 0).all()
    # A run that was stopped at step 10 ends in the same bits, running mean included, without a second reference pass.
    for folder in (tmp_path / "w" / "checkpoints").iterdir():
        if folder.name.isdigit() and int(folder.name) > 10:
            shutil.rmtree(folder)
    train(toy.mpo_config(start, tmp_path / "w", steps=12, save_every=5))
    again = hooks.read_metrics(tmp_path / "w")
    for ours, theirs in zip(again, lines, strict=True):
        assert {k: v for k, v in ours.items() if "second" not in k} == {
            k: v for k, v in theirs.items() if "second" not in k
        }
    assert cached.stat().st_mtime_ns == stamp


def changed_pairs(start, folder, change, **entry):
    """A meta file of the toy pairs in which the second one, or the entry of the data set, is another."""
    lines = (start / "pairs.jsonl").read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | change)
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    meta = json.loads((start / "pairs.json").read_text())
    meta["pairs"] |= {"annotation": str(folder / "pairs.jsonl"), **entry}
    (folder / "meta.json").write_text(json.dumps(meta))
    return str(folder / "meta.json")


def references(config):
    """What a run's cache holds once its source has started: the table, and the file."""
    config, processor = setup.prepare(config)
    source = setup.open_source(config, build(config, jax.devices()[:1]), processor)
    source.start(None)
    source.close()
    (path,) = pathlib.Path(config.stage.cache_dir or f"{config.run.workdir}/reference").glob("*")
    return np.load(path)["table"], path


def test_other_data_or_another_model_has_another_table(start, tmp_path):
    def path(section="run", **change):
        config, processor = setup.prepare(toy.mpo_config(start, tmp_path / "w"))
        config.stage.cache_dir = "cache"
        vars(vars(config)[section]).update(change)
        pairs = dataclasses.replace(setup.pipeline_config(config), kind="preferences")
        folder, reference = pathlib.Path(config.stage.cache_dir), setup.reference_of(config)
        return table_path(folder, Pipeline(pairs, processor), reference, config.run)

    same = [path(), path(workdir=str(tmp_path), seed=9, steps=77, rows=32), path("data", token_budget=111)]
    same += [path("stage", pairs=3, beta=0.3), path("stage", reference=str(start / "start"))]
    assert len(set(same)) == 1 and str(same[0].parent) == "cache"
    shutil.copytree(start / "start", tmp_path / "copy")
    (tmp_path / "data").mkdir()
    (tmp_path / "half").mkdir()
    others = [
        path(dtype="bfloat16"),
        path(products="int8"),
        path(init_from=str(tmp_path / "copy")),
        path("data", meta=changed_pairs(start, tmp_path / "data", {"rejected": "red, blue"})),
        path("data", meta=changed_pairs(start, tmp_path / "half", {}, repeat_time=0.5)),
    ]
    assert len({same[0], *others}) == 6


def test_a_reference_in_8_bits_has_a_table_of_its_own(start, tmp_path):
    """The base beside which adapters are trained is the reference."""

    def path(quantise):
        config = toy.mpo_config(start, tmp_path / "w")
        config.stage.cache_dir, config.lora = str(tmp_path / "tables"), LoraSettings(rank=2, quantise=quantise)
        config, processor = setup.prepare(config)
        source = setup.open_source(config, build(config), processor)
        source.start(None)
        source.close()
        return source._path

    assert path("") == path("") != path("int8")


def test_a_table_of_a_shorter_run_is_continued(start, tmp_path):
    """Only pairs that a run meets are read: 6 a step. A whole epoch serves any order, a part of one its own."""

    def run(name, **fields):
        config = toy.mpo_config(start, tmp_path / "w", **fields)
        config.stage.cache_dir = str(tmp_path / name)
        table, path = references(config)
        return table, np.isfinite(table).all(axis=1), path

    whole, every, _ = run("whole", steps=9)
    few, known, path = run("parts", steps=1)
    assert every.all() and whole.shape == (24, 2) and known.sum() == 6
    np.testing.assert_array_equal(few, np.where(known[:, None], whole, np.nan))
    # What is there is not read again: a mark stays.
    marked = np.where(known[:, None], np.float32(-77), few)
    saved = dict(np.load(path))
    np.savez(path, **saved | {"table": marked})
    more, known_more, _ = run("parts", steps=3)
    assert known_more.sum() == 18 and known_more[known].all()
    np.testing.assert_array_equal(more[known], marked[known])
    np.testing.assert_array_equal(more[~known], np.where(known_more[:, None], whole, np.nan)[~known])
    # In another order of the pairs the first ones are others.
    other, known_other, _ = run("parts", steps=3, seed=6)
    assert known_other.sum() == 18 and (known_other != known_more).any()
    np.testing.assert_allclose(other[known_other], whole[known_other], rtol=1e-5)
    run("parts", steps=4, seed=6)
    stamp = path.stat().st_mtime_ns
    run("parts", steps=9)
    assert path.stat().st_mtime_ns == stamp


def test_a_pair_that_can_be_read_again_is_told(start, tmp_path):
    """The reference has not seen it, so there is nothing to compare with."""
    shutil.copytree(start / "images", tmp_path / "images")
    config = toy.mpo_config(start, tmp_path / "w", rows=16)
    config.data.meta, config.data.max_skipped = changed_pairs(start, tmp_path, {}, root=str(tmp_path / "images")), 1
    (tmp_path / "images" / "p3.png").rename(tmp_path / "away.png")
    table, path = references(config)
    assert np.flatnonzero(np.isnan(table).all(axis=1)).tolist() == [3] and np.isnan(table).sum() == 2
    (tmp_path / "away.png").rename(tmp_path / "images" / "p3.png")
    with pytest.raises(InputError, match=rf"pairs\.jsonl:4 can be read now, but could not.*; remove {path} to compute"):
        steps(config, 4, jax.devices()[:1])
    path.write_bytes(b"no archive")  # as good as removed
    assert len(steps(config, 1, jax.devices()[:1])[0]) == 1 and np.isfinite(np.load(path)["table"]).all()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"chosen": "red", "rejected": "red"}, r"pairs\.jsonl:2 has equal chosen and rejected responses"),
        ({"chosen": " "}, r'pairs\.jsonl:2 has an empty "chosen"'),
        ({"image": "nowhere.png", "width": None, "height": None}, r"pairs\.jsonl:2: .*nowhere\.png"),
        # With noted sizes a picture is first missed when it is loaded.
        ({"image": "nowhere.png"}, r"^\S+pairs\.jsonl:2: .*nowhere\.png does not exist.*number 1, over the limit of 0"),
    ],
)
def test_a_bad_pair_is_named(start, tmp_path, change, sentence):
    config = toy.mpo_config(start, tmp_path / "w")
    config.data.meta = changed_pairs(start, tmp_path, change)
    with pytest.raises(InputError, match=sentence):
        train(config)


def test_preference_optimisation_needs_a_model_to_start_from(start, tmp_path):
    with pytest.raises(InputError, match="objective 'mpo' starts from a model"):
        train(toy.mpo_config(start, tmp_path / "w", init_from=""))


def test_the_reference_can_be_read_by_whoever_shares_its_folder(tmp_path):
    (tmp_path / "plain").touch()
    preference_rows._save(tmp_path / "reference.npz", table=np.zeros((1, 2)))
    assert (tmp_path / "reference.npz").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain", "reference.npz"]
