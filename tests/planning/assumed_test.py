"""Lengths that a plan is for, and the operations that they come to: those of a run of the same lengths."""

import dataclasses
import re

import numpy as np
import pytest

from configs.experiments import gspo, router, warmup
from configs.models import sizes
from internvl_jax.errors import InputError
from internvl_jax.models import PARTS, AdaptedWeight, LoraConfig, Runtime, seen_keys, tile_flops, train_flops
from internvl_jax.planning import Assumed
from internvl_jax.planning.lowering import model_flops
from internvl_jax.sharding import structure
from internvl_jax.training.run.optim import assign

QWEN, GPT_OSS = sizes.get("8b").text, sizes.get("20b-a4b").text


def positions(lengths):
    """Of the tokens of samples."""
    return np.concatenate([np.arange(length, dtype=np.float32) for length in lengths])


def test_a_row_is_one_sample_unless_told():
    assert Assumed().seen(QWEN, 4096) == 4096 / 2  # a token sees half of its sample, on average
    assert Assumed().describe(4096) == {"how": "one sample a row", "median": None, "sigma": 0.0, "mean": 4096.0}


@pytest.mark.parametrize("text", [QWEN, GPT_OSS], ids=["all see all", "windows"])
def test_samples_of_one_length(text):
    """What a run counts, token by token, is what a plan says of full rows."""
    seen = float(np.sum(seen_keys(text, positions([256] * 16))))
    assert Assumed(median=256).seen(text, 4096) * 4096 == pytest.approx(seen, rel=1e-6)


def test_squares_count_and_not_the_square_of_the_mean():
    found = float(np.sum(seen_keys(QWEN, positions([100, 900, 3000]))))
    assert found == (100**2 + 900**2 + 3000**2) / 2 > 4000**2 / 3 / 2


def test_windows():
    """In every second layer a token sees 128 keys at most."""
    assert GPT_OSS.window == 128
    inside, whole = 128**2 / 2 + (1000 - 128) * 128, 1000**2 / 2
    assert float(np.sum(seen_keys(GPT_OSS, positions([1000])))) == pytest.approx((inside + whole) / 2)


def test_log_normal_lengths():
    """exp(sigma^2 / 2) of the median on average, and the mean of squares exp(2 sigma^2): as long as few are cut."""
    assumed = Assumed(median=1000, sigma=0.5)
    assert assumed.describe(10**6)["mean"] == pytest.approx(1000 * np.exp(0.125), rel=1e-3)
    assert assumed.seen(QWEN, 10**6) == pytest.approx(1000 * np.exp(1.5 * 0.25) / 2, rel=2e-3)
    assert max(Assumed(median=4096, sigma=0.8).lengths(32768)) == 32768


def test_blocks_that_packed_rows_meet():
    """The smaller the blocks, the nearer to the keys that tokens see; large ones bring others' keys along."""
    assumed = Assumed(median=512, sigma=0.8)
    seen = assumed.seen(QWEN, 4096) / (4096 / 2)
    small, large = assumed.met(4096, 16, 16, None), assumed.met(4096, 128, 256, None)
    assert seen == pytest.approx(small, rel=0.1) and 1.1 * small < large < 0.5
    assert assumed.met(4096, 16, 16, 64) > 2 * small  # most of a window lies within a sample anyway
    assert Assumed().met(4096, 16, 16, None) == 1


def test_operations_of_a_step():
    """Attention has four operations for a query, a key and an element of a head, forward, and twice that backward."""
    config = dataclasses.replace(sizes.get("8b"))
    more = train_flops(config, 0, 4096, 4096 * 2048) - train_flops(config, 0, 4096, 0)
    assert more == pytest.approx(3 * 4 * 36 * 4096 * 2048 * 32 * 128)


@pytest.mark.parametrize("fields", [{"kernel": 0.0}, {"latency": 2.0}, {"median": 0}, {"sigma": -1.0}])
def test_what_can_not_be_assumed(fields):
    with pytest.raises(InputError, match="can't be"):
        Assumed(**fields)


def trained(config, pattern):
    """The parameters of a model whose paths match."""
    return {
        path: spec for path, spec in structure(PARTS["all"], config, Runtime())[1].items() if re.search(pattern, path)
    }


@pytest.mark.parametrize("size", ["8b", "1b", "20b-a4b", "8b-flash"])
def test_operations_of_a_step_in_which_parts_are_frozen(size):
    """Nothing goes backward through what lies before the first part that is trained, and a frozen weight has no
    gradient; without any trained it is a forward pass.
    """
    config, tiles, tokens, seen = sizes.get(size), 10, 4096, 4096 * 2048
    of = lambda pattern: train_flops(config, tiles, tokens, seen, trained(config, pattern))
    whole, tower = train_flops(config, tiles, tokens, seen), tiles * tile_flops(config)
    language = whole / 3 - tower
    # The projector is two products with each image token.
    width, inputs = config.text.width, config.vision.width * config.shuffle**2
    projector = tiles * config.tokens_per_tile * 2 * width * (inputs + width)
    attention = 4 * config.text.layers * seen * config.text.heads * config.text.head_width
    assert of("") == pytest.approx(whole)
    assert of(r"^(?!vit\.)") == pytest.approx(whole - 2 * (tower - projector))
    assert of(r"^lm\.") == pytest.approx(tower + 3 * language)
    assert of(r"^projector\.") == pytest.approx(tower + 2 * projector + 2 * language + attention)
    assert of(r"^router\.") == of("^nothing$") == pytest.approx(whole / 3)


@pytest.mark.parametrize("experiment", [gspo, router, warmup], ids=["gspo", "router", "warmup"])
def test_a_plan_knows_what_is_frozen(experiment):
    """As a run does (`loop_test`), by the groups of its config."""
    config = experiment.get_config("tiny")
    specs = structure(PARTS["all"], config.model, Runtime())[1]
    paths = [path for path, group in assign(specs, config.optim.groups).items() if not group.frozen]
    rows, data = config.run.rows, config.data
    tokens = rows * data.token_budget
    given = config.model, rows * data.tile_budget, tokens, tokens * data.token_budget / 2
    counted = train_flops(*given, {path: specs[path] for path in paths})
    assert model_flops(config, Assumed()) == pytest.approx(counted)
    assert counted < 0.99 * train_flops(*given)


def test_operations_of_a_step_beside_a_frozen_base():
    """Trained whole it is what any training is; adapters save the products of the base's gradients, and more where they
    come late.
    """
    config, step = sizes.get("8b"), (10, 4096, 4096 * 2048)
    paths = tuple(sorted(structure(PARTS["all"], config, Runtime())[1]))
    plain = train_flops(config, *step)

    def of(lora):
        adapted = dataclasses.replace(config, lora=lora)
        own = {
            path: spec for path, spec in trained(adapted, "").items() if path in lora.whole or path[-2:] in (".a", ".b")
        }
        return train_flops(adapted, *step, own) / plain

    assert of(LoraConfig((), paths)) == pytest.approx(1, rel=1e-3)
    assert of(LoraConfig((), ("router.head.weight",))) == pytest.approx(1 / 3)
    rank = lambda path, layers: AdaptedWeight(path, ((16,),) * layers, ((32.0,),) * layers)
    late, early = rank("lm.layers.attn.q", config.text.layers), rank("vit.layers.mlp.fc1", config.vision.layers)
    assert 0.55 < of(LoraConfig((late,))) < of(LoraConfig((late, early))) < 0.75
