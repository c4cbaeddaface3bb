"""Sampling against plain references, its distribution, rows that don't see each other, and meshes."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvl_jax import sharding
from internvl_jax.inference.engine import sampling
from internvl_jax.inference.engine.sampling_params import SamplingParams

V = 53
NO_STOPS = np.full((1, 8), -1, np.int32)


@pytest.fixture
def logits_BV():
    return np.random.default_rng(3).normal(0, 2, (5, V)).astype(np.float32)


def softmax(x):
    weights = np.exp(np.asarray(x, np.float64) - np.max(x))
    return weights / weights.sum()


def kept(logits, k=0, p=1.0, min_p=0.0):
    """Ids that min-p, top-k, then top-p leave, one row, the slow way; equal logits stay together."""
    chances = softmax(logits)
    ids = [i for i in range(len(logits)) if chances[i] >= min_p * chances.max()]
    if k:
        worst = sorted((logits[i] for i in ids), reverse=True)[: min(k, len(ids))][-1]
        ids = [i for i in ids if logits[i] >= worst]
    total = sum(chances[i] for i in ids)
    better = lambda i: sum(chances[j] for j in ids if logits[j] > logits[i])
    return {i for i in ids if p >= 1 or logits[i] == max(logits) or better(i) < p * total}


def shares(logits, params):
    """What a drawn token's chances must be."""
    scaled = np.asarray(logits, np.float64) / params.temperature
    ids = kept(scaled, params.top_k, params.top_p, params.min_p)
    return softmax([x if i in ids else -np.inf for i, x in enumerate(scaled)])


@jax.jit
def choose(logits_BV, allowed_BV, rows, steps_B, shaping=None):
    uniform_B2 = sampling.uniform(rows.seed_B, steps_B)
    return sampling.choose(logits_BV, allowed_BV, rows, steps_B, uniform_B2, shaping, best=4)


def drawn(logits_BV, rows, steps, shaping=None):
    logits_BV = jnp.asarray(logits_BV)
    chosen = choose(logits_BV, logits_BV, sampling.stack_params(rows), np.asarray(steps, np.int32), shaping)
    return np.asarray(chosen.tokens_B)


def unlikely(counts, chances):
    """Whether the counts are no draws with these chances: chi-square beyond 5 standard deviations."""
    if counts[chances == 0].any():
        return True
    wanted = counts.sum() * chances[chances > 0]
    freedom = len(wanted) - 1
    return np.sum((counts[chances > 0] - wanted) ** 2 / wanted) > freedom + 5 * math.sqrt(2 * freedom)


CUTS = [
    *({"top_k": k} for k in (1, 3, 20, V, V + 9)),
    *({"top_p": p} for p in (1e-45, 1e-9, 0.3, 0.6, 0.95, 0.9999)),
    *({"min_p": p} for p in (1e-6, 0.04, 0.3, 1.0)),
    *({"top_k": k, "top_p": 0.7, "min_p": 0.02} for k in (2, 7, 40)),
    {},
]


@pytest.mark.parametrize("ties", [False, True])
def test_min_p_top_k_and_top_p(ties):
    B = len(CUTS)
    logits_BV = np.random.default_rng(3).normal(0, 2, (B, V)).astype(np.float32)
    logits_BV[:, 7] = -np.inf
    logits_BV = np.round(logits_BV) if ties else logits_BV
    rows = [SamplingParams(temperature=1.0, **cut) for cut in CUTS]
    distances = (logits_BV.max(axis=1, keepdims=True) - logits_BV)[:, None]
    limit_B = np.asarray(sampling.cutoff(lambda: jnp.asarray(distances), sampling.stack_params(rows), np.full(B, True)))
    for b, cut in enumerate(CUTS):
        got = {i for i in range(V) if distances[b, 0, i] <= limit_B[b] and logits_BV[b, i] > -np.inf}
        wanted = kept(logits_BV[b], cut.get("top_k", 0), cut.get("top_p", 1.0), cut.get("min_p", 0.0)) - {7}
        assert got == wanted, cut


