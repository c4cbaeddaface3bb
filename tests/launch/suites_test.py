"""launch.evaluate on benchmark files, from the command line."""

import base64
import csv
import http.server
import json
import os
import random
import signal
import threading
import time
import typing

import pytest

from tests import forks


def evaluate(*arguments):
    return forks.python("-m", "launch.evaluate", *arguments)


def table(checkpoint, folder, questions=("what is it",) * 3):
    """Questions about one picture as a benchmark's; those of the plain file by default."""
    encoded = base64.b64encode((checkpoint / "a.png").read_bytes()).decode()
    rows = [[number, "0" if number else encoded, question, "x"] for number, question in enumerate(questions)]
    with (folder / "EasyVQA.tsv").open("w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([["index", "image", "question", "answer"], *rows])


def test_a_model_answers_a_suite(checkpoint, tmp_path):
    table(checkpoint, tmp_path)
    model, suite = f"--checkpoint={checkpoint}", ["--suite=EasyVQA", f"--data={tmp_path}"]
    rows = [line.rpartition("\t")[0] for line in (tmp_path / "EasyVQA.tsv").read_text().splitlines()]
    (tmp_path / "DocVQA_TEST.tsv").write_text("\n".join(rows) + "\n")
    both = ["--suite=DocVQA_TEST,EasyVQA", f"--data={tmp_path}"]
    done = evaluate(model, *both, f"--out={tmp_path}/out", "--max_new_tokens=3", "--dtype=float32")
    assert done.returncode == 0, done.stderr
    known = json.loads((tmp_path / "out" / "EasyVQA.settings.json").read_text())
    assert [known[name] for name in ("dtype", "quantise", "cache", "reasoning")] == ["float32", None, None, None]
    assert "DocVQA_TEST: answered, and not scored as its table has no answers" in done.stderr
    assert json.loads(done.stdout.splitlines()[0]) == {"suite": "DocVQA_TEST", "score": None}
    told = json.loads(done.stdout.splitlines()[-1])
    assert told.keys() == {"suite", "score"} and told["suite"] == "EasyVQA" and told["score"][0]["Overall"] == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "EasyVQA.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == ["0", "1", "2"] and all(line["prediction"] for line in lines)
    assert (tmp_path / "out" / "report.html").exists() and len(
        (tmp_path / "out" / "EasyVQA.rows.jsonl").read_text()
    ) > 9
    rescored = evaluate(model, *suite, f"--rescore={tmp_path}/out/EasyVQA.jsonl", f"--out={tmp_path}/rows.jsonl")
    assert rescored.stdout.splitlines()[-1] == done.stdout.splitlines()[-1], rescored.stderr
    assert (tmp_path / "rows.jsonl").read_text() == (tmp_path / "out" / "EasyVQA.rows.jsonl").read_text()
    plain = evaluate(model, f"--data={checkpoint}/data.jsonl", "--max_new_tokens=3", f"--out={tmp_path}/plain.jsonl")
    assert plain.returncode == 0, plain.stderr
    said = [json.loads(line)["prediction"] for line in (tmp_path / "plain.jsonl").read_text().splitlines()]
    assert said == [line["prediction"] for line in lines]


@pytest.mark.soak
def test_the_best_of_three_answers_of_a_suite(checkpoint, tmp_path, golden):
    """By vote, and by the recorded critic, which finds the candidates there."""
    table(checkpoint, tmp_path)
    asked = [f"--checkpoint={checkpoint}", "--suite=EasyVQA", f"--data={tmp_path}", "--max_new_tokens=3", "--best_of=3"]
    for how, by in (([], "vote"), ([f"--critic={golden}/visualprm_qwen2_github", "--critic_score=min"], "critic")):
        done = evaluate(*asked, *how, f"--out={tmp_path}/{by}")
        assert done.returncode == 0 and f"the best of 3 by {by}" in done.stderr, done.stderr
        read = lambda name, by=by: [json.loads(line) for line in (tmp_path / by / name).read_text().splitlines()]
        candidates, choices = read("EasyVQA.candidates.jsonl"), read("EasyVQA.choices.jsonl")
        chosen = [each["candidates"][choice["best"]]["text"] for each, choice in zip(candidates, choices, strict=True)]
        assert [line["prediction"] for line in read("EasyVQA.jsonl")] == chosen
        assert all(bool(choice["steps"]) == (by == "critic") for choice in choices)


@pytest.mark.soak
def test_thinking_may_be_as_long_as_the_release_has_it(checkpoint, tmp_path):
    """65,536 tokens, which are more than rows have at first; what is rescored is read as it was."""
    table(checkpoint, tmp_path, ["what is it"])
    asked = ["--suite=EasyVQA", f"--data={tmp_path}", "--mode=thinking"]
    done = evaluate(f"--checkpoint={checkpoint}", *asked, f"--out={tmp_path}/out")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "EasyVQA.settings.json").read_text())["sampling"]["max_new_tokens"] == 65536
    rescored = evaluate(*asked, f"--rescore={tmp_path}/out/EasyVQA.jsonl", f"--out={tmp_path}/rows.jsonl")
    assert rescored.stdout.splitlines()[-1] == done.stdout.splitlines()[-1], rescored.stderr
    assert (tmp_path / "rows.jsonl").read_text() == (tmp_path / "out" / "EasyVQA.rows.jsonl").read_text()


