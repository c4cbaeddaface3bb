"""Rollouts: greedy = the engine, draws depend on a row's seed alone, log-probabilities are the trainer's."""

import dataclasses
import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvl_jax.errors import InputError
from internvl_jax.inference import Engine, Ladders, Sampler, SamplingParams, Vocabulary
from internvl_jax.inference.engine.group_runner import GroupRunner
from internvl_jax.models import InternVL, token_logprobs
from internvl_jax.models.config import MoeConfig, YarnConfig
from internvl_jax.sharding import PRESETS, abstract, bind, make_mesh, shardings
from tests.inference.engine.engine_test import request, run

LADDERS = Ladders(rows=(1, 2, 8), prompts=(32,), tiles=(5,), slots=(24,))
GROUP = 4
SEEDS = np.arange(2 * GROUP, dtype=np.uint32).reshape(2, GROUP) * 7919
_MOE = {"moe": MoeConfig(experts=8, per_token=3), "mlp": 20}
FAMILIES = {
    "dense": {},
    "moe": _MOE,
    "gpt_oss": _MOE | {"family": "gpt_oss", "window": 7, "yarn": YarnConfig(4.0, 32.0, 1.0, positions=64)},
}


@pytest.fixture(scope="module")
def vocabulary(processor):
    return Vocabulary.of(processor)


@pytest.fixture(scope="module")
def requests(processor, sampler, params):
    """Two prompts whose answers end at many different lengths."""
    drawn = SamplingParams(max_new_tokens=24, temperature=1.0)
    rows = [request(processor, 0, 2, 11, drawn), request(processor, 1, 1, 5, drawn)]
    written = np.concatenate([found.tokens for group in sampler.sample(params, rows, GROUP, SEEDS) for found in group])
    tokens, counts = np.unique(written, return_counts=True)
    common = tuple(int(token) for token in tokens[np.argsort(-counts, stable=True)[:6]])
    sampling = dataclasses.replace(drawn, stop_token_ids=common)
    return [dataclasses.replace(row, sampling=sampling) for row in rows]


@pytest.fixture(scope="module")
def sampler(config, vocabulary):
    return Sampler(config, jnp.float32, vocabulary, LADDERS)


@pytest.fixture(scope="module")
def rollout(sampler, params, requests):
    return sampler.sample(params, requests, GROUP, SEEDS)


def tokens_of(rollout):
    return [[response.tokens.tolist() for response in group] for group in rollout]


def interrupted(sampler, params, requests, seeds, steps, prompts=None):
    """A rollout that is left after so many steps, over and over, and goes on with what it has; and how many calls."""
    kept, calls, busy = [[] for _ in requests], 0, True
    while busy:
        groups, calls = sampler.begin(params, requests, len(seeds[0]), seeds, prompts, kept), calls + 1
        for _ in range(steps):
            groups.step()
        kept, busy = [groups.answers(prompt) for prompt in range(len(requests))], groups.busy
    return kept, calls


def test_greedy_rollouts_are_the_engines_answers(structure, params, vocabulary, sampler, requests):
    greedy = [
        dataclasses.replace(row, sampling=dataclasses.replace(row.sampling, temperature=0.0, stop_token_ids=stops))
        for row, stops in zip(requests, ((), requests[0].sampling.stop_token_ids), strict=True)
    ]
    engine = Engine(bind(structure[0], params), vocabulary)
    answers = run(engine, greedy)
    assert tokens_of(sampler.sample(params, greedy, GROUP, 0)) == [[answer] * GROUP for answer in answers]
    assert len(answers[0]) == 24 > len(answers[1])


def test_a_seed_gives_the_same_answer_as_in_the_engine(structure, params, vocabulary, sampler, requests):
    cut = {"top_k": 40, "top_p": 0.9, "min_p": 0.01}
    drawn = [
        dataclasses.replace(row, sampling=dataclasses.replace(row.sampling, seed=int(seed), **cut))
        for row, seed in zip(requests, SEEDS[:, 1], strict=True)
    ]
    engine = Engine(bind(structure[0], params), vocabulary)
    answers = [[answer] for answer in run(engine, drawn)]
    assert tokens_of(sampler.sample(params, drawn, 1, SEEDS[:, 1:2])) == answers


def test_answers_end_at_their_own_stop_or_limit(rollout, requests):
    lengths = [len(response.tokens) for group in rollout for response in group]
    assert len(set(lengths)) > 4 and min(lengths) < 6  # or the tests below would see no batch shrink
    for group, given in zip(rollout, requests, strict=True):
        for tokens, logprobs, finished, _ in group:
            stops = np.isin(tokens, given.sampling.stop_token_ids)
            assert not stops[:-1].any() and stops[-1] == finished
            assert finished or len(tokens) == given.sampling.max_new_tokens
            assert tokens.dtype == np.int32 and logprobs.dtype == np.float32 and logprobs.shape == tokens.shape