@pytest.mark.parametrize("width", [1, 10**4])
def test_a_cut_is_exact_however_many_tokens_it_keeps(width):
    """A flat distribution: top-p and top-k end deep in it."""
    logits_V = np.random.default_rng(0).normal(0, 1e-3, 8 * width).astype(np.float32)
    rows = [SamplingParams(temperature=1.0, top_p=0.75), SamplingParams(temperature=1.0, top_k=5 * width)]
    distances = np.tile(logits_V.max() - logits_V, (2, 1)).reshape(2, 8, width)
    limit_B = np.asarray(sampling.cutoff(lambda: jnp.asarray(distances), sampling.stack_params(rows), np.full(2, True)))
    found = (distances <= limit_B[:, None, None]).sum(axis=(1, 2))
    order = np.sort(softmax(logits_V))[::-1]
    by_p = 1 + np.searchsorted(np.cumsum(order), 0.75)
    assert abs(int(found[0]) - by_p) <= 1e-5 * len(logits_V)  # float32 sums
    nth = np.sort(distances[1].ravel())[5 * width - 1]
    assert limit_B[1] == nth and found[1] == (distances[1] <= nth).sum()


def test_a_greedy_row_is_not_cut_by_its_neighbours(logits_BV):
    rows = [SamplingParams(temperature=t, top_k=1) for t in (0, 1, 0, 1, 1)]
    assert drawn(logits_BV, rows, range(5)).tolist() == logits_BV.argmax(axis=1).tolist()


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.5, seed=7),
        SamplingParams(temperature=0.8, seed=8, top_k=6),
        SamplingParams(temperature=1.0, seed=9, top_p=0.8),
        SamplingParams(temperature=2.0, seed=10, min_p=0.2),
        SamplingParams(temperature=1.2, seed=11, top_k=9, top_p=0.9, min_p=0.02),
    ],
)
@pytest.mark.parametrize("size", [24, 11])  # blocks of several tokens; a prime
def test_frequencies_are_probabilities(params, size):
    n, logits_V = 4000, np.random.default_rng(size).normal(0, 1.5, size).astype(np.float32)
    logits_V[[0, size - 1]] = -np.inf
    counts = np.bincount(drawn(np.tile(logits_V, (n, 1)), [params] * n, range(n)), minlength=size)
    assert not unlikely(counts, shares(logits_V, params))
    assert unlikely(counts, shares(logits_V + np.linspace(0, 1, size), params))  # it can fail


def test_frequencies_over_seeds():
    n, logits_V = 4000, np.random.default_rng(1).normal(0, 1, 24).astype(np.float32)
    rows = [SamplingParams(temperature=1.0, seed=seed) for seed in range(n)]
    counts = np.bincount(drawn(np.tile(logits_V, (n, 1)), rows, [3] * n), minlength=24)
    assert not unlikely(counts, shares(logits_V, rows[0]))


def test_a_row_does_not_depend_on_its_neighbours(logits_BV):
    rows = [SamplingParams(temperature=1.0, seed=seed, top_k=k) for seed, k in enumerate((0, 5, 0, 20, 3))]
    together = drawn(logits_BV, rows, [4, 5, 6, 7, 8])
    alone = [drawn(logits_BV[b : b + 1], rows[b : b + 1], [4 + b])[0] for b in range(5)]
    assert together.tolist() == alone
    other = drawn(
        np.tile(logits_BV[:1], (64, 1)), [SamplingParams(temperature=1.0, seed=s) for s in range(64)], [4] * 64
    )
    assert len(set(other.tolist())) > 5  # the seed matters
    steps = drawn(np.tile(logits_BV[:1], (64, 1)), [SamplingParams(temperature=1.0)] * 64, range(64))
    assert len(set(steps.tolist())) > 5  # and so does the step


@pytest.mark.parametrize("temperature", [0.0, 1e-30, 1.0, 1e6])
def test_the_only_token_that_is_not_banned(temperature):
    for token in (0, 17, V - 1):
        logits_BV = np.full((3, V), -np.inf, np.float32)
        logits_BV[:, token] = (-1e30, 0, 1e30)
        rows = [
            SamplingParams(temperature=temperature, **cut) for cut in ({}, {"top_p": 0.5, "min_p": 0.5}, {"top_k": 4})
        ]
        assert drawn(logits_BV, rows, range(3)).tolist() == [token] * 3


