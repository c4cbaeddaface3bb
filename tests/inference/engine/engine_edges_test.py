"""The engine where room is short, steps are broken off, and what there is comes from other parameters."""

import dataclasses
import os
import signal

import numpy as np
import pytest

from internvl_jax.errors import InputError
from internvl_jax.inference import Engine, Request, SamplingParams, Vocabulary, complete_many
from internvl_jax.inference.engine.drafts import Draft, Job
from internvl_jax.inference.engine.requests import Seen
from internvl_jax.inference.engine.scheduler import Scheduler
from internvl_jax.inference.engine.tile_features import digest
from internvl_jax.sharding import bind
from tests.inference.engine.engine_test import LADDERS, request, run

ONE = dataclasses.replace(LADDERS, rows=(1,), prompts=(32,), together=(1,), tiles=(2,))
CAPACITY = 6


@pytest.fixture(scope="module")
def kept(structure, params, processor):
    """One row, and room for few tiles."""
    return Engine(
        bind(structure[0], params), Vocabulary.of(processor), dataclasses.replace(ONE, kept_bytes=CAPACITY * 4 * 40 * 4)
    )


@pytest.fixture
def engine(kept):
    yield kept
    for id in list(kept._scheduler.jobs):
        kept.drop(id)
    while kept.busy:
        kept.step()
    assert not kept.tiles.pinned


def finish(engine, **options):
    """All tokens that are left, by request."""
    found = {}
    for _ in range(200):
        if not engine.busy:
            return found
        for token in engine.step(**options):
            found.setdefault(token.id, []).append(token.token)
        assert len(engine.tiles.pool_GPD) <= CAPACITY
    raise AssertionError("it goes round in circles")


def test_so_many_tiles_are_kept_whatever_they_take(structure, params, processor):
    sizes = dataclasses.replace(ONE, kept_bytes=1, kept_tiles=4, least_tiles=8)
    assert Engine(bind(structure[0], params), Vocabulary.of(processor), sizes).tiles.capacity == 8


