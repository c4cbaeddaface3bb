"""The whole of ViCO on a toy, from random weights to a router that knows which tiles need their tokens, and what holds
on the way: nothing compressed is no divergence; meshes, micro-batches, packing and stops change nothing.
"""

import dataclasses
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import internvl_jax as ivl
from checkpoint_convert import convert
from internvl_jax import sharding
from internvl_jax.data.rows.batch import stack_rows
from internvl_jax.data.rows.pipeline import Pipeline
from internvl_jax.data.rows.views import Views, view
from internvl_jax.errors import InputError
from internvl_jax.evaluation.overlay import router_overlay
from internvl_jax.inference import Thresholds, save_model
from internvl_jax.sharding import PRESETS
from internvl_jax.sharding.params_io import locate
from internvl_jax.training import Group, train
from internvl_jax.training.run import hooks, setup
from internvl_jax.training.run.initial import read_initial, read_reference
from tests.programs import build
from tests.training import toy
from tests.training.train_test import interrupt

STAGES = ("consistency", "router")
MESH = {"mesh": "data=2,fsdp=2,tensor=2", "rules": "fsdp_tp"}
# Two rows at a time are spread over two devices: the inner widths lie on what else there is.
PARTS = {"mesh": "fsdp=2,context=2,tensor=2", "rules": "wide", "micro_batches": 4}
WIDE = dataclasses.replace(PRESETS["fsdp_tp"], mlp=("tensor", "context"), act_mlp=("tensor", "context"))


def stage(start, name, workdir, **run):
    """A stage's config: consistency from the base model, the router from what became of it."""
    # With this seed no two tiles of equal ratio, as the same tile has twice, lie around the threshold: rounding would
    # tell them apart.
    before = start.folder / ("flash" if name == "router" else "base")
    return toy.vico_config(start.folder, workdir, name, before, **{"seed": 1} | run)


def steps(config, count, params=None, reference=None):
    """Program, metrics, parameters before, and the state after some steps on one device; without parameters they and
    the reference are read as a run reads them.
    """
    config, processor = setup.prepare(config)
    program = build(config, jax.devices()[:1], many_steps=count > 100)
    if params is None and config.run.init_from:
        params = read_initial(config.run.init_from, program, extend=True)
        reference = read_reference(setup.reference_of(config), program)
    state = program.from_params(program.random_params() if params is None else params)
    source = setup.open_source(config, program, processor)
    source.start(None)
    before, lines = jax.device_get(state.params), []
    for _ in range(count):
        state, metrics = program.step(state, program.place(source.take(state)), reference)
        # How alike the work of devices is depends on how many there are.
        lines.append({name: float(value) for name, value in metrics.items() if name != "imbalance"})
    source.close()
    assert program.step._cache_size() == 1
    return types.SimpleNamespace(
        program=program,
        processor=processor,
        config=config,
        reference=reference,
        lines=lines,
        before=before,
        state=state,
    )


def first_step(ran, batch):
    """Metrics of a run's first step, on another batch."""
    state = ran.program.from_params(jax.tree.map(jnp.array, ran.before))  # copies: they are donated
    _, metrics = ran.program.step(state, batch, ran.reference)
    return {name: float(value) for name, value in metrics.items()}


def consistency_batch(ran, contents):
    """Eight rows, each of some samples; of every sample one tile is compressed."""
    config = Pipeline(setup.pipeline_config(ran.config), ran.processor).row_config
    compress, compressed = [np.array([[True, False]])], ran.config.model.tokens_per_compressed_tile
    lay = lambda row: view(row, compress * len(row), config, config.token_budget, compressed, config.tile_budget)
    return stack_rows([lay(row) for row in [*contents, *[[]] * 8][:8]])


@pytest.fixture(scope="module")
def start(data, tmp_path_factory):
    """A folder with boards, a base model that reads them, and the Flash model that consistency training made of it."""
    folder = tmp_path_factory.mktemp("vico")
    toy.write_boards(folder)
    base = steps(toy.vico_config(folder, folder / "w", "ntp", "", steps=130), 130)
    save_model(folder / "base", base.state.params, base.config.model, base.processor)
    start = types.SimpleNamespace(folder=folder, base=base)
    start.first = steps(stage(start, "consistency", folder / "w"), 60)
    save_model(folder / "flash", start.first.state.params, start.first.config.model, start.first.processor)
    start.second = steps(stage(start, "router", folder / "w"), 60)
    return start


def test_the_router_learns_which_tiles_need_their_tokens(start):
    """Of two pictures one is blank, the other has four colours, which the answer names."""
    assert start.base.lines[-1]["loss"] < 0.15  # it reads the colours
    last = start.first.lines[-1]
    assert last["kl_full"] < 0.1 < last["kl_compressed"] < 0.6 * start.first.lines[0]["kl_compressed"]
    tiles = np.zeros((81, 12, 12, 3), np.uint8)  # where all four are the same it stays blank
    for number, colours in enumerate(itertools.product(toy.COLOURS.values(), repeat=4)):
        if len(set(colours)) > 1:
            tiles[number] = np.kron(np.array(colours, np.uint8).reshape(2, 2, 3), np.ones((6, 6, 1), np.uint8))
    model = sharding.bind(start.second.program.graphdef, start.second.state.params)
    compress = np.asarray(jax.jit(lambda tiles: model.encode(tiles).probability_G)(tiles))
    blank = ~tiles.any(axis=(1, 2, 3))
    assert compress[blank].min() > max(0.5, np.mean(compress[~blank]) + 0.12)


