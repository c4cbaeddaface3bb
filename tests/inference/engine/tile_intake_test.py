"""Features that requests bring: answers are those of the tiles, nothing compiles, and nothing wrong comes in."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from checkpoint_convert.released import load_model
from internvl_jax.errors import InputError
from internvl_jax.evaluation import image_token_id, read_case
from internvl_jax.inference import (
    EncodedTiles,
    Engine,
    Ladders,
    RemoteFeatures,
    Request,
    Sampler,
    SamplingParams,
    Thresholds,
    VisionTower,
    Vocabulary,
    digest,
)
from internvl_jax.inference.engine.runner import Runner
from internvl_jax.models import LanguageHalf, VisionHalf
from internvl_jax.sharding import bind, flatten
from tests.inference.engine.engine_test import request, run, through_failures
from tests.inference.engine.vision_tower_test import half
from tests.inference.flash_test import LADDERS, ONE_CLASS

THRESHOLDS = (Thresholds(), Thresholds(relative=1.0), Thresholds(relative=0.5), Thresholds(absolute=1.0))


def bring(row, encoded, flash):
    """The request as a server without tower gets it: features for tiles."""
    count = len(row.tiles_GHWC)
    compress_G = np.zeros(count, bool) if flash is None else row.thresholds.decide(encoded.probability_G, flash)
    branches = encoded.features_GPD, encoded.compressed_GPD
    features = tuple(np.asarray(branches[int(compressed)][g]) for g, compressed in enumerate(compress_G))
    given = RemoteFeatures(tuple(map(digest, row.tiles_GHWC)), compress_G, features)
    return dataclasses.replace(row, tiles_GHWC=row.tiles_GHWC[:0], thresholds=Thresholds(), features=given)


@pytest.fixture(scope="module")
def tower(flash_model):
    return VisionTower(half(VisionHalf, flash_model), LADDERS.tiles)


@pytest.fixture(scope="module")
def local(flash_model, processor):
    return Engine(flash_model, Vocabulary.of(processor), LADDERS)


@pytest.fixture(scope="module")
def engine(flash_model, processor):
    """Without a tower; its parameters are committed to their device, as those that are loaded."""
    engine = Engine(half(LanguageHalf, flash_model, jax.devices()[0]), Vocabulary.of(processor), ONE_CLASS)
    engine.warm_up()
    return engine


@pytest.fixture(scope="module")
def rows(processor):
    """A picture under several thresholds, another one, and none."""
    picture, other, text = (
        request(processor, seed, tiles, words) for seed, tiles, words in ((0, 3, 11), (1, 2, 23), (2, 0, 5))
    )
    return [*(dataclasses.replace(picture, thresholds=each) for each in THRESHOLDS), other, text]


@pytest.fixture(scope="module")
def brought(rows, tower):
    return [bring(row, tower.encode(row.tiles_GHWC), tower.config.flash) for row in rows]


def seen(engine, requests):
    """Answers and what the model read."""
    ids, found = [engine.add(row) for row in requests], {}
    while engine.busy:
        for token in engine.step():
            found.setdefault(token.id, []).append(token)
    return [([token.token for token in found[id]], found[id][0].seen.tokens_T.tolist()) for id in ids]


def test_answers_are_those_of_the_tiles(engine, local, rows, brought):
    wanted = seen(local, rows)
    assert len({len(tokens) for _, tokens in wanted[:4]}) == 3  # nothing, some and all but one compressed
    assert seen(engine, brought) == wanted
    assert [seen(engine, [row])[0] for row in brought] == wanted
    assert seen(local, brought) == wanted  # an engine with a tower takes both


def test_a_tile_is_kept_by_what_was_decided_and_put_in_once(engine, brought, monkeypatch):
    first, whole, some, _ = brought[:4]
    put, keep = [], engine.tiles._keep
    monkeypatch.setattr(engine.tiles, "_keep", lambda names, new: (put.extend(names), keep(names, new))[1])
    engine.tiles.clear()
    for row, count in ((first, 3), (first, 3), (whole, 5), (some, 5), (whole, 5), (first, 5)):
        run(engine, [row])
        assert len(set(put)) == len(put) == count  # two tiles are compressed at first, then all three are there in full
    assert not engine.tiles.pinned


def test_nothing_compiles_after_warm_up(engine, rows, brought, tower):
    programs, compiled = engine.num_compiled, []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: compiled.append(event) if "backend_compile" in event else None
    )
    rng = np.random.default_rng(0)
    for step in range(60):
        engine.add(brought[int(rng.integers(len(brought)))])
        if step % 20 == 0:
            engine.tiles.clear()
            engine._scheduler.forget()
        engine.step(most=1 + step % 3)
    while engine.busy:
        engine.step()
    assert engine.num_compiled == programs and not compiled
    jax.jit(lambda x: x * 19.3)(1.0)
    assert compiled


def test_a_program_that_fails_loses_no_features(engine, local, rows, brought, monkeypatch):
    wanted = run(local, rows)
    engine.tiles.clear()
    engine._scheduler.forget()
    assert through_failures(engine, brought, ("decode", "chunk", "begin"), monkeypatch) == wanted


def test_features_of_another_precision(engine, brought):
    """Those of bfloat16 are read as they are; float32 ones are rounded where the engine keeps bfloat16."""
    row = brought[0]
    rounded = tuple(each.astype(ml_dtypes.bfloat16) for each in row.features.features)

    def answer(features):
        engine.tiles.clear()
        engine._scheduler.forget()
        return run(engine, [dataclasses.replace(row, features=dataclasses.replace(row.features, features=features))])

    assert answer(rounded) == answer(tuple(each.astype(np.float32) for each in rounded))


def changed(row, **changes):
    return dataclasses.replace(row, features=dataclasses.replace(row.features, **changes))


def poisoned(row, value):
    features = [each.copy() for each in row.features.features]
    features[1][0, 7] = value
    return changed(row, features=tuple(features))


REFUSED = {
    "fewer names": (lambda row: changed(row, names=row.features.names[:2]), "2 names, 3 decisions"),
    "short name": (lambda row: changed(row, names=(b"tile", *row.features.names[1:])), "name of tile 0 has 4 bytes"),
    "decisions": (
        lambda row: changed(row, compress_G=row.features.compress_G.astype(np.int8)),
        r"3 decisions \(int8\)",
    ),
    "branch": (
        lambda row: changed(row, compress_G=~row.features.compress_G),
        "features of tile 0 are float32 of shape",
    ),
    "type": (
        lambda row: changed(row, features=tuple(each.astype(np.float64) for each in row.features.features)),
        "features of tile 0 are float64",
    ),
    "nan": (lambda row: poisoned(row, np.nan), "features of tile 1 are not finite"),
    "infinity": (lambda row: poisoned(row, -np.inf), "features of tile 1 are not finite"),
    "tokens": (lambda row: dataclasses.replace(row, tokens_T=row.tokens_T[4:]), "8 image tokens, its 3 tiles need 12"),
    "thresholds": (lambda row: dataclasses.replace(row, thresholds=Thresholds(0.5)), "leave tiles and thresholds out"),
    "tiles": (lambda row: dataclasses.replace(row, tiles_GHWC=np.zeros((3, 28, 28, 3), np.uint8)), "leave tiles"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_features_that_do_not_fit(engine, brought, change, message):
    with pytest.raises(InputError, match=message):
        engine.add(change(brought[0]))
    assert not engine.busy


def test_what_has_no_tower_reads_no_tiles(engine, rows):
    for ask in (lambda: engine.add(rows[0]), lambda: engine.route(rows[0].tiles_GHWC)):
        with pytest.raises(InputError, match="this engine has no vision tower to read tiles with; give the features"):
            ask()
    assert not engine.busy


def test_a_model_without_router_takes_no_compressed_tiles(model, processor, brought):
    engine = Engine(half(LanguageHalf, model), Vocabulary.of(processor), LADDERS)
    with pytest.raises(InputError, match="features of compressed tiles but this model has no router"):
        engine.add(brought[0])


def test_more_tiles_than_are_kept(flash_model, processor, brought):
    engine = Engine(
        half(LanguageHalf, flash_model),
        Vocabulary.of(processor),
        dataclasses.replace(LADDERS, kept_bytes=2 * (4 + 1) * 40 * 4),
    )
    with pytest.raises(InputError, match="the request has 3 tiles, more than the 2 that are kept at a time"):
        engine.add(brought[0])


def test_groups_of_answers_need_tiles(flash_model, processor, brought):
    sampler = Sampler(flash_model.config, np.float32, Vocabulary.of(processor), LADDERS)
    with pytest.raises(InputError, match="request 0 has features of its tiles, but groups of answers need tiles"):
        sampler.sample(flatten(flash_model), brought[:1], 1, 0)


def test_normalised_tiles_are_refused_where_nothing_may_compile(flash_model, processor, rows, monkeypatch):
    engine = Engine(flash_model, Vocabulary.of(processor), ONE_CLASS)
    monkeypatch.setattr(Runner, "warm_up", lambda *_: 0)
    engine.warm_up()
    floats = dataclasses.replace(rows[0], tiles_GHWC=rows[0].tiles_GHWC.astype(np.float32) / 255)
    for ask in (lambda: engine.add(floats), lambda: engine.route(floats.tiles_GHWC)):
        with pytest.raises(InputError, match="the tiles are float32; an engine that was warmed up has programs"):
            ask()
    whole = dataclasses.replace(rows[0], tiles_GHWC=rows[0].tiles_GHWC.astype(np.int32))
    with pytest.raises(InputError, match="the request's tiles are int32; give uint8 pixels, or floats"):
        engine.add(whole)


def test_recorded_answers_through_features(golden):
    """The released model in halves, each read by itself."""
    case = golden / "chat_qwen3_github"
    meta = json.loads((case / "meta.json").read_text())
    inputs, outputs = np.load(case / "inputs.npz"), np.load(case / "outputs.npz")
    image = meta["img_context_token_id"]
    model = load_model(case, "float32", image_token_id=image)
    vision, language = half(VisionHalf, model), half(LanguageHalf, model)
    vocabulary = Vocabulary(320, (image, meta["img_start_token_id"], meta["img_end_token_id"]), ())
    tiles = np.split(inputs["pixel_values"].transpose(0, 2, 3, 1)[inputs["image_flags"].ravel() == 1], [2])
    prompts = zip(inputs["prompt_input_ids"], inputs["prompt_attention_mask"], strict=True)
    sampling = SamplingParams(max_new_tokens=24)
    plain = [Request(ids[real == 1], each, sampling) for (ids, real), each in zip(prompts, tiles, strict=True)]
    rows = [bring(row, jax.device_get(vision.encode(row.tiles_GHWC)), None) for row in plain]
    assert run(Engine(language, vocabulary, Ladders(chunk=16)), rows) == outputs["greedy_tokens"].tolist()


def test_recorded_flash_answer_through_features(golden):
    """At every pair of thresholds that was recorded as from tiles, at the config's as recorded."""
    inputs, outputs, meta = read_case(golden / "flash_qwen3_github")
    model = load_model(golden / "flash_qwen3_github", "float32", image_token_id=image_token_id(meta))
    graphdef, tiles_GHWC = nnx.split(model, nnx.Param)[0], inputs["pixel_values"].transpose(0, 2, 3, 1)
    found = jax.jit(lambda params, tiles: bind(graphdef, params).encode(tiles))(flatten(model), tiles_GHWC)
    encoded = EncodedTiles(*map(np.asarray, (found.features_GPD, found.compressed_GPD, found.probability_G)))
    picks, sampling = [0, 1, 5, 6], SamplingParams(max_new_tokens=24)
    pairs = [Thresholds(*inputs["thresholds64"][pick].tolist()) for pick in picks]
    plain = [Request(inputs["input_ids"][0], tiles_GHWC, sampling, pair) for pair in pairs]
    rows = [bring(row, encoded, model.config.flash) for row in plain]
    compress = [row.features.compress_G.tolist() for row in rows]
    assert compress == outputs["decisions"][picks].tolist()
    engine = Engine(model, Vocabulary(model.config.text.vocab, (), ()))
    answers = run(engine, rows)
    assert answers[0] == outputs["greedy_tokens"][0].tolist()
    assert answers == run(engine, plain)