def test_draws_depend_on_a_rows_own_seed_alone(config, vocabulary, sampler, params, requests, rollout):
    tokens = tokens_of(rollout)
    assert tokens_of(sampler.sample(params, requests, GROUP, SEEDS)) == tokens
    assert len({tuple(answer) for group in tokens for answer in group}) == 2 * GROUP
    singles = [
        [sampler.sample(params, [given], 1, seed.reshape(1, 1))[0][0].tokens.tolist() for seed in seeds]
        for given, seeds in zip(requests, SEEDS, strict=True)
    ]
    assert singles == tokens
    assert tokens_of(sampler.sample(params, requests[::-1], GROUP, SEEDS[::-1])) == tokens[::-1]


def test_pieces_and_smaller_batches_change_nothing(config, vocabulary, params, requests, rollout):
    ladders = dataclasses.replace(LADDERS, rows=(2,))  # ends with two rows instead of one
    pieces = Sampler(config, jnp.float32, vocabulary, ladders, piece=3)
    assert tokens_of(pieces.sample(params, requests, GROUP, SEEDS)) == tokens_of(rollout)


@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_are_those_of_training(config, vocabulary, processor, family):
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, **FAMILIES[family]))
    graphdef, specs = abstract(lambda rngs: InternVL(config, rngs))
    rng = np.random.default_rng(5)
    normal = lambda path, shape: rng.normal(float(path.endswith("scale")), 0.3, shape).astype(np.float32)
    params = {path: jnp.asarray(normal(path, spec.shape)) for path, spec in specs.items()}
    moe = family != "dense"
    sampler = Sampler(config, jnp.float32, vocabulary, dataclasses.replace(LADDERS, rows=(2,)), routes=moe)
    settings = ((14, 1.0), (5, 0.7), (9, 1.0))
    sampling = [SamplingParams(max_new_tokens=longest, temperature=temperature) for longest, temperature in settings]
    given = [request(processor, i, max(0, 2 - i), 11 - 4 * i, row) for i, row in enumerate(sampling)]
    seeds = np.arange(6, dtype=np.uint32).reshape(3, 2) * 31
    rollout = sampler.sample(params, given, 2, seeds, prompts=2)  # rows at different steps, in slots that wrap around
    left, calls = interrupted(sampler, params, given, seeds, 1, 2)
    assert calls > 1 and tokens_of(left) == tokens_of(rollout)
    for ours, wanted in zip(itertools.chain(*left), itertools.chain(*rollout), strict=True):
        np.testing.assert_allclose(ours.logprobs, wanted.logprobs, atol=1e-5)
        if moe:
            np.testing.assert_array_equal(ours.routes, wanted.routes)

    @jax.jit
    def score(params, tokens_BT, tiles_GHWC, mask_G, segments_BT, targets_BT):
        model = bind(graphdef, params)
        positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1])[None], tokens_BT.shape)
        out = model(tokens_BT, tiles_GHWC, mask_G, segments_BT, positions_BT, collect=("experts",))
        return token_logprobs(out.hidden_BTD, model.lm.head_VD, targets_BT, 512), out.aux["experts"]

    for row, group in zip(given, rollout, strict=True):
        for response in group:
            whole = np.concatenate([row.tokens_T, response.tokens])
            tokens_BT = np.zeros((1, 40), np.int32)
            tokens_BT[0, : len(whole)] = whole
            tiles_GHWC = np.zeros((2, *row.tiles_GHWC.shape[1:]), np.uint8)
            tiles_GHWC[: len(row.tiles_GHWC)] = row.tiles_GHWC
            real_G, segments_BT = np.arange(2) < len(row.tiles_GHWC), np.arange(40)[None] < len(whole)
            targets_BT = np.roll(tokens_BT, -1, axis=1)
            scores, experts = score(params, tokens_BT, tiles_GHWC, real_G, segments_BT.astype(np.int32), targets_BT)
            last = len(whole) - 1
            np.testing.assert_allclose(response.logprobs, scores[0, len(row.tokens_T) - 1 : last], atol=1e-4)
            if moe:
                assert response.routes.dtype == np.int16
                np.testing.assert_array_equal(response.routes, experts[:, 0, :last].swapaxes(0, 1))


def test_image_tokens_and_unused_rows_are_never_written(sampler, params, vocabulary, requests):
    head_VD = np.array(params["lm.head.weight"])
    head_VD[[*vocabulary.banned, *range(vocabulary.size, len(head_VD))]] *= 30  # often far above all others
    rollout = sampler.sample(params | {"lm.head.weight": jnp.asarray(head_VD)}, requests, GROUP, SEEDS)
    written = np.concatenate([response.tokens for group in rollout for response in group])
    logprobs = np.concatenate([response.logprobs for group in rollout for response in group])
    assert not np.isin(written, vocabulary.banned).any() and written.max() < vocabulary.size
    assert np.isfinite(logprobs).all() and logprobs.min() < -50