def test_of_equal_best_tokens_the_first():
    logits_BV = np.zeros((3, 64), np.float32)
    logits_BV[0, [9, 40, 41]] = logits_BV[1, [41, 63]] = 5
    assert drawn(logits_BV, [SamplingParams()] * 3, [0] * 3).tolist() == [9, 41, 0]
    tiny = [SamplingParams(temperature=1e-6, top_k=1)] * 3
    assert [logits_BV[b, token] for b, token in enumerate(drawn(logits_BV, tiny, [0] * 3))] == [5, 5, 0]


def test_banned_tokens_and_unused_rows_get_no_chance(logits_BV):
    logits_BV[:, 11] = logits_BV[:, 50] = 99
    allowed_BV = sampling.ban(jnp.asarray(logits_BV), 47, (11, 13))
    bad = {11, 13, *range(47, V)}
    assert {i for i in range(V) if allowed_BV[0, i] == -np.inf} == bad
    rows = sampling.stack_params([SamplingParams(temperature=t, seed=9) for t in (0, 1, 50.0, 50.0, 1)])
    chosen = choose(logits_BV, allowed_BV, rows, np.arange(5))
    assert not set(np.asarray(chosen.tokens_B).tolist()) & bad
    assert not set(np.asarray(chosen.best_ids).ravel().tolist()) & bad


def test_log_probabilities_are_those_of_the_model(logits_BV):
    """Over the whole table, at temperature 1, whatever changes the draw."""
    rows = [SamplingParams(temperature=t, top_k=5, logit_bias=((3, 50.0),)) for t in (0, 1, 1, 3, 0)]
    shaping = sampling.stack_shaping(rows, np.repeat(NO_STOPS, 5, 0), np.zeros((5, V), bool))
    allowed_BV = sampling.ban(jnp.asarray(logits_BV), V, (4,))
    chosen = choose(logits_BV, allowed_BV, sampling.stack_params(rows), np.arange(5), shaping)
    wanted_BV = np.log([softmax(row) for row in logits_BV])
    tokens = np.asarray(chosen.tokens_B)
    assert (tokens == 3).sum() >= 4
    np.testing.assert_allclose(chosen.logprobs_B, wanted_BV[np.arange(5), tokens], rtol=1e-5)
    for b in range(5):
        best = [i for i in np.argsort(-logits_BV[b], kind="stable") if i != 4][:4]
        assert chosen.best_ids[b].tolist() == best
        np.testing.assert_allclose(chosen.best_logprobs[b], wanted_BV[b, best], rtol=1e-5)
    plain = sampling.choose(logits_BV, allowed_BV, sampling.stack_params(rows), np.arange(5), np.zeros((5, 2)))
    assert plain.best_ids.shape == plain.best_logprobs.shape == (5, 0)


@pytest.mark.parametrize(("count", "most"), [(1, 1), (3, 5), (16, 16), (17, 40), (40, 40)])
def test_numbers_of_several_steps_are_those_of_each(count, most):
    seed_B, steps_B = np.array([3, 2**32 - 1], np.uint32), np.array([0, 70], np.int32)
    found = jax.jit(sampling.uniforms, static_argnums=3)(seed_B, steps_B, np.int32(count), most)
    assert len(found) >= most
    for n in range(count):
        assert np.array_equal(found[n], sampling.uniform(seed_B, steps_B + n))
    assert len(np.unique(found[:count])) == 4 * count


def test_equal_best_tokens_are_reported_by_their_ids():
    logits_BV = np.zeros((1, 64), np.float32)
    logits_BV[0, [50, 9]] = 2
    chosen = choose(logits_BV, logits_BV, sampling.stack_params([SamplingParams()]), np.zeros(1, int))
    assert chosen.best_ids.tolist() == [[9, 50, 0, 1]]


# Shaping.


def shaped_by_hand(logits, params, prompt, answer, stops, allowed):
    """One row, token by token, as vLLM orders it."""
    out = []
    for i, x in enumerate(np.asarray(logits, np.float64)):
        if i in prompt or i in answer:
            x = x * params.repetition_penalty if x < 0 else x / params.repetition_penalty
        x -= params.frequency_penalty * answer.count(i)
        x -= params.presence_penalty * (i in answer)
        x += dict(params.logit_bias).get(i, 0)
        early = len(answer) < params.min_tokens and i in stops
        out.append(-np.inf if early or i not in allowed else x)
    return out


