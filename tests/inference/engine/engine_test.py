"""The engine: cached = full, joined = alone; chunks, neighbours and meshes change nothing; nothing compiles later."""

import dataclasses
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from checkpoint_convert.released import load_model
from internvl_jax.errors import InputError
from internvl_jax.inference import Engine, Ladders, Request, SamplingParams, Vocabulary
from internvl_jax.inference.engine.drafts import Draft, Job
from internvl_jax.inference.engine.requests import Seen, pad
from internvl_jax.inference.engine.scheduler import Scheduler
from internvl_jax.models import token_logprobs
from internvl_jax.models.transforms.unstack import unstack_params
from internvl_jax.sharding import bind

LADDERS = Ladders(rows=(1, 4), prompts=(16, 32), together=(1, 4), tiles=(1, 5), slots=(64,))
CLASSES = dataclasses.replace(LADDERS, prompts=(32,), together=(2,), classes=((2, 64), (2, 96)), chunk=32)
GREEDY = SamplingParams(max_new_tokens=7)


def request(processor, seed, tiles, words, sampling=GREEDY):
    rng = np.random.default_rng(seed)
    context = [processor.tokenizer.image_context] * (4 * tiles)
    tokens = np.array([*context, *rng.integers(0, 250, words)], np.int32)
    return Request(tokens, rng.integers(0, 255, (tiles, 28, 28, 3), dtype=np.uint8), sampling)


def run(engine, requests):
    return [answer for (answer,) in engine.run(requests)]


@pytest.fixture(scope="module")
def mixed(processor):
    sampled = SamplingParams(max_new_tokens=9, temperature=1.0, seed=11, top_k=50, top_p=0.95)
    return [
        request(processor, 0, 2, 11),
        request(processor, 1, 0, 5, sampled),
        request(processor, 2, 3, 17, dataclasses.replace(sampled, seed=12, top_p=1.0)),
    ]


@pytest.fixture(scope="module")
def vocabulary(processor):
    return Vocabulary.of(processor)


@pytest.fixture(scope="module")
def engine(structure, params, vocabulary):
    """Of two classes of rows, and chunks of 32 tokens: programs for everything are there."""
    engine = Engine(bind(structure[0], params), vocabulary, CLASSES)
    engine.warm_up()
    return engine


@pytest.fixture(scope="module")
def answers(engine, mixed):
    return [run(engine, [row])[0] for row in mixed]


def test_greedy_tokens_equal_the_reference(golden):
    case = golden / "chat_qwen3_github"
    meta = json.loads((case / "meta.json").read_text())
    inputs, outputs = np.load(case / "inputs.npz"), np.load(case / "outputs.npz")
    image = meta["img_context_token_id"]
    model = load_model(case, "float32", image_token_id=image)
    vocabulary = Vocabulary(320, (image, meta["img_start_token_id"], meta["img_end_token_id"]), ())
    engine = Engine(model, vocabulary, Ladders(chunk=16))
    tiles = np.split(inputs["pixel_values"].transpose(0, 2, 3, 1)[inputs["image_flags"].ravel() == 1], [2])
    rows = zip(inputs["prompt_input_ids"], inputs["prompt_attention_mask"], strict=True)
    prompts = [tokens[mask == 1] for tokens, mask in rows]  # the reference pads on the left

    def answer(stops):
        sampling = SamplingParams(max_new_tokens=24, stop_token_ids=stops)
        return run(engine, [Request(*pair, sampling) for pair in zip(prompts, tiles, strict=True)])

    assert answer(()) == outputs["greedy_tokens"].tolist()
    stop = meta["eos_for_greedy_tokens_eos"]
    wanted = [row[: row.index(stop) + 1] for row in outputs["greedy_tokens_eos"].tolist()]
    assert answer((stop,)) == wanted