def test_a_copy_of_the_reference_diverges_only_where_tiles_are_compressed(start):
    first = start.first.lines[0]
    assert first["kl_full"] < 1e-6 < 0.1 < first["kl_compressed"]
    assert 0 < first["compressed"] < 1 and 0 < first["saved"] < 0.2
    # A batch with nothing compressed: the rows of the teacher are those of the student.
    ran = start.first
    rows, _ = Pipeline(setup.pipeline_config(ran.config), ran.processor).row(0)
    rows = jax.tree.map(lambda x: np.concatenate([x] * 8), rows)
    numbers_BJ = np.where(rows.tile_mask_G.reshape(8, -1), np.arange(4)[None], -1).astype(np.int32)
    student = rows._replace(tiles_GHWC=None, tile_mask_G=None, slots_BJ=numbers_BJ)
    places_BT = np.broadcast_to(np.arange(rows.tokens_BT.shape[1], dtype=np.int32), rows.tokens_BT.shape)
    same = Views(rows, student, places_BT, numbers_BJ < -1, np.full((32, 2), -1, np.int32))
    metrics = first_step(ran, ran.program.place(same))
    assert metrics["loss"] == metrics["kl_full"] < 1e-6
    assert metrics["compressed"] == metrics["saved"] == 0


@pytest.mark.parametrize("name", STAGES)
def test_any_mesh_micro_batches_and_a_stop_change_nothing(start, tmp_path, monkeypatch, name):
    """A run on eight devices, in four parts of each batch, stopped and resumed; against one device, whole batches."""
    monkeypatch.setitem(PRESETS, "wide", WIDE)
    config = stage(start, name, tmp_path, save_every=2, **PARTS)
    interrupt(config, after=3)
    before = hooks.read_metrics(tmp_path)
    assert locate(tmp_path).name == "2"
    interrupt(config, after=4)
    lines = hooks.read_metrics(tmp_path)
    same = lambda line: {metric: value for metric, value in line.items() if "second" not in metric}
    assert list(map(same, lines[:3])) == list(map(same, before))  # bit by bit, the router's window included
    expected = (start.first if name == "consistency" else start.second).lines
    for ours, theirs in zip(lines[:3], expected[:3], strict=True):
        for metric, value in theirs.items():
            np.testing.assert_allclose(ours[metric], value, rtol=5e-5, atol=1e-6, err_msg=metric)


def test_packed_consistency_equals_samples_alone(start):
    ran = start.first
    corpus = Pipeline(setup.pipeline_config(ran.config), ran.processor).corpus
    samples = [corpus.load(number, None) for number in (8, 1, 5, 13)]
    batches = [consistency_batch(ran, rows) for rows in ([samples[:2], samples[2:]], [[sample] for sample in samples])]
    packed, alone = (first_step(ran, ran.program.place(batch)) for batch in batches)
    # What the trained model reads, and not its teacher.
    student_BT, teacher_BT = batches[0].student.segments_BT, batches[0].rows.segments_BT
    assert packed["tokens"] == np.count_nonzero(student_BT) < np.count_nonzero(teacher_BT)
    assert packed["seen"] == np.sum((batches[0].student.positions_BT + 0.5)[student_BT > 0])
    assert packed["samples"] == alone["samples"] == 4 and 0 < packed["compressed"] < 1 and packed["loss"] > 0.1
    for metric, value in alone.items():
        np.testing.assert_allclose(packed[metric], value, rtol=1e-5, atol=1e-6, err_msg=metric)


def test_rows_without_a_supervised_token_are_nothing(start):
    """Neither a response nor padding: they leave the others as they are, and a batch of them has no gradient."""
    ran = start.first
    corpus = Pipeline(setup.pipeline_config(ran.config), ran.processor).corpus
    sample = corpus.load(8, None)
    masked = sample._replace(supervised_T=np.zeros_like(sample.supervised_T))
    alone, beside, only, empty = (
        first_step(ran, ran.program.place(consistency_batch(ran, contents)))
        for contents in ([[sample]], [[sample], [masked], [masked]], [[masked]] * 8, [])
    )
    for metric in ("loss", "consistency", "kl_full", "kl_compressed", "grad_norm"):
        np.testing.assert_allclose(beside[metric], alone[metric], rtol=1e-5, atol=1e-6, err_msg=metric)
    for metrics in (only, empty):
        assert metrics["loss"] == metrics["grad_norm"] == metrics["nonfinite"] == 0
        assert all(map(np.isfinite, metrics.values()))
    assert only["tokens"] > 0 == empty["tokens"]


