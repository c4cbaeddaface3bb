"""Chat, batched answers and accuracy on a benchmark file."""

import gc
import json
import sys
import weakref

import numpy as np
import PIL.Image
import pytest

from internvl_jax import data
from internvl_jax.errors import InputError
from internvl_jax.evaluation.tasks import evaluate, read_questions
from internvl_jax.inference import (
    Request,
    SamplingParams,
    answer_many,
    chat,
    complete_many,
    get_engine,
    stream_chat,
)
from internvl_jax.sharding import bind


@pytest.fixture(scope="module")
def shared(structure, params):
    """One model for the module: its programs stay compiled."""
    return bind(structure[0], params)


def picture(seed):
    return PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 255, (28, 28, 3), dtype=np.uint8))


def ask(text, *seeds):
    parts = [{"type": "image", "image": picture(seed)} for seed in seeds]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def test_streamed_pieces_are_the_answer(shared, processor):
    messages = ask("what is it?", 3)
    answer = chat(shared, processor, messages, max_new_tokens=6)
    assert answer and "".join(stream_chat(shared, processor, messages, max_new_tokens=6)) == answer
    assert chat(shared, processor, ask("what is it?", 4), max_new_tokens=6) != answer


@pytest.mark.parametrize("think", ["on", "off"])
def test_a_switch_begins_the_answer(shared, processor, think):
    """What is written equals what follows the same beginning in a prompt of one's own."""
    messages = [{"role": "system", "content": "s"}, *ask("what?", 3)]  # short, in place of the one for thinking
    settings = data.PromptSettings(think)
    whole = chat(shared, processor, messages, max_new_tokens=6, thinking=True, think=think)
    assert whole.startswith(settings.begun) and whole != settings.begun
    inputs = settings.adapt(processor)(messages, begun=settings.begun)
    sampling = SamplingParams(max_new_tokens=6)
    (((*tokens,),),) = get_engine(shared, processor).run([Request(inputs.tokens_T, inputs.tiles_GHWC, sampling)])
    assert whole.removeprefix(settings.begun) == processor.tokenizer.decode(tokens)
    streamed = stream_chat(shared, processor, messages, max_new_tokens=6, thinking=True, think=think)
    assert "".join(streamed) == whole
    answer = chat(shared, processor, messages, max_new_tokens=6, think=think)
    assert answer == data.split_thinking(whole)[1] and bool(answer) == (think == "off")


def test_sampling_is_repeatable_by_seed(shared, processor):
    def answer(seed):
        return chat(shared, processor, ask("what?", 3), max_new_tokens=6, temperature=1.0, seed=seed)

    assert answer(1) == answer(1) != answer(2)


def test_a_conversation_goes_on(shared, processor):
    messages = ask("what is it?", 3)
    history = [*messages, {"role": "assistant", "content": "a red square"}, *ask("and now?")]
    assert chat(shared, processor, history, max_new_tokens=6) != chat(shared, processor, messages, max_new_tokens=6)


def test_a_stop_string_ends_the_answer(shared, processor):
    messages = ask("what is it?", 3)
    answer = chat(shared, processor, messages, max_new_tokens=6)
    stop = answer[2:4]
    wanted = answer[: answer.index(stop)]
    assert chat(shared, processor, messages, max_new_tokens=6, stop_strings=(stop,)) == wanted
    sampling = SamplingParams(max_new_tokens=6, stop_strings=(stop,))
    assert answer_many(shared, processor, [messages], 4, sampling) == [wanted]


def test_many_answers_equal_single_ones_in_order(shared, processor, monkeypatch):
    monkeypatch.setattr(sys.modules["internvl_jax.inference.many"], "WINDOW_BYTES", 5000)  # several windows
    questions = [ask("what is it?" * (1 + i % 3), *range(i % 3)) for i in range(9)]
    done = []
    answers = complete_many(shared, processor, iter(questions), 4, SamplingParams(max_new_tokens=6), done.append)
    assert [answer.text for answer in answers] == [chat(shared, processor, q, max_new_tokens=6) for q in questions]
    assert all(1 <= answer.num_tokens <= 6 for answer in answers)
    assert done[-1] == 9 and done == sorted(done) and len(done) >= 3