def test_neighbours_that_join_and_leave_change_nothing(engine, processor, mixed, answers):
    rng = np.random.default_rng(3)
    ids, found = {}, {}
    waiting = [(number, row) for number, row in enumerate(mixed)] + [
        (None, request(processor, seed, seed % 3, 3 + 2 * seed, SamplingParams(1 + 2 * seed, 1.0, seed=seed)))
        for seed in range(7)
    ]
    rng.shuffle(waiting)
    while waiting or engine.busy:
        if waiting and rng.random() < 0.4:
            number, row = waiting.pop()
            ids[engine.add(row)] = number
        for token in engine.step(most=int(rng.integers(1, 4))):
            found.setdefault(ids[token.id], []).append(token.token)
    assert [found[number] for number in range(len(mixed))] == answers


def test_other_sizes_and_chunks_change_nothing(structure, params, vocabulary, mixed, answers):
    for chunk in (16, 4096):
        grows = Engine(bind(structure[0], params), vocabulary, dataclasses.replace(LADDERS, chunk=chunk, piece=3))
        assert run(grows, mixed) == answers
        assert run(grows, mixed[1:2]) == answers[1:2]


def told(engine, requests):
    """The tokens of every request, as the engine tells them."""
    ids = [engine.add(row) for row in requests]
    found = {id: [] for id in ids}
    while engine.busy:
        for token in engine.step():
            found[token.id].append(token)
    return list(found.values())


def test_log_probabilities_are_those_of_one_pass(engine, structure, params, mixed):
    @jax.jit
    def score(params, tokens_BT, tiles_GHWC, segments_BT, targets_BT):
        model = bind(structure[0], params)
        positions_BT = jnp.arange(tokens_BT.shape[1])[None]
        out = model(tokens_BT, tiles_GHWC, jnp.arange(3) < len(row.tiles_GHWC), segments_BT, positions_BT)
        return token_logprobs(out.hidden_BTD, model.lm.head_VD, targets_BT, 512)

    for row, tokens in zip(mixed, told(engine, mixed), strict=True):
        whole_T = np.concatenate([row.tokens_T, [token.token for token in tokens]]).astype(np.int32)
        tokens_BT = pad(whole_T, 48)[None]
        tiles_GHWC = pad(row.tiles_GHWC, 3)
        segments_BT = (np.arange(48)[None] < len(whole_T)).astype(np.int32)
        scores = score.__wrapped__(params, tokens_BT, tiles_GHWC, segments_BT, np.roll(tokens_BT, -1, axis=1))
        wanted = scores[0, len(row.tokens_T) - 1 : len(whole_T) - 1]
        np.testing.assert_allclose([token.logprob for token in tokens], wanted, atol=1e-4)


def test_a_second_turn_reads_what_is_new(structure, params, vocabulary, processor):
    engine = Engine(bind(structure[0], params), vocabulary, LADDERS)
    first = request(processor, 0, 3, 12, SamplingParams(max_new_tokens=5))
    (said,) = run(engine, [first])
    more = np.random.default_rng(1).integers(0, 250, 4)
    second = dataclasses.replace(first, tokens_T=np.concatenate([first.tokens_T, said, more]).astype(np.int32))
    before, tiles = engine.prefilled, engine.tiles.encoded
    assert before == len(first.tokens_T) and tiles == 3
    (answer,) = run(engine, [second])
    assert engine.prefilled - before == 1 + len(more) and engine.tiles.encoded == tiles  # the last token is not cached
    fresh = Engine(bind(structure[0], params), vocabulary, LADDERS)
    assert run(fresh, [second]) == [answer]
    other = dataclasses.replace(second, tiles_GHWC=request(processor, 9, 3, 1).tiles_GHWC)
    assert run(engine, [other]) == run(fresh, [other]) != [answer]
    engine.params = {path: leaf * 1 for path, leaf in engine.params.items()}
    before = engine.prefilled
    assert run(engine, [second]) == [answer] and engine.prefilled - before == len(second.tokens_T)


