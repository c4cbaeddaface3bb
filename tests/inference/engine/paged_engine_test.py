"""An engine whose rows have pages: it answers as one whose rows have slots, reads what it knows once, loses none."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from checkpoint_convert.released import load_bare
from internvl_jax.errors import InputError
from internvl_jax.evaluation import compare, image_token_id, read_case
from internvl_jax.inference import Engine, SamplingParams, Vocabulary
from internvl_jax.sharding import bind, make_mesh
from tests.inference.engine.engine_test import (
    LADDERS,
    read_again,
    request,
    run,
    test_text_does_not_wait_for_the_tiles_of_others,
    through_failures,
)

__all__ = ["test_text_does_not_wait_for_the_tiles_of_others"]

SIZE = 8
PAGED = dataclasses.replace(LADDERS, prompts=(32,), classes=((4, 96),), chunk=32, page=SIZE)
DRAWN = SamplingParams(max_new_tokens=9, temperature=1.0, top_k=50, top_p=0.95)


@pytest.fixture(scope="module")
def vocabulary(processor):
    return Vocabulary.of(processor)


@pytest.fixture(scope="module")
def make(structure, params, vocabulary):
    """Engines of the same model; bytes of a token's keys and values go with them."""
    text = bind(structure[0], params).config.text
    token = 2 * 4 * text.layers * text.kv_heads * text.head_width

    def make(pages=None, **changes):
        ladders = dataclasses.replace(PAGED, **changes)
        return Engine(
            bind(structure[0], params), vocabulary, ladders, None if pages is None else int(pages * SIZE * token)
        )

    return make


@pytest.fixture(scope="module")
def engine(make):
    engine = make()
    engine.warm_up()
    return engine


@pytest.fixture(scope="module")
def rows(processor):
    drawn = [dataclasses.replace(DRAWN, seed=seed) for seed in range(4)]
    long = dataclasses.replace(drawn[3], max_new_tokens=40, repetition_penalty=1.3, logprobs=2)
    shapes = ((2, 11, SamplingParams(max_new_tokens=7)), (0, 5, drawn[1]), (3, 17, drawn[2]), (1, 50, long))
    return [request(processor, number, *shape) for number, shape in enumerate(shapes)]


@pytest.fixture(scope="module")
def answers(structure, params, vocabulary, rows):
    """By rows that have slots."""
    ladders = dataclasses.replace(LADDERS, slots=(96,))
    return run(Engine(bind(structure[0], params), vocabulary, ladders), rows)


def assert_free(engine):
    scheduler = engine._scheduler
    assert all(row.draft is None and not row.pages for row in scheduler.rows) and not engine.tiles.pinned
    assert [pool.available for pool in scheduler.pools] == [pool.number for pool in scheduler.pools]


def test_answers_are_those_of_slots(engine, rows, answers):
    assert engine._scheduler.pages == 4 * 96 // SIZE
    assert [run(engine, [row])[0] for row in rows] == answers
    assert run(engine, rows) == answers
    assert_free(engine)


def test_neighbours_that_join_and_leave_change_nothing(engine, processor, rows, answers):
    rng, ids, found = np.random.default_rng(3), {}, {}
    others = [
        (None, request(processor, 10 + seed, seed % 3, 3 + 2 * seed, SamplingParams(1 + 2 * seed, 1.0, seed=seed)))
        for seed in range(7)
    ]
    waiting = [*enumerate(rows), *others]
    rng.shuffle(waiting)
    while waiting or engine.busy:
        if waiting and rng.random() < 0.4:
            number, row = waiting.pop()
            ids[engine.add(row)] = number
        for token in engine.step(most=int(rng.integers(1, 4))):
            found.setdefault(ids[token.id], []).append(token.token)
    assert [found[number] for number in range(len(rows))] == answers
    assert_free(engine)


def test_a_second_turn_about_a_picture_reads_what_is_new(engine, processor):
    first = request(processor, 30, 3, 60, SamplingParams(max_new_tokens=11))
    (said,) = run(engine, [first])
    more = np.random.default_rng(1).integers(0, 250, 2)
    second = dataclasses.replace(first, tokens_T=np.concatenate([first.tokens_T, said, more]).astype(np.int32))
    before, tiles = engine.prefilled, engine.tiles.encoded
    (answer,) = run(engine, [second])
    length = len(second.tokens_T)
    assert engine.prefilled - before == length - (length - 3) // SIZE * SIZE <= length // 10
    assert engine.tiles.encoded == tiles
    # Another picture in the same place is another prompt.
    other = dataclasses.replace(second, tiles_GHWC=request(processor, 31, 3, 1).tiles_GHWC)
    before = engine.prefilled
    assert run(engine, [other]) != [answer]
    assert engine.prefilled - before == length
    engine.params = {path: leaf * 1 for path, leaf in engine.params.items()}
    before = engine.prefilled
    assert run(engine, [second]) == [answer] and engine.prefilled - before == length
    assert_free(engine)


def test_what_other_parameters_wrote_is_not_found(engine, processor):
    assert read_again(engine, processor)
    assert_free(engine)


