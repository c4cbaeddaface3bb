"""Rows whose tokens lie on several devices: every objective learns the same as on one device."""

import jax
import numpy as np
import pytest

from configs.models import sizes
from internvl_jax import sharding
from internvl_jax.data import RowConfig
from internvl_jax.errors import InputError
from internvl_jax.training import train
from internvl_jax.training.run import hooks, setup
from internvl_jax.training.run.initial import read_initial, read_reference
from internvl_jax.training.stages.base import Start
from internvl_jax.training.stages.registry import STAGES
from tests.programs import build, save_start
from tests.training import toy
from tests.training.train_test import interrupt

TOKENS = {"ntp": 104, "mpo": 104, "gspo": 176, "consistency": 120, "router": 352}
MESHES = ("fsdp=4,context=2", "fsdp=2,context=4")
# Of a policy that is its reference at first, which response it likes better is noise.
COMPARED = {"mpo": ("loss", "preference", "quality", "generation", "delta", "chosen_reward", "grad_norm")}
LONG = {"rules": "long_context"}


def parted(config, **run):
    """A run with rows that can be parted among eight devices."""
    config.data.token_budget, config.data.tile_budget = TOKENS[config.objective], 8
    config.optim.eps = 1e-3  # with less, Adam makes whole steps of what is noise beside zero
    return toy.with_run(config, **run)


def start_of(config, program):
    """The state that a run begins with, and its reference."""
    stage = STAGES[config.objective]
    if not config.run.init_from:
        return program.from_params(program.random_params()), None
    params = read_initial(config.run.init_from, program, stage.start is Start.BASE)
    reference = read_reference(setup.reference_of(config), program) if stage.refers else None
    return program.from_params(params), reference


def row_sizes(config):
    data, model = config.data, config.model
    image = model.vision.image_size, model.tokens_per_tile, -1
    return RowConfig(data.token_budget, data.tile_budget, *image, data.weighting)


def on_one_device(config, count=3, change=lambda batch: batch):
    """Batches, metrics and parameters of some steps; `change` is made to every batch."""
    config, processor = setup.prepare(config)
    program = build(config, jax.devices()[:1])
    source = setup.open_source(config, program, processor)
    source.start(None)
    empty = STAGES[config.objective].empty_row(config.stage, config.model, row_sizes(config))
    state, reference = start_of(config, program)
    batches, lines = [], []
    for _ in range(count):
        batches.append(change(source.take(state)))
        state, metrics = program.step(state, program.place(batches[-1]), reference)
        lines.append(jax.device_get(metrics))
    source.close()
    # What plans are made of: a row of a batch, as many times as there are rows.
    planned = jax.tree.map(lambda array: (config.run.rows * len(array), *array.shape[1:], array.dtype), empty)
    assert planned == jax.tree.map(lambda array: (*array.shape, array.dtype), batches[0])
    return batches, lines, jax.device_get(state.params)


def hold(config, batches, lines, params):
    """Steps on the config's mesh give what they gave."""
    config, _ = setup.prepare(config)
    program = build(config)
    state, reference = start_of(config, program)
    for batch, expected in zip(batches, lines, strict=True):
        state, metrics = program.step(state, program.place(batch), reference)
        for name in COMPARED.get(config.objective, expected.keys() - {"imbalance"}):
            np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
    for path, value in params.items():
        np.testing.assert_allclose(state.params[path], value, atol=1e-5, err_msg=path)
    return program


def test_steps_on_parts_of_rows_equal_steps_on_one_device(data, tmp_path):
    config = parted(toy.config(data, tmp_path), rows=2)
    known = on_one_device(config)
    program = hold(toy.with_run(config, mesh=MESHES[1], logprob_chunk=7, **LONG), *known)
    assert program.place(known[0][0]).tokens_BT.sharding.shard_shape((2, 104)) == (1, 26)


def test_rows_that_cannot_be_parted_are_refused(data, tmp_path):
    config = parted(toy.config(data, tmp_path, mesh=MESHES[1], **LONG))
    config.data.token_budget = 101
    with pytest.raises(InputError, match="token_budget 101 can't be spread over the 4 devices of a row") as refused:
        setup.build(setup.prepare(config)[0])
    assert "make it a multiple of 4" in str(refused.value)
    config.data.token_budget, config.data.tile_budget = 104, 1
    with pytest.raises(InputError, match=r"2 rows of data\.tile_budget 1 tiles can't be spread over 8 devices"):
        setup.build(setup.prepare(toy.with_run(config, rows=2))[0])
    config.data.tile_budget = 3
    with pytest.raises(InputError, match=r"run\.tile_groups 2 can't split the 3 tiles of a device"):
        setup.build(setup.prepare(toy.with_run(config, rows=8, tile_groups=2))[0])


def test_rows_whose_reference_cannot_be_parted_are_refused(boards, tmp_path):
    """The router's teacher reads rows of half the length."""
    config = parted(toy.vico_config(boards, tmp_path, "router", str(boards / "flash")), mesh=MESHES[1], **LONG)
    config.data.token_budget = 348
    with pytest.raises(InputError, match="348 can't be spread over the 4 devices of a row; make it a multiple of 8"):
        setup.build(setup.prepare(config)[0])


@pytest.mark.parametrize(("tokens", "heads", "unit"), [(40000, 4, 1024), (40960, 4, 0), (40000, 8, 0), (1600, 4, 1024)])
def test_rows_that_the_kernel_cannot_take_in_parts_are_refused(data, tmp_path, monkeypatch, tokens, heads, unit):
    """On TPUs, where the heads can't be shared by the devices of a row."""
    monkeypatch.setattr(sharding, "platform", lambda: "tpu")
    config = toy.config(data, tmp_path, sizes.like(toy.MODEL, {}, {"heads": heads}), mesh="context=8", **LONG)
    config.data.token_budget, config.data.tile_budget = tokens, 8
    if not unit:
        setup.build(setup.prepare(config)[0])
        return
    wanted = (
        rf"{tokens} can't be spread over the 8 devices of a row \(its 4 heads can't, .*; make it a multiple of {unit}"
    )
    with pytest.raises(InputError, match=wanted):
        setup.build(setup.prepare(config)[0])