def read_again(engine, processor):
    """Whether a prompt is read whole after an answer to it was being written when parameters changed, and went on."""
    found = []
    for steps in (0, 3):  # after the prompt was read
        row = request(processor, 32 + steps, 0, 40, SamplingParams(max_new_tokens=20))
        engine.add(row)
        while not engine._scheduler.writing:
            engine.step(most=1)
        for _ in range(steps):
            engine.step(most=1)
        engine.params = {path: leaf * 1 for path, leaf in engine.params.items()}
        while engine.busy:
            engine.step()
        before = engine.prefilled
        run(engine, [row])
        found.append(engine.prefilled - before == len(row.tokens_T))
    return all(found)


def test_what_other_parameters_wrote_is_not_taken_over(engine, processor):
    assert read_again(engine, processor)


def test_answers_to_one_prompt_share_what_was_read(engine, processor):
    sampling = SamplingParams(max_new_tokens=8, temperature=1.0)
    row = request(processor, 5, 3, 19, sampling)
    alone = [run(engine, [dataclasses.replace(row, seeds=(seed,))])[0] for seed in (3, 4, 5)]
    (group,) = engine.run([dataclasses.replace(row, seeds=(3, 4, 5))])
    assert group == alone and len(set(map(tuple, group))) == 3
    fresh = dataclasses.replace(request(processor, 6, 3, 19, sampling), seeds=(3, 4, 5))
    before = engine.prefilled
    engine.run([fresh])
    assert engine.prefilled - before == len(fresh.tokens_T) + 2


def test_what_some_rows_ask_for_changes_no_other_row(engine, processor, mixed, answers):
    greedy = request(processor, 3, 1, 9, SamplingParams(max_new_tokens=12))
    (plain,) = run(engine, [greedy])

    def asked(**changes):
        return dataclasses.replace(greedy, sampling=dataclasses.replace(greedy.sampling, **changes))

    forced = 200
    rows = [
        asked(repetition_penalty=1e6),
        asked(frequency_penalty=2.0, logit_bias=((plain[0], 1.0),)),
        asked(logit_bias=((forced, 100.0),)),
        asked(stop_token_ids=(plain[0], plain[1]), min_tokens=4),
        dataclasses.replace(greedy, allow=lambda tokens: np.array([0b1100 << (len(tokens) % 2)] + [0] * 9, np.int32)),
        asked(logprobs=5),
    ]
    alone = [run(engine, [row])[0] for row in rows]
    assert run(engine, [*mixed, *rows]) == [*answers, *alone]
    never_again, _, always, late, allowed, told_best = alone
    assert len(set(never_again)) == 12 and not set(never_again) & set(greedy.tokens_T.tolist())
    assert always == [forced] * 12 and told_best == plain
    assert len(late) >= 4 and not {plain[0], plain[1]} & set(late[:4])
    assert all(token in ((2, 3), (3, 4))[number % 2] for number, token in enumerate(allowed))
    (tokens,) = told(engine, [rows[-1]])
    assert [token.best[0] for token in tokens] == [(token.token, token.logprob) for token in tokens]
    assert all(
        len(token.best) == 5 and list(token.best) == sorted(token.best, key=lambda pair: -pair[1]) for token in tokens
    )


def test_what_an_earlier_answer_in_a_row_asked_for_is_forgotten(engine, processor, mixed, answers):
    """Also where others ask for something meanwhile: then one program writes all rows."""
    sampling = SamplingParams(max_new_tokens=20, repetition_penalty=1e6)
    rich = [request(processor, seed, 1, 9, sampling) for seed in range(len(engine._scheduler.rows))]
    run(engine, rich)
    ids, found = [engine.add(row) for row in mixed], {}
    engine.step(most=1)
    engine.add(rich[0])
    while engine.busy:
        for token in engine.step(most=1):
            found.setdefault(token.id, []).append(token.token)
    assert [found[id] for id in ids] == answers


@pytest.mark.parametrize("apart", [True, False])
def test_stacked_layers_and_layers_apart_answer_the_same(structure, params, vocabulary, mixed, answers, apart):
    engine = Engine(bind(structure[0], params), vocabulary, LADDERS, apart=apart)
    assert run(engine, mixed[1:2]) == answers[1:2]