@pytest.mark.parametrize("name", STAGES)
def test_only_what_a_stage_trains_changes(start, name):
    ran = start.first if name == "consistency" else start.second
    params = jax.device_get(ran.state.params)
    moved = {path for path, value in params.items() if not np.array_equal(value, ran.before[path])}
    router = {path for path in params if path.startswith("router.")}
    unused = {path for path in router if any(f"pooling.{part}{n}" in path for part in ("attn", "norm") for n in (3, 4))}
    assert len(unused) == 12
    assert moved == (router - unused if name == "router" else params.keys() - router)


def test_the_threshold_halves_the_tiles_it_was_taken_from(start):
    first, carry = start.second.lines[0], jax.device_get(start.second.state.carry)
    assert first["compress_target"] == pytest.approx(0.47, abs=0.04)
    assert first["ratio_10"] < first["threshold"] < first["ratio_90"]
    assert int(carry["count"]) == sum(line["tiles"] for line in start.second.lines)
    assert np.ptp(carry["values_W"]) > 1


def test_packed_ratios_equal_ratios_of_samples_alone(start):
    ran = start.second
    pipeline = Pipeline(setup.pipeline_config(ran.config), ran.processor)
    layout = dataclasses.replace(pipeline.row_config, tile_budget=8)
    samples = [pipeline.corpus.load(number, None) for number in (8, 1, 5)]
    probes = np.array([[False, False], [True, False], [False, True]])
    alone = lambda samples: view(samples, [probes] * len(samples), layout, 700, 1, 64)

    @jax.jit
    def ratios(params, batch):
        model, reference = (
            sharding.bind(graphdef, part)
            for graphdef, part in ((ran.program.graphdef, params), (ran.program.reference_graphdef, ran.reference))
        )
        return ran.program.objective.forward(model, batch, None, reference)[0]

    together = ratios(ran.state.params, alone(samples))[:6]
    apart = [ratios(ran.state.params, alone([sample]))[:2] for sample in samples]
    np.testing.assert_allclose(together, np.concatenate(apart), rtol=2e-4)
    assert np.ptp(together) > 1e-2


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("router", {"reference": ""}, "measures against the model that the consistency stage began with"),
        ("consistency", {"rates": "row"}, "stage.rates is 'row'; it must be 'picture' or 'tile'"),
        ("router", {"probe": "some"}, "stage.probe is 'some'; it must be 'one' or 'all'"),
        ("router", {"weighting": "token"}, "data.weighting is 'token'"),
        ("router", {"groups": ()}, r"'router' gives compressed\.\S+ no gradient \(.* parameters\); freeze"),
        ("router", {"init_from": "base"}, "base has no router and no compressed branch"),
        ("consistency", {"groups": ()}, r"'consistency' gives router\.\S+ no gradient"),
        ("consistency", {"flash": None}, "objective 'consistency' trains a Flash model"),
    ],
)
def test_a_stage_that_cannot_be_is_refused(start, tmp_path, name, change, sentence):
    config = stage(start, name, tmp_path)
    if "flash" in change:
        config.model = dataclasses.replace(config.model, flash=None)
    elif "groups" in change:
        config.optim.groups = (Group(".*"),)
    elif "weighting" in change:
        config.data.weighting = change["weighting"]
    elif "init_from" in change:
        config.run.init_from = str(start.folder / "base")
    else:
        config.stage = dataclasses.replace(config.stage, **change)
    with pytest.raises(InputError, match=sentence):
        train(dataclasses.replace(config, run=dataclasses.replace(config.run, **MESH)))


def test_a_trained_flash_model_is_released_and_comes_back(start, tmp_path):
    """It converts to the released format and back to the same bits."""
    convert(start.folder / "flash", tmp_path / "released", "github")
    convert(tmp_path / "released", tmp_path / "back")
    model, _ = ivl.load(tmp_path / "back", "float32")
    params, again = jax.device_get((start.first.state.params, sharding.flatten(model)))
    assert again.keys() == params.keys() and any(path.startswith("router.") for path in params)
    for path, value in params.items():
        np.testing.assert_array_equal(again[path], value, err_msg=path)


def test_the_picture_of_a_request_shows_every_tile(start):
    model, processor = ivl.load(start.folder / "flash", "float32")
    pictures = [start.folder / "boards" / name for name in ("0.png", "blank.png")]
    kept, mixed = (
        np.asarray(router_overlay(model, processor, pictures, thresholds))
        for thresholds in (Thresholds(relative=1.0), Thresholds(absolute=0.0))
    )
    assert kept.shape == mixed.shape == (224 + 12 + 224, 224, 3)
    edges = [[tuple(drawn[y, 0].tolist()) for y in (100, 336)] for drawn in (kept, mixed)]
    assert len(set(edges[0])) == 1 and len(set(edges[1])) == 2  # the likelier one of two tiles is compressed
    base, _ = ivl.load(start.folder / "base", "float32")
    for given, sentence in ((base, "this model has no router"), (model, "there is no picture")):
        with pytest.raises(InputError, match=sentence):
            router_overlay(given, processor, [] if given is model else pictures)
