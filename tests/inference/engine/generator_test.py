"""Generation: cached = full, batch = single, padding and layout change nothing, nothing compiles after warm-up."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from checkpoint_convert.released import load_model
from internvl_jax.errors import InputError
from internvl_jax.inference import Generator, Ladders, Request, SamplingParams, Vocabulary
from internvl_jax.models import InternVL
from internvl_jax.models.config import MoeConfig, YarnConfig
from internvl_jax.models.transforms.unstack import unstack_params
from internvl_jax.sharding import PRESETS, abstract, bind, flatten, make_mesh, shardings

LADDERS = Ladders(rows=(1, 4), prompts=(32, 48), tiles=(1, 5), slots=(64,))
GREEDY = SamplingParams(max_new_tokens=7)


def request(processor, seed, tiles, words, sampling=GREEDY):
    rng = np.random.default_rng(seed)
    context = [processor.tokenizer.image_context] * (4 * tiles)
    tokens = np.array([*context, *rng.integers(0, 250, words)], np.int32)
    return Request(tokens, rng.integers(0, 255, (tiles, 28, 28, 3), dtype=np.uint8), sampling)


@pytest.fixture(scope="module")
def mixed(processor):
    sampled = SamplingParams(max_new_tokens=9, temperature=1.0, seed=11, top_k=50, top_p=0.95, repetition_penalty=1.2)
    return [
        request(processor, 0, 2, 11),
        request(processor, 1, 0, 5, sampled),
        request(processor, 2, 3, 17, dataclasses.replace(sampled, seed=12, top_p=1.0)),
    ]


@pytest.fixture(scope="module")
def vocabulary(processor):
    return Vocabulary.of(processor)


@pytest.fixture(scope="module")
def generator(structure, params, vocabulary):
    generator = Generator(bind(structure[0], params), vocabulary, LADDERS)
    made = generator.warm_up(**dataclasses.asdict(LADDERS))
    assert made == 2 + 4 * 2 + 4 + 4 + 4 + 2 + 2  # encode, gather, prefill, widen, start, first, decode
    return generator


@pytest.fixture(scope="module")
def answers(generator, mixed):
    return generator.generate(mixed)


def test_greedy_tokens_equal_the_reference(golden):
    case = golden / "chat_qwen3_github"
    meta = json.loads((case / "meta.json").read_text())
    inputs, outputs = np.load(case / "inputs.npz"), np.load(case / "outputs.npz")
    image = meta["img_context_token_id"]
    model = load_model(case, "float32", image_token_id=image)
    vocabulary = Vocabulary(320, (image, meta["img_start_token_id"], meta["img_end_token_id"]), ())
    generator = Generator(model, vocabulary, Ladders((2,), (32,), (5,), (64,)))
    tiles = np.split(inputs["pixel_values"].transpose(0, 2, 3, 1)[inputs["image_flags"].ravel() == 1], [2])
    rows = zip(inputs["prompt_input_ids"], inputs["prompt_attention_mask"], strict=True)
    prompts = [tokens[mask == 1] for tokens, mask in rows]  # the reference pads on the left

    def answer(stops):
        sampling = SamplingParams(max_new_tokens=24, stop_token_ids=stops)
        return generator.generate([Request(*pair, sampling) for pair in zip(prompts, tiles, strict=True)])

    assert answer(()) == outputs["greedy_tokens"].tolist()
    stop = meta["eos_for_greedy_tokens_eos"]
    wanted = [row[: row.index(stop) + 1] for row in outputs["greedy_tokens_eos"].tolist()]
    assert answer((stop,)) == wanted


def test_cache_after_decoding_equals_a_full_pass(generator, processor):
    prompt = request(processor, 7, 3, 11)
    state, token_B = generator.prefill([prompt])
    tokens = [int(token_B[0])]
    for _ in range(6):
        state, token_B = generator.decode(state)
        tokens.append(int(token_B[0]))
    T = len(prompt.tokens_T) + 6  # the last token is not in the cache yet
    tokens_BT = np.zeros((4, 32), np.int32)  # four times the whole row, seen up to different places
    tokens_BT[:, :T] = np.concatenate([prompt.tokens_T, tokens[:-1]])
    lengths_B = np.array([T, T - 1, T - 4, T - 6], np.int32)
    index_BP = np.tile(np.arange(32, dtype=np.int32) % 12, (4, 1))
    features = generator.programs.gather(generator.encode(prompt.tiles_GHWC).pool_GPD, index_BP)
    logits_BV, kv = generator.programs.prefill(generator.params, tokens_BT, lengths_B, features)
    for ours, full in zip((state.cache.k, state.cache.v), kv, strict=True):
        np.testing.assert_allclose(ours[:, 0, :, :T], full[:, 0, :, :T], atol=1e-5, rtol=1e-5)
    assert state.cache.segments_BS[0].tolist() == [1] * T + [0] * (64 - T)
    logits_BV = np.array(logits_BV)
    tokenizer = processor.tokenizer
    logits_BV[:, [tokenizer.image_context, tokenizer.image_start, tokenizer.image_end]] = -np.inf
    best = logits_BV[:, : tokenizer.vocab_size].argmax(axis=1)
    assert best.tolist() == [tokens[6], tokens[5], tokens[2], tokens[0]]


def test_a_batch_equals_single_runs(generator, mixed, answers):
    assert [generator.generate([row])[0] for row in mixed] == answers
    assert [len(answer) for answer in answers] == [7, 9, 9]


def test_more_padding_changes_nothing(generator, processor, mixed, answers):
    longer = request(processor, 4, 0, 39)
    assert generator.generate([longer, *mixed])[1:] == answers


def test_left_padding_changes_nothing(structure, params, processor):
    tokens = request(processor, 3, 0, 13).tokens_T

    @jax.jit
    def run(tokens_BT, segments_BT, positions_BT):
        model = bind(structure[0], params)
        return model.lm(model.embed(tokens_BT, None), segments_BT, positions_BT).hidden_BTD

    def padded(*sides):
        pad = lambda row, fill: np.pad(row, sides, constant_values=fill)[None]
        return run(pad(tokens, 9), pad(np.ones(13, int), 0), pad(np.arange(13), 0))

    np.testing.assert_allclose(padded(5, 0)[:, 5:], padded(0, 5)[:, :13], atol=1e-5)


@pytest.mark.parametrize("apart", [True, False])
def test_stacked_layers_and_layers_apart_answer_the_same(model, vocabulary, mixed, answers, apart):
    generator = Generator(model, vocabulary, Ladders((1,), (32,), (1,), (64,)), apart=apart)
    assert generator.generate(mixed[1:2]) == answers[1:2]


def test_layers_apart_share_the_memory_of_the_stack():
    stacked = {"lm.layers.mlp.up.weight": jnp.arange(3 * 32 * 64.0).reshape(3, 32, 64), "vit.cls": jnp.ones(5)}
    apart = unstack_params(stacked)
    start = stacked["lm.layers.mlp.up.weight"].unsafe_buffer_pointer()
    for index in range(3):
        part = apart[f"lm.layers.{index}.mlp.up.weight"]
        np.testing.assert_array_equal(part, stacked["lm.layers.mlp.up.weight"][index])
        assert part.unsafe_buffer_pointer() == start + index * part.nbytes
    assert apart["vit.cls"] is stacked["vit.cls"] and len(apart) == 4


def test_layers_apart_of_a_mesh(model, vocabulary, mixed, answers):
    mesh = make_mesh({"fsdp": 4}, jax.devices()[:4])
    params, specs = flatten(model), abstract(lambda rngs: InternVL(model.config, rngs))[1]
    params = jax.device_put(params, shardings(specs, mesh, PRESETS["fsdp"]))
    graphdef = nnx.split(model, nnx.Param)[0]
    generator = Generator(bind(graphdef, params), vocabulary, Ladders((1,), (32,), (1,), (64,)), apart=True)
    assert generator.generate(mixed[1:2]) == answers[1:2]


@pytest.mark.parametrize(
    ("family", "mesh", "preset"), [("qwen3", {"tensor": 2}, "fsdp_tp"), ("gpt_oss", {"expert": 2, "tensor": 2}, "moe")]
)
def test_experts_on_a_mesh_answer_as_on_one_device(config, vocabulary, mixed, family, mesh, preset):
    experts = {"moe": MoeConfig(experts=8, per_token=3), "vocab": 312, "mlp": 20}
    if family == "gpt_oss":
        experts |= {"family": "gpt_oss", "window": 7, "yarn": YarnConfig(4.0, 32.0, 1.0, positions=64)}
    model = dataclasses.replace(config, text=dataclasses.replace(config.text, **experts))
    graphdef, specs = abstract(lambda rngs: InternVL(model, rngs))
    rng = np.random.default_rng(5)
    normal = lambda path, shape: rng.normal(float(path.endswith("scale")), 0.3, shape).astype(np.float32)
    params = {path: normal(path, spec.shape) for path, spec in specs.items()}
    mesh = make_mesh(mesh, jax.devices()[: math.prod(mesh.values())])

    def answer(where):
        placed = bind(graphdef, jax.device_put(params, where))
        return Generator(placed, vocabulary, Ladders((4,), (32,), (5,), (64,))).generate(mixed)

    expected = answer(jax.devices()[0])
    assert answer(shardings(specs, mesh, PRESETS[preset])) == expected
    assert len({token for row in expected for token in row}) > 10


def test_the_state_is_donated(generator, mixed):
    state, _ = generator.prefill(mixed)
    generator.decode(state)
    assert state.cache.k.is_deleted() and state.seen_BV.is_deleted()


def test_stops(generator, mixed, answers):
    stop = answers[2][4]
    rows = [
        dataclasses.replace(row, sampling=dataclasses.replace(row.sampling, stop_token_ids=(stop,))) for row in mixed
    ]
    wanted = [answer[: answer.index(stop) + 1] if stop in answer else answer for answer in answers]
    assert generator.generate(rows) == wanted
    assert len(wanted[2]) <= 5


def test_the_models_own_stops_are_ignored_if_asked_for(model, processor, mixed, answers):
    vocabulary, own, given = Vocabulary.of(processor), answers[2][4], answers[2][-1]
    stopping = Generator(model, dataclasses.replace(vocabulary, stops=(own,)), LADDERS)
    ask = lambda **change: stopping.generate(
        [dataclasses.replace(mixed[2], sampling=dataclasses.replace(mixed[2].sampling, **change))]
    )
    cut = lambda stop: [answers[2][: answers[2].index(stop) + 1]]
    assert ask() == cut(own) != ask(ignore_eos=True) == [answers[2]]
    assert ask(ignore_eos=True, stop_token_ids=(given,)) == cut(given)


def test_image_tokens_and_unused_rows_are_never_written(generator, processor):
    hot = SamplingParams(max_new_tokens=40, temperature=100.0)
    rows = [request(processor, i, 0, 3, dataclasses.replace(hot, seed=i)) for i in range(4)]
    tokens = {token for answer in generator.generate(rows) for token in answer}
    tokenizer = processor.tokenizer
    assert not tokens & {tokenizer.image_context, tokenizer.image_start, tokenizer.image_end}
    assert max(tokens) < tokenizer.vocab_size and len(tokens) > 60


def test_the_picture_matters_and_equal_pictures_are_encoded_once(generator, processor, monkeypatch):
    first = request(processor, 20, 2, 9)
    other = dataclasses.replace(first, tiles_GHWC=request(processor, 21, 2, 9).tiles_GHWC)
    encoded = []
    encode = generator.sight.encode
    count = lambda params, tiles: encoded.append(len(tiles)) or encode(params, tiles)
    monkeypatch.setattr(generator.sight, "encode", count)
    a, b, c = generator.generate([first, other, first])
    assert a == c != b
    assert encoded == [4]


def test_more_tiles_than_the_ladder_has_are_encoded_in_parts(generator, processor):
    tiles_GHWC = request(processor, 22, 7, 1).tiles_GHWC
    programs = generator.programs.num_compiled
    together = np.asarray(generator.encode(tiles_GHWC).pool_GPD)[:7]
    alone = [np.asarray(generator.encode(tiles_GHWC[i : i + 1]).pool_GPD)[0] for i in range(7)]
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-5)
    assert generator.programs.num_compiled == programs


def test_nothing_compiles_after_warm_up(generator, processor):
    programs = generator.programs.num_compiled
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: compiled.append(event) if "backend_compile" in event else None
    )
    rng = np.random.default_rng(0)
    for i in range(50):
        sampling = SamplingParams(max_new_tokens=3, temperature=float(i % 3), seed=i, top_k=i % 4)
        tiles, words = rng.integers(0, 3, 2), rng.integers(1, 30, 2)
        generator.generate([request(processor, i, *map(int, row), sampling) for row in zip(tiles, words)][: 1 + i % 2])
    assert generator.programs.num_compiled == programs and not compiled
    jax.jit(lambda x: x * 17.3)(1.0)
    assert compiled  # the listener would have seen it


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens_T": np.arange(5, dtype=np.int32)}, "0 image tokens, its 2 tiles need 8"),
        ({"tokens_T": np.zeros(0, np.int32)}, "no tokens"),
        ({"sampling": SamplingParams(max_new_tokens=500)}, "64"),
        ({"sampling": SamplingParams(max_new_tokens=5, stop_token_ids=tuple(range(20)))}, "stop tokens"),
        ({"sampling": SamplingParams(max_new_tokens=5, presence_penalty=1)}, "presence_penalty 1, which a generator"),
        ({"sampling": SamplingParams(max_new_tokens=5, logit_bias=((3, 1),))}, "logit_bias"),
        ({"sampling": SamplingParams(max_new_tokens=5, min_tokens=2)}, "min_tokens 2"),
    ],
)
def test_bad_requests(generator, processor, change, message):
    with pytest.raises(InputError, match=message):
        generator.generate([dataclasses.replace(request(processor, 0, 2, 9), **change)])


def test_a_foreign_tokenizer(model):
    with pytest.raises(InputError, match="999"):
        Generator(model, Vocabulary(999, (), ()))