def test_layers_apart_share_the_memory_of_the_stack():
    stacked = {"lm.layers.mlp.up.weight": jnp.arange(3 * 32 * 64.0).reshape(3, 32, 64), "vit.cls": jnp.ones(5)}
    apart = unstack_params(stacked)
    start = stacked["lm.layers.mlp.up.weight"].unsafe_buffer_pointer()
    for index in range(3):
        part = apart[f"lm.layers.{index}.mlp.up.weight"]
        np.testing.assert_array_equal(part, stacked["lm.layers.mlp.up.weight"][index])
        assert part.unsafe_buffer_pointer() == start + index * part.nbytes
    assert apart["vit.cls"] is stacked["vit.cls"] and len(apart) == 4


def test_the_state_is_donated(engine, mixed):
    before = engine._runner._state.cache.k[0]
    run(engine, mixed)
    assert before.is_deleted()


def test_stops(engine, mixed, answers):
    stop = answers[2][4]
    rows = [
        dataclasses.replace(row, sampling=dataclasses.replace(row.sampling, stop_token_ids=(stop,))) for row in mixed
    ]
    wanted = [answer[: answer.index(stop) + 1] if stop in answer else answer for answer in answers]
    assert run(engine, rows) == wanted
    assert len(wanted[2]) <= 5
    ends = [tokens[-1].end for tokens in told(engine, rows)]
    assert ends == ["stop" if stop in answer else "length" for answer in answers]


def test_dropped_answers_are_told_no_more_and_free_their_rows(engine, mixed, answers):
    for _ in range(12):
        id, other = engine.add(mixed[2]), engine.add(mixed[0])
        engine.step(most=1)
        engine.step(most=1)
        engine.drop(id)
        found = []
        while engine.busy:
            found += engine.step()
        assert {token.id for token in found} == {other}
    assert all(row.draft is None for row in engine._scheduler.rows) and not engine.tiles.pinned
    assert run(engine, mixed) == answers


def through_failures(engine, rows, names, monkeypatch):
    """The answers where the program of each name fails once, after it has taken over the state."""
    ids, programs, found = [engine.add(row) for row in rows], engine._runner.programs, {}
    for name in names:
        program = getattr(programs, name)

        def fails(*arguments, program=program, **sizes):
            program(*arguments, **sizes)
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

        monkeypatch.setattr(programs, name, fails)
        with pytest.raises(RuntimeError, match="out of memory"):
            while engine.busy:
                for token in engine.step(most=2):
                    found.setdefault(token.id, []).append(token.token)
        monkeypatch.undo()
    while engine.busy:
        for token in engine.step():
            found.setdefault(token.id, []).append(token.token)
    return [found[id] for id in ids]


@pytest.mark.parametrize("classes", [True, False])
def test_a_program_that_fails_loses_no_answer(
    classes, engine, structure, params, vocabulary, mixed, answers, monkeypatch
):
    engine = engine if classes else Engine(bind(structure[0], params), vocabulary, LADDERS)
    assert through_failures(engine, mixed, ("decode", "chunk", "begin"), monkeypatch) == answers


def test_ctrl_c_ends_a_step_and_loses_nothing(engine, mixed, answers, monkeypatch, ctrl_c):
    id, programs = engine.add(mixed[2]), engine._runner.programs
    decode = programs.decode

    def pressed(*arguments, **sizes):
        out = decode(*arguments, **sizes)  # has taken over the state
        os.kill(os.getpid(), signal.SIGINT)
        return out

    monkeypatch.setattr(programs, "decode", pressed)
    with pytest.raises(KeyboardInterrupt):
        while engine.busy:
            engine.step()
    monkeypatch.undo()
    engine.drop(id)
    assert run(engine, mixed) == answers


def test_image_tokens_and_unused_rows_are_never_written(engine, processor):
    hot = SamplingParams(max_new_tokens=40, temperature=100.0)
    rows = [request(processor, i, 0, 3, dataclasses.replace(hot, seed=i)) for i in range(4)]
    tokens = {token for answer in run(engine, rows) for token in answer}
    tokenizer = processor.tokenizer
    assert not tokens & {tokenizer.image_context, tokenizer.image_start, tokenizer.image_end}
    assert max(tokens) < tokenizer.vocab_size and len(tokens) > 60