def test_answers_to_one_prompt_share_its_pages(engine, processor):
    row = dataclasses.replace(request(processor, 33, 3, 19, DRAWN), seeds=(3, 4, 5))
    length, before, most = len(row.tokens_T), engine.prefilled, 0
    id = engine.add(row)
    found = [[], [], []]
    while engine.busy:
        for token in engine.step(most=1):
            assert token.id == id
            found[token.answer].append(token.token)
        pages = [page for seat in engine._scheduler.rows for page in seat.pages]
        assert engine.load.used == len(set(pages)) * SIZE and engine.load.slots == engine._scheduler.pages * SIZE
        most = max(most, len(pages) - len(set(pages)))
    shared = (length - 1) // SIZE
    assert engine.prefilled - before == length + 2 * (length - shared * SIZE) and most == 2 * shared
    alone = [run(engine, [dataclasses.replace(row, seeds=(seed,))])[0] for seed in (3, 4, 5)]
    assert found == alone and len(set(map(tuple, alone))) == 3
    assert_free(engine)


@pytest.fixture(scope="module")
def small(make):
    """Of 12 pages, where two of the rows of the tests below have room."""
    return make(pages=12)


def test_the_youngest_waits_when_pages_are_short_and_goes_on(small, engine, rows, processor, monkeypatch):
    drawn = [dataclasses.replace(DRAWN, max_new_tokens=30 + seed, seed=seed) for seed in range(4)]
    asked = [request(processor, 50 + number, number % 3, 3, sampling) for number, sampling in enumerate(drawn)]
    put_back, wait = [], small._scheduler._wait
    monkeypatch.setattr(small._scheduler, "_wait", lambda draft: (put_back.append(draft.job.id), wait(draft)))
    assert run(small, asked) == run(engine, asked)
    assert put_back and 0 not in put_back and small.load.preempted >= len(put_back)
    assert small.prefilled > sum(len(row.tokens_T) for row in asked)
    assert_free(small)
    with pytest.raises(InputError, match="more than the 96 that a row holds"):
        small.add(dataclasses.replace(rows[3], sampling=SamplingParams(max_new_tokens=44)))


def test_what_was_left_makes_room(small, processor):
    """Pages that nobody has serve whoever comes; what is asked for again is read again, and answered as before."""
    prompts = [request(processor, 40 + number, 0, 40, SamplingParams(max_new_tokens=4)) for number in range(4)]
    first = [run(small, [row])[0] for row in prompts]
    before = small.prefilled
    assert [run(small, [row])[0] for row in prompts] == first
    assert small.prefilled - before > 2 * 40
    assert_free(small)


def test_dropped_answers_free_their_pages(engine, rows, answers):
    for steps in range(8):
        id, other = engine.add(dataclasses.replace(rows[3], seeds=(1, 2))), engine.add(rows[0])
        for _ in range(steps):
            engine.step(most=1)
        engine.drop(id, steps % 2)
        engine.drop(id)
        found = []
        while engine.busy:
            found += [token.token for token in engine.step() if token.id == other]
        assert found == answers[0][len(answers[0]) - len(found) :]
    assert_free(engine)


def test_a_program_that_fails_loses_no_answer(engine, rows, answers, monkeypatch):
    assert through_failures(engine, rows, ("decode_pages", "chunk_pages", "begin"), monkeypatch) == answers
    assert_free(engine)


def test_nothing_compiles_after_warm_up(engine, processor):
    programs, rng = engine.num_compiled, np.random.default_rng(0)
    for i in range(60):
        sampling = SamplingParams(max_new_tokens=1 + i % 20, temperature=float(i % 3), seed=i, logprobs=i % 2)
        for _ in range(2):
            tiles, words = rng.integers(0, 3), rng.integers(1, 60)
            engine.add(request(processor, i, int(tiles), int(words), sampling))
        engine.step(most=1 + i % 3)
    while engine.busy:
        engine.step()
    assert engine.num_compiled == programs
    assert_free(engine)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"page": 0}, "page, .* must each be 1 token or more"),
        ({"kept_tiles": 0}, "kept_tiles and least_tiles must each be 1 or more"),
        ({"classes": None}, "rows that share pages need exactly one"),
        ({"classes": ((2, 64), (2, 96))}, "rows that share pages need exactly one"),
    ],
)
def test_ladders_that_make_no_sense(changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(PAGED, **changes)


def test_memory_for_no_page(make):
    with pytest.raises(InputError, match="there is memory for 4 tokens on a device, less than a page of 8"):
        make(pages=0.5)


@pytest.mark.parametrize(
    ("case", "sizes"),
    [
        pytest.param("chat_qwen3_github", {}, marks=pytest.mark.soak),
        pytest.param("chat_qwen3_github", {"tensor": 2}, marks=pytest.mark.soak),
        ("chat_qwen3_github", {"data": 2}),
        ("hf_qwen3moe", {"expert": 2, "tensor": 2}),
        ("hf_gptoss", {}),
    ],
)
def test_any_mesh_answers_as_recorded(golden, case, sizes):
    """Windows and sinks too, which only the kernel of TPUs can't do."""
    inputs, outputs, meta = read_case(golden / case)
    mesh = make_mesh(sizes, jax.devices()[: math.prod(sizes.values())]) if sizes else None
    model = load_bare(golden / case, "float32", image_token_id(meta), mesh)
    names = ("greedy_tokens", "greedy_tokens_eos", "greedy_scores")
    inputs = {name: array for name, array in inputs.items() if name != "labels"}
    report = compare(model, inputs, {name: outputs[name] for name in names}, chunk=16, page=8)
    assert report["greedy_tokens_equal"] and report["greedy_tokens_eos_equal"], report