@pytest.fixture(scope="module", params=["dense", "moe", "gpt_oss", "mpo", "gspo", "consistency", "router"])
def known(request, start, boards, tmp_path_factory):
    """A stage and what three steps of it on one device gave."""
    folder, models = tmp_path_factory.mktemp("run"), {"dense": toy.MODEL, "moe": toy.MOE, "gpt_oss": toy.GPT_OSS}
    if request.param in models:
        model = models[request.param]
        config = toy.config(start, folder, model, balance=0.0 if model.text.moe is None else 0.5)
    elif request.param in ("mpo", "gspo"):
        config = {"mpo": toy.mpo_config, "gspo": toy.gspo_config}[request.param](start, folder)
    else:
        config = toy.vico_config(boards, folder, request.param, str(boards / "flash"))
    config = parted(config, rows=8)
    return config, on_one_device(config)


@pytest.mark.soak
@pytest.mark.parametrize("mesh", [*MESHES, "context=8", "fsdp=2,context=2,tensor=2"])
def test_every_objective_on_parts_of_rows(known, mesh):
    config, given = known
    hold(toy.with_run(config, mesh=mesh, **LONG), *given)


@pytest.fixture(scope="module")
def replayed(start, tmp_path_factory):
    """Steps on one device that replay experts, other ones than the routers would take."""
    folder = tmp_path_factory.mktemp("replay")
    save_start(toy.config(start, folder / "unused", toy.MOE), folder / "start")
    config = parted(toy.gspo_config(start, folder / "w", toy.MOE, init_from=str(folder / "start")), rows=16)
    config.stage.routes = "replay"
    moved = lambda batch: np.where(batch.routes_BTLK >= 0, (batch.routes_BTLK + 1) % 8, -1).astype(np.int16)
    return config, on_one_device(config, change=lambda batch: batch._replace(routes_BTLK=moved(batch)))


@pytest.mark.soak
@pytest.mark.parametrize(
    ("mesh", "rules", "micro_batches"),
    [
        ("fsdp=2,expert=2,tensor=2", "moe", 1),
        ("data=2,fsdp=2,expert=2", "moe", 2),
        ("fsdp=8", "fsdp", 2),
        ("fsdp=4,tensor=2", "fsdp_tp", 2),
        (MESHES[0], "long_context", 1),
        (MESHES[1], "long_context", 2),
        ("fsdp=2,expert=2,context=2", "long_context", 2),
        ("fsdp=2,context=2,tensor=2", "long_context", 2),
    ],
)
def test_experts_are_replayed_on_any_mesh(replayed, mesh, rules, micro_batches):
    config, given = replayed
    assert given[1][0]["router_agreement"] < 0.9 and given[1][0]["dropped"] == 0
    hold(toy.with_run(config, mesh=mesh, rules=rules, micro_batches=micro_batches), *given)


@pytest.mark.soak
def test_micro_batches_and_experts_on_their_own_axis(start, tmp_path):
    config = parted(toy.config(start, tmp_path, toy.MOE, balance=0.5), rows=8)
    given = {"mesh": "fsdp=2,expert=2,context=2", "micro_batches": 2, "remat": "full", **LONG}
    hold(toy.with_run(config, **given), *on_one_device(config))


@pytest.mark.soak
def test_a_run_goes_on_with_another_number_of_parts(data, tmp_path):
    """The same data, and the losses of an uninterrupted run, to rounding; and back, bit by bit."""
    made = lambda name, mesh: parted(toy.config(data, tmp_path / name), mesh=mesh, **LONG)
    train(made("whole", MESHES[0]))
    train(made("again", MESHES[0]))
    interrupt(made("part", MESHES[0]), after=3)
    interrupt(made("same", MESHES[0]), after=3)
    train(made("part", MESHES[1]))
    train(made("same", MESHES[0]))
    lines = {name: hooks.read_metrics(tmp_path / name) for name in ("whole", "again", "part", "same")}
    losses = {name: [line["loss"] for line in found] for name, found in lines.items()}
    assert losses["same"] == losses["again"] == losses["whole"] and len(losses["part"]) == 6
    np.testing.assert_allclose(losses["part"], losses["whole"], rtol=1e-5)
    for name in ("tokens", "samples", "tiles", "supervised"):
        assert [line[name] for line in lines["part"]] == [line[name] for line in lines["whole"]]


@pytest.mark.soak
def test_a_part_of_a_row_takes_a_part_of_the_memory(data, tmp_path):
    """What a step holds besides its state, by the compiler, of one long row on one device or on four."""
    taken = {}
    for mesh in ("context=1", "context=4"):
        config = parted(toy.config(data, tmp_path, rows=1, remat="full", logprob_chunk=128, mesh=mesh, **LONG))
        config.data.token_budget = 2048
        config, processor = setup.prepare(config)
        devices = jax.devices()[: 1 if mesh == "context=1" else 4]
        program = build(config, devices)
        source = setup.open_source(config, program, processor)
        source.start(None)
        state, _ = start_of(config, program)
        batch = program.place(source.take(state))
        source.close()
        taken[mesh] = program.step.lower(state, batch).compile().memory_analysis().temp_size_in_bytes
    print(taken)
    assert taken["context=4"] < taken["context=1"] / 4 / 0.6