def test_what_needs_no_model(tmp_path, golden):
    data = f"--data={golden / 'eval_image' / 'data'}"
    listed = evaluate("--suite=list")
    assert listed.returncode == 0 and "MMStar.tsv" in listed.stdout and "needs a judge" in listed.stdout
    out = tmp_path / "prompts.jsonl"
    asked = evaluate("--suite=MMStar", data, "--prompts_only", "--mode=cot", f"--out={out}")
    assert asked.returncode == 0, asked.stderr
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    asked = evaluate("--suite=MMStar", data, "--prompts_only", "--best_of=8", f"--out={tmp_path}/best.jsonl")
    assert asked.returncode == 0 and (tmp_path / "best.jsonl").read_text() == out.read_text(), asked.stderr
    assert len(lines) == 36 and lines[0].keys() == {"index", "question", "tiles", "system", "generation"}
    for arguments, said in (
        (["--suite=MMStar", data], "--checkpoint is missing"),
        (["--suite=MMStar", "--prompts_only"], "--data is missing"),
        (["--suite=MMStars", data, "--prompts_only", f"--out={out}"], "no suite is called 'MMStars'"),
        (["--suite=MMStar", data, "--prompts_only", f"--out={out}"], "already exists"),
        (["--suite=MMStar,POPE", data, "--prompts_only", f"--out={tmp_path}/a"], "give one --suite"),
        (
            ["--suite=MMStar", data, "--check_md5", "--prompts_only", f"--out={tmp_path}/a"],
            "is not the published MMStar",
        ),
        ([data, "--prompts_only", f"--out={tmp_path}/a"], "name one by --suite"),
        (["--checkpoint=no", data, "--frames=32"], "--frames is for the paper's benchmarks; name one by --suite"),
        (["--checkpoint=no", data, "--mode=cot"], "--mode is for the paper's benchmarks; name one by --suite"),
        (["--checkpoint=no", data, "--nothinking"], "--nothinking is for launch.chat"),
        (["--suite=MMStar", data, "--rescore=a.json", "--best_of=8"], "--rescore asks no model; leave out --best_of"),
        (["--suite=MMStar", data, "--prompts_only", "--judge=http://a"], "--prompts_only answers and scores nothing"),
        (["--suite=MMStar", data, "--checkpoint=no", "--report=a"], "--report is for --rescore"),
        (["--suite=MMStar", data, "--checkpoint=no", "--grader=answer"], "--grader says here which answers agree"),
        (["--suite=MMStar", data, "--rescore=a.json", "--judge_model=a"], "--judge_model is its name at --judge"),
        (["--suite=MMStar", data, "--checkpoint=no", "--frames=9"], "--frames is for suites about videos"),
        (["--suite=MMStar,POPE", f"{data}/POPE.tsv", "--checkpoint=no"], "--data is one file, and --suite has several"),
    ):
        done = evaluate(*arguments)
        assert (done.returncode, done.stdout) == (1, "") and said in done.stderr, done.stderr
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