def test_the_picture_matters_and_equal_pictures_are_encoded_once(engine, processor):
    first = request(processor, 20, 2, 9)
    other = dataclasses.replace(first, tiles_GHWC=request(processor, 21, 2, 9).tiles_GHWC)
    before = engine.tiles.encoded
    a, b, c = run(engine, [first, other, first])
    assert a == c != b
    assert engine.tiles.encoded - before == 4


def test_pictures_that_were_forgotten_are_encoded_again(structure, params, vocabulary, processor):
    engine = Engine(bind(structure[0], params), vocabulary, dataclasses.replace(LADDERS, kept_bytes=5 * 4 * 40 * 4))
    assert engine.tiles.capacity == 5
    rows = [request(processor, seed, 2, 9) for seed in range(4)]
    answers = run(engine, rows)
    assert len(set(map(tuple, answers))) == 4 and engine.tiles.encoded == 8
    assert run(engine, rows[:1]) == answers[:1] and engine.tiles.encoded == 10
    with pytest.raises(InputError, match="the request has 6 tiles, more than the 5 that are kept at a time"):
        engine.add(request(processor, 0, 6, 9))


def test_what_outgrows_its_row_moves_or_waits_and_goes_on(structure, params, vocabulary, processor):
    """Rows are given away with room for 4 tokens: long answers move to longer rows, young ones make room for them."""
    drawn = SamplingParams(max_new_tokens=40, temperature=1.0)
    rows = [request(processor, seed, seed % 3, 9, dataclasses.replace(drawn, seed=seed)) for seed in range(6)]
    wanted = run(Engine(bind(structure[0], params), vocabulary, LADDERS), rows)
    ladders = dataclasses.replace(LADDERS, classes=((3, 32), (1, 64)), reserve=4)
    engine = Engine(bind(structure[0], params), vocabulary, ladders)
    before = sum(len(row.tokens_T) for row in rows)
    assert run(engine, rows) == wanted
    assert engine.prefilled > before + len(rows)  # some were read again
    assert all(row.draft is None for row in engine._scheduler.rows) and not engine.tiles.pinned


def test_memory_is_taken_as_answers_grow(structure, params, vocabulary, processor):
    """Where rows come and go: longer rows are made once an answer fills its own, and nothing is read again for it."""
    drawn = SamplingParams(max_new_tokens=40, temperature=1.0)
    rows = [request(processor, seed, seed % 3, 9, dataclasses.replace(drawn, seed=seed)) for seed in range(4)]
    engine = Engine(bind(structure[0], params), vocabulary, LADDERS)
    wanted, before = run(engine, rows), sum(len(row.tokens_T) for row in rows)
    lazy = Engine(bind(structure[0], params), vocabulary, dataclasses.replace(LADDERS, slots=(32, 64), reserve=8))
    for row in rows:
        lazy.add(row)
    answers, slots = [[] for _ in rows], []
    while lazy.busy:
        for token in lazy.step():
            answers[token.id].append(token.token)
        slots.append(lazy._scheduler.rows[0].slots)
    assert answers == wanted and max(map(len, answers)) == 40
    assert slots[0] == 32 and slots[-1] == 64 and before < lazy.prefilled <= before + len(rows)


@pytest.mark.parametrize(("written", "slots"), [(0, 4608), (4096, 9216), (65535, 73728)])
def test_rows_have_room_for_what_is_written_again(written, slots):
    """Offline rows reach what thinking may take, and those of 128 frames, without taking it before."""
    scheduler = Scheduler(Ladders(), 1, 1 << 20)
    sampling, prompt_T = SamplingParams(max_new_tokens=1 << 16), np.zeros(99, np.int32)
    asked = Request(prompt_T, np.zeros((0, 28, 28, 3), np.uint8), sampling)
    job = Job(0, asked, [], seen=Seen(prompt_T, prompt_T.astype(np.int64), prompt_T.astype(np.int64)), ready=True)
    job.drafts.append(Draft(job, 0, sampling, frozenset(), [0] * written))
    scheduler.add(job)
    assert scheduler.size() == (1, slots)
    assert scheduler.longest >= 128 * 256 + (1 << 16)