def test_a_mask_is_asked_with_all_tokens_before(engine, processor):
    def allow(tokens):
        bits = np.zeros(10, np.uint32)
        token = 40 + len(tokens)
        bits[token // 32] = 1 << (token % 32)
        return bits.view(np.int32)

    row = request(processor, 3, 0, 9, SamplingParams(max_new_tokens=8))
    assert run(engine, [dataclasses.replace(row, allow=allow)]) == [list(range(40, 48))]


def test_tiles_of_one_request_that_need_all_room_come_a_few_at_a_time(engine, processor):
    engine.tiles.clear()
    id = engine.add(request(processor, 2, CAPACITY, 9))
    assert set(finish(engine)) == {id}


def test_who_waits_makes_room_for_the_tiles_of_who_comes_first(engine, processor):
    rows = [request(processor, seed, 4, 9) for seed in range(3)]
    wanted = [run(engine, [row])[0] for row in rows]
    ids = [engine.add(rows[0])]
    engine.step(most=1)
    engine.step(most=1)
    ids.append(engine.add(rows[1]))
    engine.step(most=1)
    engine.step(most=1)
    ids.append(engine.add(dataclasses.replace(rows[2], priority=-1)))
    found = finish(engine, most=1)
    assert [found[ids[1]], found[ids[2]]] == wanted[1:]


def test_pixels_beside_normalised_tiles_stay_pixels(engine, processor):
    row = request(processor, 50, 1, 9)
    (wanted,) = run(engine, [row])
    normalised = np.random.default_rng(0).normal(size=(1, 28, 28, 3)).astype(np.float32)
    other = dataclasses.replace(request(processor, 51, 1, 9), tiles_GHWC=normalised)
    (alone,) = run(engine, [other])
    engine.tiles.clear()
    tiles = {digest(tile_HWC): tile_HWC for each in (row, other) for tile_HWC in each.tiles_GHWC}
    engine.tiles.encode(engine.params, tiles)
    assert run(engine, [row, other]) == [wanted, alone]


def test_tiles_of_another_size(engine, processor):
    row = request(processor, 0, 1, 9)
    with pytest.raises(InputError, match=r"tiles have the shape \(14, 14, 3\); the model's are \(28, 28, 3\)"):
        engine.add(dataclasses.replace(row, tiles_GHWC=row.tiles_GHWC[:, ::2, ::2]))


def test_a_run_that_is_refused_leaves_nothing_behind(engine, processor):
    row = request(processor, 60, 0, 9)
    with pytest.raises(InputError, match="no tokens"):
        run(engine, [row, dataclasses.replace(row, tokens_T=row.tokens_T[:0])])
    assert not engine.busy
    run(engine, [row])


@pytest.mark.parametrize(("ahead", "priority"), [(0, 0), (3, 0), (0, 9)])
def test_a_run_beside_other_requests(engine, processor, ahead, priority):
    """It gives its own answers, and loses no token of the others, whoever ends first."""
    own, other = request(processor, 62, 1, 9), request(processor, 63, 0, 7, SamplingParams(max_new_tokens=30))
    wanted, long = run(engine, [own, other])
    id, found = engine.add(dataclasses.replace(other, priority=priority)), []
    for _ in range(ahead):
        found += [token.token for token in engine.step(most=1)]
    assert run(engine, [own]) == [wanted]
    found += finish(engine).get(id, [])
    assert found == long


def test_a_run_that_is_broken_off_loses_no_token_of_others(engine, processor, monkeypatch):
    other = request(processor, 63, 0, 7, SamplingParams(max_new_tokens=30))
    (long,) = run(engine, [other])
    id, steps, step = engine.add(other), [], engine._step

    def fails(most):
        steps.append(most)
        if len(steps) == 4:
            raise RuntimeError("out of memory")
        step(1)

    monkeypatch.setattr(engine, "_step", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(engine, [request(processor, 62, 1, 9)])
    monkeypatch.undo()
    assert finish(engine) == {id: long}


def test_ctrl_c_loses_no_token(engine, processor, monkeypatch, ctrl_c):
    row = request(processor, 61, 0, 9)
    (wanted,) = run(engine, [row])
    id, programs = engine.add(row), engine._runner.programs
    decode = programs.decode

    def pressed(*arguments, **sizes):
        os.kill(os.getpid(), signal.SIGINT)
        return decode(*arguments, **sizes)

    monkeypatch.setattr(programs, "decode", pressed)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            engine.step(most=1)
    monkeypatch.undo()
    assert finish(engine) == {id: wanted}


def test_answers_may_be_dropped_before_they_share_a_prompt():
    """The second one has a row, and waits for what the first one reads."""
    ladders = dataclasses.replace(ONE, classes=((2, 64),))
    scheduler = Scheduler(ladders, 1, 128)
    scheduler.make(ladders.classes)
    prompt = np.arange(40, dtype=np.int32)
    job = Job(0, Request(prompt, np.zeros((0, 28, 28, 3), np.uint8), SamplingParams()), [], ready=True)
    job.seen = Seen(prompt, np.full(40, -1), prompt.astype(np.int64))
    job.drafts += [Draft(job, number, SamplingParams(max_new_tokens=4), frozenset()) for number in range(2)]
    scheduler.add(job)
    scheduler.seat()
    assert [draft for draft, _ in scheduler.starts()] == job.drafts[:1]
    for draft in job.drafts:
        scheduler.end(draft)
    assert not list(scheduler.starts()) and not scheduler.jobs


def test_a_program_for_fewer_rows_is_compiled_once_it_was_missed_for_long():
    """Until then answers are not read one by one for the sake of fewer rows that never come."""
    scheduler = Scheduler(dataclasses.replace(ONE, rows=(1, 2, 4), slots=(64,), piece=8, long=16), 1, 256)
    scheduler.resize(4, 64)
    prompt = np.arange(40, dtype=np.int32)
    job = Job(0, Request(prompt, np.zeros((0, 28, 28, 3), np.uint8), SamplingParams()), [], ready=True)
    job.seen = Seen(prompt, np.full(40, -1), prompt.astype(np.int64))
    job.drafts.append(Draft(job, 0, SamplingParams(max_new_tokens=12), frozenset()))
    scheduler.add(job)
    scheduler.seat()
    assert scheduler.size() is None and scheduler.fewer(3) == 0  # 8 tokens were missed
    assert scheduler.size() is None  # 16
    assert scheduler.size() == (1, 64) and scheduler.fewer(3) == 1
    scheduler.resize(2, 64)
    assert scheduler.size() == (1, 64)


def test_no_conversation_at_a_time(model, processor):
    with pytest.raises(InputError, match="batch_size is 0"):
        complete_many(model, processor, [], batch_size=0)