def test_nothing_compiles_after_warm_up(config, vocabulary, params, requests):
    ladders = dataclasses.replace(LADDERS, rows=(2,))
    sampler = Sampler(config, jnp.float32, vocabulary, ladders, piece=9)  # no other test has such programs
    made = sampler.warm_up(params, requests, 2)
    # encode, widen, keep, gather; empty, chunk, begin; decode for two answers a prompt and for one; move
    assert made == 4 + 3 + 2 + 1
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: compiled.append(event) if "backend_compile" in event else None
    )
    for seed in range(4):
        sampler.sample(params, requests[seed % 2 :], 2, seed, prompts=2)
    assert sampler.num_compiled == made and not compiled


def test_more_prompts_than_fit(config, vocabulary, processor, params, requests, monkeypatch):
    """The others wait for rows, and join while answers are in the middle; each is what it is alone."""
    many = [request(processor, i, i % 3, 12 - i, requests[0].sampling) for i in range(7)]
    seeds = np.arange(7 * GROUP, dtype=np.uint32).reshape(7, GROUP) * 101
    sampler = Sampler(config, jnp.float32, vocabulary, dataclasses.replace(LADDERS, rows=(1, 2)))
    alone = [sampler.sample(params, [row], GROUP, own[None])[0] for row, own in zip(many, seeds, strict=True)]
    met = []
    write = GroupRunner.write

    def noted(runner, piece):
        answers = runner.groups.answer_B[runner.groups.writing].tolist()
        met.append([(answer // GROUP, runner.texts[answer].count) for answer in answers])
        write(runner, piece)

    made = sampler.warm_up(params, many, GROUP, prompts=2)
    monkeypatch.setattr(GroupRunner, "write", noted)
    found = sampler.sample(params, many, GROUP, seeds, prompts=2)
    assert sampler.num_compiled == made
    assert tokens_of(found) == tokens_of(alone)
    for ours, wanted in zip(itertools.chain(*found), itertools.chain(*alone), strict=True):
        np.testing.assert_allclose(ours.logprobs, wanted.logprobs, atol=1e-5)
        assert ours.finished == wanted.finished
    begins = lambda rows: any(count == 1 for _, count in rows)
    assert any(begins(rows) and any(count > 3 for _, count in rows) for rows in met)
    assert any({prompt for prompt, _ in rows} & {2, 3} and {prompt for prompt, _ in rows} & {0, 1} for rows in met)


@pytest.mark.soak
def test_more_prompts_than_fit_on_a_mesh(config, vocabulary, params, requests, rollout):
    mesh, rules = make_mesh({"data": 2}, jax.devices()[:2]), PRESETS["fsdp"]
    specs = abstract(lambda rngs: InternVL(config, rngs))[1]
    sampler = Sampler(config, jnp.float32, vocabulary, dataclasses.replace(LADDERS, rows=(2,)), mesh, rules)
    placed = jax.device_put(params, shardings(specs, mesh, rules))
    found = sampler.sample(placed, [*requests, *requests[:1]], GROUP, np.concatenate([SEEDS, SEEDS[:1]]), prompts=2)
    assert tokens_of(found) == [*tokens_of(rollout), tokens_of(rollout)[0]]
    left, calls = interrupted(sampler, placed, requests, SEEDS, 1, 2)
    assert calls > 1 and tokens_of(left) == tokens_of(rollout)


@pytest.mark.soak
def test_slots_that_grow_change_nothing(config, vocabulary, params, requests, rollout, monkeypatch):
    monkeypatch.setattr(sys.modules["internvl_jax.inference.engine.group_runner"], "FIRST_SLOTS", 5)
    sampler = Sampler(config, jnp.float32, vocabulary, dataclasses.replace(LADDERS, rows=(2,)))
    made = sampler.warm_up(params, requests, GROUP)
    assert tokens_of(sampler.sample(params, requests, GROUP, SEEDS)) == tokens_of(rollout)
    assert sampler.num_compiled == made


@pytest.fixture(scope="module")
def few_rows(config, vocabulary):
    return Sampler(config, jnp.float32, vocabulary, dataclasses.replace(LADDERS, rows=(1, 4)), piece=3)


@pytest.mark.parametrize("prompts", [1, 3])
def test_answers_go_on_in_another_call(few_rows, processor, params, requests, monkeypatch, prompts):
    """They are those of one call, also where they wait for rows or slots grow."""
    monkeypatch.setattr(sys.modules["internvl_jax.inference.engine.group_runner"], "FIRST_SLOTS", 12)
    many = [request(processor, i, i % 3, 12 - i, requests[0].sampling) for i in range(3)]
    seeds = np.arange(3 * GROUP, dtype=np.uint32).reshape(3, GROUP) * 101
    whole = few_rows.sample(params, many, GROUP, seeds, prompts)
    found, calls = interrupted(few_rows, params, many, seeds, 2, prompts)
    assert calls > 3 and tokens_of(found) == tokens_of(whole)
    for ours, wanted in zip(itertools.chain(*found), itertools.chain(*whole), strict=True):
        np.testing.assert_allclose(ours.logprobs, wanted.logprobs, atol=1e-5)
        assert ours.finished == wanted.finished


@pytest.mark.soak
def test_a_mesh_of_one_device_is_that_device(config, vocabulary, params, requests, rollout):
    mesh, rules = make_mesh({}, jax.devices()[:1]), PRESETS["fsdp"]
    specs = abstract(lambda rngs: InternVL(config, rngs))[1]
    sampler = Sampler(config, jnp.float32, vocabulary, dataclasses.replace(LADDERS, rows=(2,)), mesh, rules)
    placed = jax.device_put(params, shardings(specs, mesh, rules))
    made = sampler.warm_up(placed, requests, GROUP)
    assert tokens_of(sampler.sample(placed, requests, GROUP, SEEDS)) == tokens_of(rollout)
    assert sampler.num_compiled == made


def test_parameters_can_be_donated_afterwards(sampler, params, requests):
    copy = {path: leaf.copy() for path, leaf in params.items()}
    sampler.sample(copy, requests[:1], 1, 0)
    where = [leaf.unsafe_buffer_pointer() for path, leaf in copy.items() if "mlp" in path]
    new = jax.jit(lambda params: jax.tree.map(lambda leaf: leaf * 2, params), donate_argnums=0)(copy)
    assert [leaf.unsafe_buffer_pointer() for path, leaf in new.items() if "mlp" in path] == where


def test_a_mesh_samples_as_one_device(config, vocabulary, params, requests, rollout):
    mesh, rules = make_mesh({"data": 2, "fsdp": 4}), PRESETS["fsdp"]
    specs = abstract(lambda rngs: InternVL(config, rngs))[1]
    params = jax.device_put(params, shardings(specs, mesh, rules))
    ladders = dataclasses.replace(LADDERS, rows=(5,), tiles=(3,))  # both become 8
    sampler = Sampler(config, jnp.float32, vocabulary, ladders, mesh, rules)
    found = sampler.sample(params, requests, GROUP, SEEDS)
    assert tokens_of(found) == tokens_of(rollout)
    for ours, wanted in zip(itertools.chain(*found), itertools.chain(*rollout), strict=True):
        np.testing.assert_allclose(ours.logprobs, wanted.logprobs, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"repetition_penalty": 1.2}, "repetition_penalty 1.2"), ({"stop_strings": ("a",)}, "stop_strings")],
)
def test_sampling_that_needs_the_whole_text_is_refused(sampler, params, requests, change, message):
    row = dataclasses.replace(requests[0], sampling=dataclasses.replace(requests[0].sampling, **change))
    with pytest.raises(InputError, match=message):
        sampler.sample(params, [row], GROUP, 0)


