"""What sampling needs of a device's memory, and that a run which can't have it ends before anything is compiled."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest

from internvl_jax.errors import InputError
from internvl_jax.inference import GroupSize, Ladders, group_memory
from internvl_jax.sharding import shard_bytes
from internvl_jax.training import build, train
from internvl_jax.training.stages.gspo import sampling_weights
from internvl_jax.training.stages.gspo.sampling_weights import check_memory, sampling_memory, sampling_place
from tests.programs import shared
from tests.training import toy


@pytest.fixture(scope="module")
def config(start, tmp_path_factory):
    return toy.gspo_config(start, tmp_path_factory.mktemp("run"), mesh="fsdp=8", rows=16)


@pytest.fixture(scope="module")
def program(config):
    return build(config)


def test_memory_by_hand(config, program):
    """16 prompts x 3 answers of up to 5,000 tokens on eight devices, two of which share a row."""
    text, place = program.model.text, sampling_place(program)
    slot = 2 * text.layers * text.head_width * 4  # one of the two heads
    settings = dataclasses.replace(
        config.stage, sample_prompts=15, group=3, max_prompt_tokens=60, max_new_tokens=5000, kl=0.5
    )
    found = sampling_memory(settings, program, place, "float32")
    prompts = 4  # of 16, on a fourth of the devices
    assert (found.cache.prompts, found.cache.answers) == (prompts * 64 * slot, prompts * 3 * 5000 * slot)
    # Two of three answers to each prompt, when half are left, and the keys of a layer of all four shares: more than the
    # 4,096 slots that they had before they grew.
    exchanged = 4 * prompts * 3 * 5000 // (2 * text.layers)
    assert found.cache.moving == (prompts * (2 * 5000 + 64) + exchanged) * slot
    weights = sum(leaf.size for leaf in program.abstract.params.values()) * 4
    assert weights / 8 < found.weights < weights  # some lie whole on more devices
    alone = sampling_memory(dataclasses.replace(settings, kl=0.0), program, place, "float32")
    assert alone.state == shard_bytes(program.abstract)
    assert found.state - alone.state == shard_bytes(program.abstract_reference)


def test_answers_that_never_grow_and_routes():
    size, ladders = GroupSize(2, 2, 10, 12), Ladders(rows=(2,), prompts=(16,), slots=(12,))
    text, slot = toy.MOE.text, 2 * toy.MOE.text.layers * 2 * toy.MOE.text.head_width * 2
    found = group_memory(text, jnp.dtype(jnp.bfloat16), size, ladders, (1, 1), routes=True)
    routes = 2 * text.layers * text.moe.per_token  # of a token, of which a call writes 256
    assert (found.prompts, found.answers, found.routes) == (2 * 16 * slot, 4 * 12 * slot, 4 * 256 * routes)
    assert found.moving == 2 * 12 * slot + found.prompts  # when two of four are left
    assert found.total == found.prompts + found.answers + found.moving + found.routes


def test_what_fits_exactly_is_taken(config, program, monkeypatch):
    place = sampling_place(program)
    total = sampling_memory(config.stage, program, place, "float32").total
    monkeypatch.setattr(sampling_weights, "memory_limit", lambda device: 8 * total)
    check_memory(config.stage, program, place, "float32")
    monkeypatch.setattr(sampling_weights, "memory_limit", lambda device: 8 * total - 1)
    with pytest.raises(InputError, match=rf"^{config.stage.sample_prompts} prompts x .*, but it has "):
        check_memory(config.stage, program, place, "float32")


def test_a_run_that_can_not_fit_ends_before_it_samples(config, program, monkeypatch):
    """With what it needs, what there is, and the number of prompts that would fit."""
    stage = dataclasses.replace(config.stage, sample_prompts=2**23)
    monkeypatch.setattr(sampling_weights, "memory_limit", lambda device: 8 * 10**9)
    monkeypatch.setattr(jax.stages.Lowered, "compile", None)
    with shared(), pytest.raises(InputError) as refused:
        train(dataclasses.replace(config, stage=stage))
    said = str(refused.value)
    numbers = re.search(
        r"need ([\d,.]+) GB .*keys and values ([\d,.]+), weights to sample from ([\d,.]+), what training keeps "
        r"([\d,.]+)\), but it has ([\d,.]+); lower stage.sample_prompts \((\d+) would fit\)",
        said,
    ).groups()
    total, cache, weights, state, there, fits = (float(number.replace(",", "")) for number in numbers)
    found = sampling_memory(stage, program, sampling_place(program), "float32")
    assert there == 1.0 and total == pytest.approx(found.total / 1e9, abs=0.06)
    assert total == pytest.approx(cache + weights + state, rel=1e-3)
    for prompts, fitting in ((int(fits), True), (2 * int(fits), False)):
        less = dataclasses.replace(stage, sample_prompts=prompts)
        assert (sampling_memory(less, program, sampling_place(program), "float32").total <= 10**9) == fitting