def test_higher_priority_comes_first(engine, processor):
    rows = [request(processor, seed, 0, 9, SamplingParams(max_new_tokens=3)) for seed in range(8)]
    ids = [engine.add(dataclasses.replace(row, priority=-number)) for number, row in enumerate(rows)]
    first: dict[int, int] = {}
    for step in range(100):
        for token in engine.step(most=1):
            first.setdefault(token.id, step)
        if not engine.busy:
            break
    assert max(first[id] for id in ids[4:]) < min(first[id] for id in ids[:4])


def test_text_does_not_wait_for_the_tiles_of_others(engine, processor):
    """While somebody is answered a picture's tiles come one by one: who needs none begins before it, and it is answered
    as it would be alone, in the row that it finds once it is ready."""
    first = request(processor, 60, 0, 9, SamplingParams(max_new_tokens=60))
    pictures, text = request(processor, 61, 14, 9), request(processor, 62, 0, 9)
    wanted = [run(engine, [row])[0] for row in (pictures, text)]
    engine.tiles.clear()
    engine.add(first)
    engine.step(most=1)
    engine.step(most=1)
    ids, found = [engine.add(row) for row in (pictures, text)], {}
    for step in range(100):
        for token in engine.step(most=1):
            found.setdefault(token.id, []).append((step, token.token))
    began = [found[id][0][0] for id in ids]
    assert began[1] < 4 and 14 <= began[0] < 20
    assert [[token for _, token in found[id]] for id in ids] == wanted and not engine.busy


def test_rows_of_nobody_lie_where_parameters_are_committed(structure, params, vocabulary):
    """Or programs would compile anew for what the first of them makes of both."""
    scale = jax.device_put(params["lm.norm.scale"], jax.devices()[0])
    for given, committed in ((params, False), (params | {"lm.norm.scale": scale}, True)):
        runner = Engine(bind(structure[0], given), vocabulary, LADDERS)._runner
        runner.resize(((2, 32),), None)
        assert {leaf.committed for leaf in jax.tree.leaves((runner._state, runner._shape()))} == {committed}


def test_nothing_compiles_after_warm_up(engine, processor):
    programs = engine.num_compiled
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: compiled.append(event) if "backend_compile" in event else None
    )
    rng = np.random.default_rng(0)
    for i in range(100):
        sampling = SamplingParams(max_new_tokens=1 + i % 5, temperature=float(i % 3), seed=i, top_k=i % 4)
        for _ in range(3):
            tiles, words = rng.integers(0, 3), rng.integers(1, 60)
            engine.add(request(processor, i, int(tiles), int(words), sampling))
        engine.step(most=1 + i % 3)
    while engine.busy:
        engine.step()
    assert engine.num_compiled == programs and not compiled
    jax.jit(lambda x: x * 17.3)(1.0)
    assert compiled  # the listener would have seen it


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens_T": np.arange(5, dtype=np.int32)}, "0 image tokens, its 2 tiles need 8"),
        ({"tokens_T": np.zeros(0, np.int32)}, "no tokens"),
        ({"tokens_T": np.full(3, 10**6, np.int32)}, "a token outside of 0 to"),
        ({"sampling": SamplingParams(max_new_tokens=500)}, "more than the 96 that a row holds"),
        ({"sampling": SamplingParams(max_new_tokens=5, stop_token_ids=tuple(range(20)))}, "stop tokens"),
    ],
)
def test_bad_requests(engine, processor, change, message):
    with pytest.raises(InputError, match=message):
        engine.add(dataclasses.replace(request(processor, 0, 2, 9), **change))


def test_a_foreign_tokenizer(model):
    with pytest.raises(InputError, match="999"):
        Engine(model, Vocabulary(999, (), ()))