@pytest.mark.parametrize(
    "change", [{"allow": lambda tokens: None}, {"adapter": "a"}, {"seeds": (1, 2)}, {"priority": 1}]
)
def test_wishes_that_groups_do_not_know_are_refused(sampler, params, requests, change):
    (name,) = change
    with pytest.raises(InputError, match=f"request 1 has {name}"):
        sampler.sample(params, [requests[0], dataclasses.replace(requests[1], **change)], GROUP, 0)


def test_top_k_and_top_p(sampler, params, requests, rollout):
    """They leave one token, or all; a row that does not ask is drawn as ever."""

    def draw(*changes):
        rows = [
            dataclasses.replace(row, sampling=dataclasses.replace(row.sampling, **change))
            for row, change in zip(requests, changes, strict=True)
        ]
        return tokens_of(sampler.sample(params, rows, GROUP, SEEDS))

    best = draw({"temperature": 0.0}, {"temperature": 0.0})
    drawn = tokens_of(rollout)
    assert draw({"top_k": 1}, {"top_p": 1e-6}) == best != drawn
    assert draw({"top_k": 0}, {"top_p": 1.0}) == drawn
    assert draw({"top_k": 1}, {}) == [best[0], drawn[1]]


def test_seeds_of_another_shape_are_refused(sampler, params, requests):
    with pytest.raises(InputError, match="one for every answer"):
        sampler.sample(params, requests, GROUP, SEEDS[:1])
