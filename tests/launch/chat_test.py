"""launch.chat and launch.evaluate from the command line, on a model that knows nothing."""

import json

import pytest

from checkpoint_convert import Adapter, convert, read_model_config
from checkpoint_convert.peft_writer import write_adapter
from tests import forks
from tests.adapters import drawn_adapter


def launch(name, *arguments, stdin=""):
    return forks.python("-m", f"launch.{name}", *arguments, stdin=stdin)


def test_a_prompt_and_a_conversation(checkpoint):
    options = (f"--checkpoint={checkpoint}", "--max_new_tokens=5")
    done = launch("chat", *options, f"--image={checkpoint}/a.png", "--prompt=what is it")
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    lines = ["/image nowhere.png", f"/image '{checkpoint}/a.png'", "what is it", "/help", "/halp", "/quit", "never"]
    talk = launch("chat", *options, stdin="\n".join(lines))
    assert talk.returncode == 0
    assert talk.stdout.strip() == done.stdout.strip()
    assert "nowhere.png" in talk.stderr and "commands:" in talk.stderr
    assert "no command /halp" in talk.stderr and talk.stderr.startswith(f"loading {checkpoint} ...\n")
    assert talk.stderr.count("compiling ...\n") == 1


def test_an_adapter_answers_beside_its_base(checkpoint, tmp_path):
    """As the model that it is merged into; one that can't be read is told before anything is loaded."""
    config = read_model_config(checkpoint)
    lora, params = drawn_adapter(config, 3)
    write_adapter(tmp_path, Adapter(lora, {path: 3 * value for path, value in params.items()}), config, "hf", "base")
    convert(checkpoint, tmp_path / "merged", adapter=tmp_path)
    options = ("--max_new_tokens=8", f"--image={checkpoint}/a.png", "--prompt=what is it", "--dtype=float32")
    answers = [
        launch("chat", *options, f"--checkpoint={directory}", *more)
        for directory, more in ((checkpoint, ()), (checkpoint, (f"--adapter={tmp_path}",)), (tmp_path / "merged", ()))
    ]
    assert not any(done.returncode for done in answers), answers[1].stderr
    plain, apart, merged = (done.stdout for done in answers)
    assert plain != apart == merged
    done = launch(
        "evaluate", f"--checkpoint={checkpoint}", f"--data={checkpoint}/data.jsonl", f"--adapter={checkpoint}"
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "adapter_config.json" in done.stderr


def test_how_weights_are_kept_reaches_the_model(checkpoint):
    """By what is refused."""
    done = launch("chat", f"--checkpoint={checkpoint}", "--prompt=what is it", "--quantise=mxfp4")
    assert done.stderr.endswith("error: quantise is 'mxfp4', which is for experts, and this model has none; use int8\n")


LOADED = """
import sys
from absl import flags
from launch import checkpoint
flags.FLAGS(sys.argv)
print(checkpoint.load()[0].runtime.skip_blocks)
"""


@pytest.mark.parametrize(("given", "skips"), [((), "True"), (("--noskip_blocks",), "False")])
def test_how_attention_goes_about_prompts_reaches_the_model(checkpoint, given, skips):
    done = forks.python("-c", LOADED, f"--checkpoint={checkpoint}", "--compilation_cache=", *given)
    assert done.stdout.strip() == skips, done.stderr


def test_a_video_and_an_answer_without_a_box(checkpoint, golden, tmp_path):
    shown = (
        f"--image={checkpoint}/a.png",
        f"--video={golden}/video/videos/clip.mp4",
        "--num_frames=1",
        "--clip=[1, 2]",
    )
    drawn = (f"--draw={tmp_path}/boxes.png", f"--svg={tmp_path}/drawing.png")
    options = (f"--checkpoint={checkpoint}", "--max_new_tokens=5", "--nothinking")
    done = launch("chat", *options, *shown, *drawn, "--prompt=what is it")
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    assert "has no box and no click" in done.stderr and "has no SVG" in done.stderr and not list(tmp_path.iterdir())


def test_accuracy_is_the_last_line(checkpoint, tmp_path):
    options = (f"--checkpoint={checkpoint}", f"--data={checkpoint}/data.jsonl", "--max_new_tokens=3")
    done = launch("evaluate", *options, f"--out={tmp_path}/answers.jsonl", "--temperature=0.5", "--max_tiles=1")
    report = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0 and report.keys() == {"accuracy", "n", "tokens", "seconds"} and report["n"] == 3
    written = (tmp_path / "answers.jsonl").read_text().splitlines()
    assert [json.loads(line)["answer"] for line in written] == ["x"] * 3


def test_the_best_of_three(checkpoint, tmp_path):
    options = (f"--checkpoint={checkpoint}", f"--data={checkpoint}/data.jsonl", "--max_new_tokens=3", "--best_of=3")
    done = launch("evaluate", *options, f"--out={tmp_path}/answers.jsonl", "--max_tiles=1")
    assert done.returncode == 0 and "the best of 3 by vote (exact)" in done.stderr, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report.keys() == {"accuracy", "greedy", "any", "n", "tokens", "seconds"}
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [len(line["candidates"]) for line in lines] == [3] * 3
    assert all(line["candidates"][line["best"]]["text"] == line["prediction"] for line in lines)
    assert sum(each["tokens"] for line in lines for each in line["candidates"]) == report["tokens"]
    assert (tmp_path / "answers.candidates.jsonl").exists() and (tmp_path / "answers.choices.jsonl").exists()
    (tmp_path / "answers.jsonl").unlink()
    other = launch("evaluate", *options, f"--out={tmp_path}/answers.jsonl", "--max_tiles=2")
    assert other.returncode == 1 and "was begun otherwise (max_tiles: 1 before, 2 now)" in other.stderr


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("chat", ("--prompt=a", "--grader=answer"), "--grader says here which answers agree"),
        ("chat", ("--prompt=a", "--critic_score=min", "--best_of=2"), "give --critic"),
        ("serve", ("--role=vision", "--adapter=a=b"), "adapters are the language servers'"),
        ("serve", ("--role=vision", "--port=0", "--quantise=int8"), "--quantise and --cache are the language model's"),
        ("serve", ("--max_adapters=2",), "need --adapter or --adapter_folder"),
        ("make_pairs", ("--prompts=a", "--out=b", "--completions=3"), "--completions is nothing to --method=correct"),
    ],
)
def test_no_flag_is_silently_ignored(checkpoint, name, arguments, said):
    done = launch(name, f"--checkpoint={checkpoint}", *arguments)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and said in done.stderr, done.stderr


def test_errors_are_one_sentence(checkpoint, tmp_path):
    for arguments in (
        ("chat", f"--checkpoint={tmp_path}", "--prompt=a"),
        ("chat", f"--checkpoint={checkpoint}", "--top_p=2", "--prompt=a"),
        ("chat", f"--checkpoint={checkpoint}", "--absolute_threshold=0.5", "--prompt=a"),
        ("chat", f"--checkpoint={checkpoint}", "--image=nowhere.png", "--prompt=a"),
        ("chat", "--checkpoint=OpenGVLab/InternVL3_5-1B", "--prompt=a"),
        ("evaluate", f"--checkpoint={checkpoint}", f"--data={checkpoint}/data.jsonl", f"--out={checkpoint}/a.png"),
        ("evaluate", f"--checkpoint={checkpoint}", f"--data={checkpoint}/data.jsonl", "--grader=kind"),
        ("chat", f"--checkpoint={checkpoint}", "--prompt=a", "--best_of=0"),
        ("chat", f"--checkpoint={checkpoint}", "--prompt=a", "--best_of=2", f"--critic={checkpoint}"),
    ):
        done = launch(*arguments)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
