"""One step: the same on any mesh and in any number of micro-batches; frozen stays, non-finite is not applied."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvl_jax import sharding
from internvl_jax.data.rows.pipeline import Pipeline
from internvl_jax.training import Group
from internvl_jax.training.run import setup, step
from tests.programs import build
from tests.training import toy


def run_steps(data, steps=3, **given):
    """Parameters and losses after a few steps from the same start."""
    program, state, metrics = run_metrics(data, steps, **given)
    return program, state, np.array([line["loss"] for line in metrics])


def run_metrics(data, steps=3, groups=None, **given):
    config, processor = setup.prepare(toy.config(data, data / "unused", **given))
    config.optim.groups = groups or config.optim.groups
    program = build(config)
    batches = Pipeline(setup.pipeline_config(config), processor).batches(config.run.rows)
    state = program.from_params(program.random_params())
    metrics = []
    for _ in range(steps):
        state, line = program.step(state, program.place(next(batches)))
        metrics.append(jax.device_get(line))
    return program, state, metrics


@pytest.fixture(scope="module")
def reference(data):
    """Every parameter whole on every device: the arithmetic of one device."""
    program, state, losses = run_steps(data, mesh="data=8")
    return jax.device_get(state.params), losses, jax.device_get(program.random_params())


@pytest.mark.parametrize(
    ("mesh", "rules", "micro_batches"),
    [("fsdp=8", "fsdp", 1), ("fsdp=4,tensor=2", "fsdp_tp", 2), ("data=2,fsdp=2,tensor=2", "fsdp_tp", 1)],
)
def test_any_mesh_and_micro_batches_equal_replicated_parameters(data, reference, mesh, rules, micro_batches):
    """Rows differ in their supervised tokens, and so in weight."""
    program, state, losses = run_steps(data, mesh=mesh, rules=rules, micro_batches=micro_batches)
    np.testing.assert_allclose(losses, reference[1], rtol=1e-5)
    for path, value in state.params.items():
        np.testing.assert_allclose(value, reference[0][path], atol=1e-5, err_msg=path)
    # Nothing moved, and one program served all steps.
    placed = jax.tree.map(lambda leaf: leaf.sharding, state)
    assert jax.tree.all(jax.tree.map(lambda a, b: a == b.sharding, placed, program.abstract))
    assert program.step._cache_size() == 1
    for moment in (state.opt_state[1].mu, state.opt_state[1].nu):
        assert all(moment[path].sharding == value.sharding for path, value in state.params.items())
    largest = state.params["lm.layers.mlp.up.weight"]
    assert largest.addressable_shards[0].data.size * (8 if mesh != "data=2,fsdp=2,tensor=2" else 4) == largest.size


def test_products_in_8_bits_learn_the_same(data, reference):
    """Nearly: what they round changes a loss by a thousandth, and a step by a little."""
    _, state, losses = run_steps(data, mesh="data=8", products="int8")
    assert 0 < np.abs(losses / reference[1] - 1).max() < 5e-3
    begun = reference[2]
    for path, value in reference[0].items():
        step, other = (np.asarray(after) - begun[path] for after in (value, state.params[path]))
        assert np.linalg.norm(other - step) < 0.3 * np.linalg.norm(step), path


def test_random_parameters_depend_on_the_seed_and_their_paths_alone(data):
    """As where a run begins with a model that lacks some: on any mesh, whichever others are asked for."""
    few = ("lm.layers.attn.q.weight", "projector.fc1.weight")

    def random(paths, **run):
        config, _ = setup.prepare(toy.config(data, data / "unused", **run))
        return jax.device_get(setup.build(config).random_params(paths))

    ours = random(few, mesh="fsdp=8")
    assert set(ours) == set(few)
    one = random(few[:1], mesh="fsdp=4,tensor=2", rules="fsdp_tp")
    np.testing.assert_array_equal(one[few[0]], ours[few[0]])
    assert not np.array_equal(random(few[:1], mesh="fsdp=8", seed=6)[few[0]], ours[few[0]])


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_changes_nothing(data, reference, remat):
    _, state, losses = run_steps(data, mesh="data=8", remat=remat)
    np.testing.assert_allclose(losses, reference[1], rtol=1e-6)
    np.testing.assert_allclose(state.params["vit.cls"], reference[0]["vit.cls"], atol=1e-6)


def test_frozen_parameters_stay_and_have_no_moments(data):
    config, processor = setup.prepare(toy.config(data, data / "unused"))
    groups = (Group(r"^vit\.", frozen=True), Group(r"^projector\.", learning_rate=0.0), Group("^lm"))
    config.optim = dataclasses.replace(config.optim, groups=groups, weight_decay=0.0)
    program = build(config)
    batch = program.place(next(Pipeline(setup.pipeline_config(config), processor).batches(config.run.rows)))
    state = program.from_params(program.random_params())
    before = jax.device_get(state.params)
    for _ in range(2):
        state, _ = program.step(state, batch)
    for path, value in jax.device_get(state.params).items():
        assert (value == before[path]).all() == (not path.startswith("lm")), path
    moments = state.opt_state[1].mu
    assert set(moments) == set(program.trained) == {path for path in before if not path.startswith("vit.")}


def test_a_step_that_is_not_finite_is_counted_and_not_applied(data):
    config, processor = setup.prepare(toy.config(data, data / "unused"))
    program = build(config)
    batch = next(Pipeline(setup.pipeline_config(config), processor).batches(config.run.rows))
    broken = batch._replace(weights_BT=np.where(batch.weights_BT > 0, np.float32("inf"), np.float32(0)))
    state = program.from_params(program.random_params())
    before = jax.device_get(state)
    state, metrics = program.step(state, program.place(broken))
    assert metrics["nonfinite"] == state.nonfinite == 1 and state.step == 1
    after = jax.device_get(state)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), before.params, after.params))
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), before.opt_state, after.opt_state))
    state, metrics = program.step(state, program.place(batch))
    assert metrics["nonfinite"] == state.nonfinite == 0


def test_a_batch_without_supervision_has_loss_zero(data):
    config, processor = setup.prepare(toy.config(data, data / "unused"))
    program = build(config)
    batch = next(Pipeline(setup.pipeline_config(config), processor).batches(config.run.rows))
    silent = batch._replace(weights_BT=batch.weights_BT * 0)
    _, metrics = program.step(program.from_params(program.random_params()), program.place(silent))
    assert metrics["loss"] == 0 and metrics["grad_norm"] == 0 and metrics["nonfinite"] == 0
    # What attention's operations are counted by: half of every sample's square.
    lengths = [np.count_nonzero(row == sample) for row in batch.segments_BT for sample in range(1, row.max() + 1)]
    assert len(lengths) == metrics["samples"] and sum(lengths) == metrics["tokens"]
    assert metrics["seen"] == sum(length**2 for length in lengths) / 2


def test_the_share_of_blocks_that_attention_left_out_is_a_metric():
    """Of long rows, unless none are to be left out."""
    segments_BT = np.repeat([[1, 2, 3, 0]], 512, axis=1)
    texts = types.SimpleNamespace(segments_BT=segments_BT, positions_BT=np.tile(np.arange(512), 4)[None])
    found = step.attention_metrics(texts, toy.MODEL.text, skips=True)
    # By 512 keys, twice for as many queries: of four blocks and those before them each meets its own alone.
    assert found == {"seen": 3 * 512**2 / 2, "blocks_left_out": pytest.approx(1 - 8 / 20)}
    assert step.attention_metrics(texts, toy.MODEL.text, skips=False).keys() == {"seen"}


@pytest.fixture(scope="module", params=["moe", "gpt_oss"])
def mixture(request, data):
    """A family with experts, and three steps of it with every parameter whole on every device."""
    given = {"model": {"moe": toy.MOE, "gpt_oss": toy.GPT_OSS}[request.param], "rows": 16, "balance": 0.5}
    given["groups"] = (Group(r"^(vit|projector)\.", frozen=True), Group(".*"))  # a third less to compile
    return given, run_metrics(data, mesh="data=8", **given)


def test_experts_on_a_mesh_in_micro_batches_equal_one_batch_on_one_device(data, mixture):
    """The balance loss is a mean over rows: it depends on neither."""
    given, (_, whole, expected) = mixture
    mesh = "fsdp=2,expert=2,tensor=2" if given["model"] is toy.MOE else "fsdp=4,expert=2"
    _, state, metrics = run_metrics(data, mesh=mesh, rules="moe", micro_batches=2, **given)
    for ours, theirs in zip(metrics, expected, strict=True):
        assert ours["dropped"] == theirs["dropped"] == 0
        for name in ("loss", "ntp", "balance", "expert_load", "max_violation", "idle_experts", "grad_norm"):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, err_msg=name)
    for path, value in state.params.items():
        np.testing.assert_allclose(value, whole.params[path], atol=1e-5, err_msg=path)


def test_the_balance_loss_reaches_the_router_of_every_layer(data, mixture):
    """Through the scan over layers, where intermediate values are easily lost, and without any other loss."""
    _, (program, _, metrics) = mixture
    per_token, experts = 3, 8
    for line in metrics:
        assert line["balance"] >= per_token * 0.999 and 1 <= line["expert_load"] <= experts / per_token
        np.testing.assert_allclose(line["loss"], line["ntp"] + 0.5 * line["balance"], rtol=1e-6)
    config, processor = setup.prepare(toy.config(data, data / "unused", rows=16))
    batch = next(Pipeline(setup.pipeline_config(config), processor).batches(config.run.rows))
    silent = batch._replace(weights_BT=batch.weights_BT * 0)
    state, metrics = program.step(program.from_params(program.random_params()), program.place(silent))
    assert metrics["ntp"] == 0 < metrics["loss"] == 0.5 * metrics["balance"]
    moments = jax.device_get(state.opt_state[1].mu)
    assert np.all(np.any(moments["lm.layers.mlp.router.weight"] != 0, axis=(1, 2)))
    assert not np.any(moments["lm.head.weight"])


def test_imbalance_counts_every_micro_batch_apart():
    """Two devices, of whose four rows every second one belongs to a micro-batch; rows of one or two samples."""
    lengths = [[4], [3], [5], [1], [2, 2], [4], [1, 1], [2]]
    pad = lambda parts: np.pad(np.concatenate(parts), (0, 5 - len(np.concatenate(parts))))
    rows = types.SimpleNamespace(
        segments_BT=jnp.array([pad([np.full(n, k + 1) for k, n in enumerate(row)]) for row in lengths]),
        positions_BT=jnp.array([pad([np.arange(n) for n in row]) for row in lengths]),
    )
    with sharding.use(sharding.make_mesh({"fsdp": 2}, jax.devices()[:2]), sharding.PRESETS["fsdp"]):
        found = step._imbalance(rows, 2)
    first, second = (16 + 25, 8 + 2), (9 + 1, 16 + 4)  # of each device
    assert found == pytest.approx((max(first) + max(second)) / (sum(first) / 2 + sum(second) / 2))