class _Judge(http.server.BaseHTTPRequestHandler):
    """Says A, to `left` questions."""

    left: typing.ClassVar[list[int]] = [2]
    asked: typing.ClassVar[list[str]] = []

    def do_GET(self):
        self._send(200, {"data": [{"id": "the-judge"}]})

    def do_POST(self):
        said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(said["model"])
        self.left[0] -= 1
        self._send(200 if self.left[0] >= 0 else 403, {"choices": [{"message": {"content": "A"}}]})

    def _send(self, status, said):
        body = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_a_judge_that_fails_is_not_asked_again(tmp_path, golden, monkeypatch):
    """What it said is kept; its name is the one that its server has."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "a.json").write_text(json.dumps({str(number): f"perhaps {number}" for number in range(5)}))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Judge) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        asked = ["--suite=RealWorldQA", f"--data={golden}/eval_image/data", f"--rescore={tmp_path}/a.json"]
        asked += [f"--judge=http://127.0.0.1:{server.server_port}/v1", f"--out={tmp_path}/rows.jsonl"]
        failed = evaluate(*asked)
        assert failed.returncode == 1 and "does not answer" in failed.stderr, failed.stderr
        _Judge.left[0] = 9
        done = evaluate(*asked)
        server.shutdown()
    assert done.returncode == 0 and "by rule alone" not in done.stderr, done.stderr
    assert _Judge.asked == ["the-judge"] * 6  # 2 answered, 1 refused, and the 3 that were left
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["extracted"] for row in rows] == ["A"] * 5
    assert len((tmp_path / "rows.verdicts.jsonl").read_text().splitlines()) == 5


@pytest.mark.soak
def test_a_model_answers_about_videos(checkpoint, tmp_path, golden):
    """MVBench's first questions, their clips decoded: answered, scored, and shown in the report with frames."""
    data = golden / "eval_video" / "data"
    (tmp_path / "video" / "x").mkdir(parents=True)
    for name in ("clip.mp4", "clip.webm"):
        (tmp_path / "video" / "x" / name).write_bytes((data / name).read_bytes())
    (tmp_path / "MVBench.tsv").write_text("\n".join((data / "MVBench.tsv").read_text().split("\n")[:4]) + "\n")
    asked = [f"--checkpoint={checkpoint}", "--suite=MVBench", f"--data={tmp_path}", f"--out={tmp_path}/out"]
    done = evaluate(*asked, "--frames=3", "--max_new_tokens=3")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["suite"] == "MVBench" and told["score"]["overall"][1] == 3
    lines = [json.loads(line) for line in (tmp_path / "out" / "MVBench.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == ["0", "1", "2"] and all(line["tokens"] for line in lines)
    wrong = 3 - told["score"]["overall"][0]
    assert (tmp_path / "out" / "report.html").read_text().count("<img") == 3 * wrong


@pytest.mark.soak
def test_kills_at_random_moments_change_no_answer(checkpoint, tmp_path):
    """Answers and report are those of a run that nobody killed."""
    kills, rng = int(os.environ.get("INTERNVL_JAX_KILLS", "10")), random.Random(5)
    table(checkpoint, tmp_path, [f"what is {'it ' * (number % 7)}{number}" for number in range(300)])
    asked = ["-m", "launch.evaluate", f"--checkpoint={checkpoint}", "--suite=EasyVQA", f"--data={tmp_path}"]
    asked += ["--max_new_tokens=6", "--batch_size=3"]
    assert forks.python(*asked, f"--out={tmp_path}/whole").returncode == 0
    (tmp_path / "in").touch()
    partial, died = tmp_path / "hurt" / "EasyVQA.jsonl.partial", []
    for kill in range(kills):
        process = forks.begin(tmp_path, *asked, f"--out={tmp_path}/hurt")
        wanted = (kill + rng.random()) * 290 / kills
        while (partial.read_bytes().count(b"\n") if partial.exists() else 0) < wanted and process.is_alive():
            time.sleep(0.001)
        time.sleep(rng.random() / 100)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        died.append(process.exitcode)
    assert died == [-signal.SIGKILL] * kills and partial.exists()
    assert forks.python(*asked, f"--out={tmp_path}/hurt").returncode == 0
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "hurt").iterdir())
    for name in names:
        assert (tmp_path / "hurt" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
