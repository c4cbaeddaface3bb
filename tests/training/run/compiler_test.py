"""Options of the compiler: what it doesn't know is left out, and said."""

import dataclasses
import logging
import types

import jax
import numpy as np
import pytest

from internvl_jax.data import RowConfig, assemble_row, stack_rows
from internvl_jax.sharding import make_mesh
from internvl_jax.training import build
from internvl_jax.training.run import compiler
from internvl_jax.training.run.held_out import make_measure
from internvl_jax.training.run.score import make_scorer
from internvl_jax.training.stages.gspo.sampling_weights import resharder, sampling_place
from tests.training import toy


def test_an_option_that_nobody_knows_is_a_line_and_no_error(caplog):
    device = jax.devices("cpu")[0]
    wanted = {"xla_backend_optimization_level": "0", "xla_no_such_option": "1", "xla_nor_such_a_one": "2"}
    with caplog.at_level(logging.WARNING, logger="internvl_jax"):
        assert compiler.known(wanted, device) == {"xla_backend_optimization_level": "0"}
    assert [message.split(" does not know ")[1] for message in caplog.messages] == [
        "xla_no_such_option, which is left out",
        "xla_nor_such_a_one, which is left out",
    ]


def test_a_value_that_an_option_can_not_have_is_an_error():
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_backend_optimization_level"):
        compiler.known({"xla_backend_optimization_level": "much"}, jax.devices("cpu")[0])


def test_options_are_for_tpus():
    assert compiler.options(make_mesh({"data": 2}, jax.devices()[:2]), experts=False) == {}


def test_a_process_asks_its_own_compiler(monkeypatch):
    """Devices of another process can't be compiled for: the first of a mesh are those of process 0."""
    chip = lambda process: types.SimpleNamespace(platform="tpu", device_kind="TPU v5p", process_index=process)
    mesh = types.SimpleNamespace(devices=np.array([[chip(0), chip(0)], [chip(1), chip(1)]]))
    asked = []
    monkeypatch.setattr(compiler, "known", lambda wanted, device: asked.append((device.process_index, len(wanted))))
    for process in (0, 1, 7):  # the last one has none of these: a plan of devices that are not there
        monkeypatch.setattr(compiler.jax, "process_index", lambda process=process: process)
        compiler.options(mesh, experts=process == 1)
    assert asked == [(0, 2), (1, 1), (0, 2)]


def test_every_program_that_gathers_weights_has_the_options(monkeypatch, tmp_path):
    """One that the compiler doesn't know shows who asks for it."""
    monkeypatch.setattr(compiler, "options", lambda mesh, experts: {"xla_no_such_option": "1"})
    config = toy.config(tmp_path, tmp_path)
    config.model = dataclasses.replace(config.model, image_token_id=1)
    program = build(config)
    image, data = (config.model.vision.image_size, config.model.tokens_per_tile, 1), config.data
    rows, texts = (
        stack_rows([assemble_row([], RowConfig(data.token_budget, data.tile_budget, *image, "token", several))] * 8)
        for several in (False, True)
    )
    params = program.abstract.params
    calls = {
        "start": (program.from_params, (params,)),
        "step": (program.step, (program.abstract, rows)),
        "held out": (make_measure(program, 1, 64), (params, rows)),
        "scores": (make_scorer(program, program.graphdef, 1, 64), (params, texts)),
        "reshard": (resharder(program, sampling_place(program), "bfloat16"), (params,)),
    }
    for name, (called, given) in calls.items():
        with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
            called.lower(*given).compile()
            pytest.fail(name)