def test_penalties_biases_stops_and_masks(logits_BV):
    rng = np.random.default_rng(5)
    rows = [
        SamplingParams(repetition_penalty=1.3),
        SamplingParams(presence_penalty=1.5, frequency_penalty=-0.5),
        SamplingParams(logit_bias=((0, -100.0), (52, 3.5), (31, 1.0), (V, 9.0), (2**31 - 1, 9.0))),
        SamplingParams(min_tokens=7),
        SamplingParams(
            *(99, 1.0), repetition_penalty=0.5, presence_penalty=-1, frequency_penalty=1, logit_bias=((5, 2.0),)
        ),
    ]
    prompts = [rng.integers(0, V, 9).tolist() for _ in rows]
    answers = [rng.integers(0, V // 2, 6).tolist() for _ in rows]
    allowed = [set(range(V))] * 3 + [set(rng.integers(0, V, 30).tolist()), {0, 5, 31, 32, 52}]
    stops = [[], [1], [2], [3, 40, 52], [5]]
    stops_BZ = np.array([[*row, *[-2] * (8 - len(row))] for row in stops], np.int32)
    seen_BV, counts_BV = np.zeros((5, V), bool), np.zeros((5, V), np.int16)
    for b in range(5):
        seen_BV[b, prompts[b] + answers[b]] = True
        counts_BV[b] = np.bincount(answers[b], minlength=V)
    allowed_BV = np.array([[i in row for i in range(64)] for row in allowed])
    allowed_bits = np.packbits(allowed_BV, axis=1, bitorder="little").view("<i4")
    assert allowed_bits.shape == (5, 2) and allowed_bits[4, 0] < 0  # the highest bit of a number is its sign
    shaping = sampling.stack_shaping(rows, stops_BZ, seen_BV)
    shaping = shaping._replace(counts_BV=counts_BV, allowed_bits=allowed_bits)
    for steps in (6, 7):
        got_BV = np.asarray(jax.jit(sampling.shape)(logits_BV, shaping, np.full(5, steps)))
        for b, params in enumerate(rows):
            answer = answers[b] + [V] * (steps - 6)
            wanted = shaped_by_hand(logits_BV[b], params, prompts[b], answer, stops[b], allowed[b])
            np.testing.assert_allclose(got_BV[b], wanted, rtol=1e-5, atol=1e-6)


def test_shaping_that_nothing_asks_for_changes_nothing(logits_BV):
    shaping = sampling.stack_shaping([SamplingParams()] * 5, np.zeros((5, 8), np.int32), np.full((5, V), True))
    assert np.array_equal(sampling.shape(logits_BV, shaping, np.zeros(5, int)), logits_BV)


def test_a_forced_and_a_forbidden_token(logits_BV):
    rows = [SamplingParams(temperature=t, logit_bias=((13, 100.0),)) for t in (0, 1, 1)]
    rows += [SamplingParams(logit_bias=((int(logits_BV[3].argmax()), -100.0),))]
    shaping = sampling.stack_shaping(rows, np.repeat(NO_STOPS, 4, 0), np.zeros((4, V), bool))
    tokens = drawn(logits_BV[:4], rows, range(4), shaping)
    assert tokens[:3].tolist() == [13] * 3 and tokens[3] == np.argsort(logits_BV[3])[-2]


def test_temperature_zero_is_the_best_token_after_the_penalty():
    rows = [SamplingParams(repetition_penalty=2.0)]
    shaping = sampling.stack_shaping(rows, NO_STOPS, np.array([[True, False, True, False]]))
    assert drawn([[3.0, 2.0, -1.0, -9.0]], rows, [0], shaping).tolist() == [1]


# Meshes.

WIDE = 128 * 11
MESHES = [{"tensor": 2}, {"tensor": 4}, {"data": 2, "tensor": 2}, {"data": 2, "tensor": 4}]
MIXED = [
    SamplingParams(),
    SamplingParams(temperature=1.0, seed=1),
    SamplingParams(temperature=1.0, seed=2, top_k=50),
    SamplingParams(temperature=1.3, seed=3, top_p=0.9),
    SamplingParams(temperature=0.7, seed=4, min_p=0.05),
    SamplingParams(temperature=1.0, seed=5, repetition_penalty=1.5, presence_penalty=1, frequency_penalty=0.5),
    SamplingParams(logit_bias=((7, 100.0),)),
    SamplingParams(temperature=2.0, seed=6, min_tokens=9, logit_bias=((1400, 4.0),)),
]


def wide(shaped):
    rng = np.random.default_rng(9)
    logits_BV = rng.normal(0, 2, (8, WIDE)).astype(np.float32)
    shaping = sampling.stack_shaping(MIXED, np.tile(np.arange(8, dtype=np.int32) * 170, (8, 1)), logits_BV > 2)
    shaping = shaping._replace(counts_BV=rng.integers(0, 3, (8, WIDE)).astype(np.int16))
    shaping = shaping._replace(allowed_bits=rng.integers(-(2**31), 2**31, (8, WIDE // 32)).astype(np.int32))
    steps_B = np.arange(8, dtype=np.int32)
    return logits_BV, sampling.stack_params(MIXED), steps_B, shaping if shaped else None


def program(logits_BV, rows, steps_B, shaping):
    allowed_BV, uniform_B2 = sampling.ban(logits_BV, WIDE - 5, (3, 700)), sampling.uniform(rows.seed_B, steps_B)
    return sampling.choose(logits_BV, allowed_BV, rows, steps_B, uniform_B2, shaping, best=20)


def laid(x, mesh, rules):
    wide_axis = "act_vocab" if x.ndim == 2 and x.shape[1] == WIDE else None
    axes = ("batch", wide_axis)[: x.ndim]
    return jax.device_put(x, rules.sharding(mesh, x.shape, axes))


ARRAY = re.compile(r"\b(?:pred|[suf]\d+|bf16)\[([\d,]*)\]")
TRANSFER = re.compile(r" = (.*) (?:all-gather|all-reduce|all-to-all|reduce-scatter|collective-\w+)(?:-start)?\((.*)")


def largest_transfer(hlo):
    """The most elements that a collective takes or gives on a device, and how many collectives there are."""
    found = [TRANSFER.search(line) for line in hlo.splitlines()]
    sides = [side for line in found if line for side in line.groups()]
    elements = lambda side: sum(math.prod(map(int, filter(None, size.split(",")))) for size in ARRAY.findall(side))
    return max(map(elements, sides)), len(sides) // 2


def spread(inputs, mesh, rules):
    return jax.tree.map(lambda x: laid(jnp.asarray(x), mesh, rules), inputs)


@pytest.mark.parametrize("shaped", [False, True])
def test_meshes_choose_the_same_and_move_no_vocabulary(shaped):
    inputs = wide(shaped)
    alone = jax.jit(program)(*inputs)
    rules = sharding.PRESETS["serve_tp"]
    for sizes in MESHES:
        mesh = sharding.make_mesh(sizes, jax.devices()[: math.prod(sizes.values())])
        with sharding.use(mesh, rules):
            there = spread(inputs, mesh, rules)
            compiled = jax.jit(program).lower(*there).compile()
            chosen = compiled(*there)
        assert np.array_equal(chosen.tokens_B, alone.tokens_B), sizes
        assert np.array_equal(chosen.best_ids, alone.best_ids), sizes
        np.testing.assert_allclose(chosen.logprobs_B, alone.logprobs_B, rtol=1e-5)
        elements, count = largest_transfer(compiled.as_text())
        assert count and elements <= 8 * 128 < 8 * WIDE / 4, sizes


def test_what_moves_a_vocabulary_is_found():
    mesh, rules = sharding.make_mesh({"tensor": 4}, jax.devices()[:4]), sharding.PRESETS["serve_tp"]
    with sharding.use(mesh, rules):
        logits_BV = laid(jnp.asarray(wide(False)[0]), mesh, rules)
        hlo = jax.jit(lambda x: jnp.sort(x, axis=1)).lower(logits_BV).compile().as_text()
    assert largest_transfer(hlo)[0] >= 8 * WIDE / 4


@pytest.mark.parametrize(("size", "count"), [(151_936, 128), (201_088, 128), (WIDE, 128), (300, 20), (53, 1)])
def test_blocks_are_whole_on_devices(size, count):
    logits_BV = np.zeros((1, size), np.float32)
    traced = jax.make_jaxpr(sampling.draw)(logits_BV, sampling.stack_params([SamplingParams()]), np.zeros((1, 2)))
    assert f"f32[1,{count},{size // count}]" in str(traced)
