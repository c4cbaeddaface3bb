"""Flash models in the engine: every request decides for itself, and batches answer as single requests do."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from internvl_jax.errors import InputError
from internvl_jax.inference import Engine, Ladders, Sampler, SamplingParams, Thresholds, Vocabulary, chat, complete
from internvl_jax.models import Slots
from internvl_jax.sharding import bind, flatten
from tests.inference.engine.engine_test import request, run

LADDERS = Ladders(rows=(1, 4), prompts=(32, 48), together=(1, 4), tiles=(1, 5), slots=(64,))
ONE_CLASS = dataclasses.replace(LADDERS, prompts=(48,), together=(4,), classes=((4, 64),), chunk=48)
SPARED = Thresholds(relative=1.0)


@pytest.fixture(scope="module")
def engine(flash_model, processor):
    engine = Engine(flash_model, Vocabulary.of(processor), ONE_CLASS)
    engine.warm_up()
    return engine


def read(engine, requests):
    """What the model reads of each prompt."""
    ids = [engine.add(dataclasses.replace(row, sampling=SamplingParams(max_new_tokens=1))) for row in requests]
    prompts = {}
    while engine.busy:
        prompts |= {token.id: token.seen for token in engine.step()}
    return [prompts[id].tokens_T for id in ids]


@pytest.fixture(scope="module")
def mixed(processor):
    """All but one tile compressed, none, no tile at all, and by the model's absolute threshold alone."""
    rows = [
        request(processor, seed, tiles, words) for seed, tiles, words in ((0, 3, 11), (1, 2, 23), (2, 0, 5), (3, 3, 7))
    ]
    thresholds = [Thresholds(), SPARED, Thresholds(), Thresholds(relative=0.5)]
    return [dataclasses.replace(row, thresholds=each) for row, each in zip(rows, thresholds, strict=True)]


def test_a_batch_of_different_decisions_equals_single_runs(engine, mixed):
    seen = read(engine, mixed)
    assert [len(row.tokens_T) - len(tokens_T) for row, tokens_T in zip(mixed, seen, strict=True)] == [6, 0, 0, 3]
    together = run(engine, mixed)
    assert [run(engine, [row])[0] for row in mixed] == together
    assert len(set(map(tuple, together))) == 4


def test_nothing_compressed_is_the_base_model(engine, structure, params, processor, mixed):
    base = Engine(bind(structure[0], params), Vocabulary.of(processor), ONE_CLASS)
    spared = [dataclasses.replace(row, thresholds=SPARED) for row in mixed]
    plain = [dataclasses.replace(row, thresholds=Thresholds()) for row in mixed]
    assert run(engine, spared) == run(base, plain)
    assert run(engine, mixed[:1]) != run(base, plain[:1])
    with pytest.raises(InputError, match="the request has thresholds but this model has no router"):
        base.add(spared[0])


def test_the_engine_equals_a_pass_over_the_shortened_row(engine, flash_model, mixed):
    (row, *_) = mixed
    (tokens_T,) = read(engine, [row])
    tokens_BT, positions_BT = tokens_T[None], np.arange(len(tokens_T), dtype=np.int32)[None]
    probability_G = engine.route(row.tiles_GHWC)
    compress_G = row.thresholds.decide(probability_G, flash_model.config.flash)
    mask_G, segments_BT = np.ones(3, bool), np.ones_like(positions_BT)
    slots = Slots.in_order(mask_G, compress_G, 1)
    out = flash_model(tokens_BT, row.tiles_GHWC, mask_G, segments_BT, positions_BT, slots=slots)
    logits_V = np.array(flash_model.logits(out.hidden_BTD)[0, -1])
    logits_V[[*engine.vocabulary.banned, *range(engine.vocabulary.size, len(logits_V))]] = -np.inf
    assert compress_G.sum() == 2 and int(np.argmax(logits_V)) == run(engine, [row])[0][0]


def test_nothing_compiles_after_warm_up(engine, processor):
    programs, compiled = engine.num_compiled, []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: compiled.append(event) if "backend_compile" in event else None
    )
    rng, lengths = np.random.default_rng(0), set()
    for i in range(20):
        rows = [
            dataclasses.replace(
                request(
                    processor, i, int(rng.integers(0, 3)), int(rng.integers(1, 30)), SamplingParams(max_new_tokens=2)
                ),
                thresholds=Thresholds(float(rng.random()), float(rng.random())),
            )
            for _ in range(1 + i % 2)
        ]
        lengths |= {(len(row.tokens_T), len(seen)) for row, seen in zip(rows, read(engine, rows), strict=True)}
        run(engine, rows)
    assert engine.num_compiled == programs and not compiled
    assert {full - short for full, short in lengths} == {0, 3}


def test_chat_says_what_pictures_took(flash_model, processor):
    rng = np.random.default_rng(0)
    pictures = [PIL.Image.fromarray(rng.integers(0, 255, (28, 28 * n, 3), dtype=np.uint8)) for n in (3, 1)]
    parts = [{"type": "image", "image": picture} for picture in pictures]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "what is it?"}]}]
    params = SamplingParams(max_new_tokens=5)
    whole = complete(flash_model, processor, messages, params, SPARED)
    assert whole.picture_tokens == (4 * 4, 4)  # three tiles and their thumbnail, one tile
    less = complete(flash_model, processor, messages, params)
    assert sum(less.picture_tokens) == 4 + 4 * 1  # all but one
    assert chat(flash_model, processor, messages, 5) == less.text != whole.text
    assert chat(flash_model, processor, messages, 5, thresholds=SPARED) == whole.text


def test_rollouts_decide_as_requests_do(flash_model, engine, processor, mixed):
    sampler = Sampler(
        flash_model.config, jnp.float32, Vocabulary.of(processor), dataclasses.replace(LADDERS, rows=(4,))
    )
    found = sampler.sample(flatten(flash_model), mixed, 1, 0)
    assert [group[0].tokens.tolist() for group in found] == run(engine, mixed)