def test_new_parameters_are_used_without_compiling(structure, params, processor):
    model = bind(structure[0], params)
    before = chat(model, processor, ask("what?"), max_new_tokens=6)
    engine = get_engine(model, processor)
    programs = engine.num_compiled
    model.lm.embed.weight.set_value(model.lm.embed.weight[...] * -1)
    assert chat(model, processor, ask("what?"), max_new_tokens=6) != before
    assert get_engine(model, processor) is engine and engine.num_compiled == programs
    gone = weakref.ref(engine)
    del model, engine
    gc.collect()
    assert gone() is None  # nothing keeps a model alive


def test_errors_name_the_conversation(shared, processor):
    with pytest.raises(InputError, match=r"conversation 1: .*nowhere\.png"):
        bad = [{"role": "user", "content": [{"type": "image", "image": "nowhere.png"}]}]
        answer_many(shared, processor, [ask("what?"), bad])
    with pytest.raises(InputError, match="rows"):
        answer_many(shared, processor, [ask("what?")], batch_size=100_000)


def test_accuracy(shared, processor, tmp_path):
    picture(3).save(tmp_path / "a.png")
    right = chat(shared, processor, ask("what is it?", 3), max_new_tokens=6)
    lines = [
        {"image": "a.png", "question": "what is it?", "answer": f" {right.upper()} \n"},
        {"image": "a.png", "question": "what is it?", "answer": "something else"},
        {"image": None, "question": "what is it?", "answer": right},
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    questions, sampling = read_questions(tmp_path / "data.jsonl"), SamplingParams(max_new_tokens=6)
    found = evaluate(shared, processor, questions, 4, sampling)
    report = found.report()
    assert report["accuracy"] == pytest.approx(1 / 3) and report["n"] == 3 and 3 <= report["tokens"] <= 18
    found.write(tmp_path / "out" / "answers.jsonl")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["answers.jsonl"]
    written = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    assert [line["right"] for line in written] == [True, False, False]
    assert written[0] == {
        "image": str(tmp_path / "a.png"),
        "question": "what is it?",
        "answer": lines[0]["answer"],
        "prediction": found.answers[0].text,
        "right": True,
        "tokens": found.answers[0].num_tokens,
    }
    assert evaluate(shared, processor, questions, 4, sampling, grader="mmpr").report()["accuracy"] == 0
    with pytest.raises(InputError, match="no reward is called 'kind'"):
        evaluate(shared, processor, questions, 4, sampling, grader="kind")


def test_a_question_may_be_about_a_video(processor, golden, tmp_path):
    clip = golden / "video/videos/clip.mp4"
    line = {"image": None, "video": str(clip), "question": "what is it?", "answer": "a disc"}
    (tmp_path / "data.jsonl").write_text(json.dumps(line))
    (question,) = read_questions(tmp_path / "data.jsonl")
    parts = [{"type": "video", "video": str(clip)}, {"type": "text", "text": "what is it?"}]
    assert question.messages == [{"role": "user", "content": parts}]
    assert len(processor(question.messages).tiles_GHWC) == 8


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", " is not valid JSON"),
        ("[]", r" is \[\]; it must be"),
        ('{"question": "a", "answer": "b"}', " lacks the field 'image'"),
        ('{"image": 1, "question": "a", "answer": "b"}', r"\.image is 1; it must be"),
        ('{"image": "gone.png", "question": "a", "answer": "b"}', r": .*/gone\.png does not exist; names are relative"),
        ('{"image": null, "video": "gone.mp4", "question": "a", "answer": "b"}', r": .*/gone\.mp4 does not exist"),
    ],
)
def test_bad_benchmark_lines(tmp_path, line, sentence):
    good = '{"image": null, "question": "a", "answer": "b"}'
    (tmp_path / "data.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(InputError, match=rf"data\.jsonl:2{sentence}"):
        read_questions(tmp_path / "data.jsonl")
    (tmp_path / "data.jsonl").write_text("\n")
    with pytest.raises(InputError, match="no questions"):
        read_questions(tmp_path / "data.jsonl")
