"""What the loop makes of a step's metrics."""

import types

import jax
import jax.numpy as jnp
import pytest

from internvl_jax.models import PARTS, PEAK, Runtime, train_flops
from internvl_jax.sharding import make_mesh, structure
from internvl_jax.training.run import hooks
from internvl_jax.training.run.loop import Meter
from internvl_jax.training.run.watch import Watch, Watching
from tests.training import toy


def test_utilisation_counts_what_is_trained(tmp_path, monkeypatch):
    """Operations that nobody needs are no use of a device: backward through a frozen tower, say."""
    monkeypatch.setitem(PEAK, jax.devices()[0].device_kind, 1e9)
    config, lines = toy.config(tmp_path, tmp_path), []
    specs = structure(PARTS["all"], config.model, Runtime())[1]
    step = {"tiles": 8, "tokens": 200, "seen": 5000.0, "supervised": 100, "nonfinite": 0, "loss": 2.0, "grad_norm": 1.0}
    for name, trained in (("all", specs), ("rest", {path: specs[path] for path in specs if path[:3] != "vit"})):
        program = types.SimpleNamespace(
            mesh=make_mesh({"data": 2}, jax.devices()[:2]), model=config.model, trained=trained
        )
        (tmp_path / name).mkdir()
        watch = Watch(tmp_path / name, 1, Watching(stacks_after=0))
        with watch.step(1), watch.taking(1):
            pass
        watch.dispatched(1, jnp.zeros(()))
        meter = Meter(tmp_path / name, 0, config.run, (), lambda step: 1e-3, program, watch)
        meter.log(1, {metric: jnp.asarray(value) for metric, value in step.items()}, {})
        meter.close()
        watch.close()
        (line,) = hooks.read_metrics(tmp_path / name)
        lines.append(line["mfu"] * line["step_seconds"] * 2e9)
        assert lines[-1] == pytest.approx(train_flops(config.model, 8, 200, 5000.0, trained), rel=1e-6)
    assert lines[1] < lines[0] == pytest.approx(train_flops(config.model, 8, 200, 5000.0), rel=1e-6)
