"""python -m tests.acceptance --checkpoint=DIR [--out=accept_out] [--only=openai,langchain,aiperf] [--serve=FLAG ...]

Starts a server of a model and has it used by clients and load generators that other people wrote, each in a virtual
environment of its own below OUT/venvs (made once; one that stands there already is used): openai's client,
langchain-openai, aiperf, guidellm (which brings PyTorch) and schemathesis; and compares its answers with `ivl.chat`.
No error, no breach of the API's schema and no answer of another length than was asked for may come. The last line of
stdout is JSON; exit code 1 if there is any fault.
"""

import argparse
import contextlib
import json
import os
import pathlib
import secrets
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.served_process import ServerProcess
from checkpoint_convert import read_model_config
from tests.acceptance import sameness

SCRIPTS = pathlib.Path(__file__).parent
# What each environment has; versions of 2026-11.
PACKAGES = {
    "openai": ("openai==3.57.0", "langchain-openai==1.7.4", "pillow"),
    "aiperf": ("aiperf==0.13.0",),
    "guidellm": ("guidellm==0.8.1",),
    "schemathesis": ("schemathesis==4.32.5",),
}
# Which valid requests can't be answered no schema can say: what a picture shows, how long a conversation is.
CONFIG = """
[checks.positive_data_acceptance]
expected-statuses = [200, 400, 404]
"""
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)


class Acceptance:
    """One run.

    Args:
      checkpoint: of the model.
      out: folder of environments, logs and reports.
      url: of the server.
      key: that it wants.
    """

    def __init__(self, checkpoint: pathlib.Path, out: pathlib.Path, url: str, key: str):
        self._checkpoint, self._out, self._url, self._key = checkpoint, out, url.rstrip("/"), key
        request = urllib.request.Request(f"{self._url}/v1/models", headers={"Authorization": f"Bearer {key}"})
        with urllib.request.urlopen(request) as answer:
            self._model = json.load(answer)["data"][0]["id"]
        self._picture = out / "picture.png"
        self._side = read_model_config(checkpoint).vision.image_size
        sameness.picture(0, (self._side, self._side)).save(self._picture)

    def tasks(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """Name and what it does; each gives figures and a list of faults."""
        return {
            "openai": lambda: self._script("openai_answers.py"),
            "refusals": lambda: self._script("openai_refusals.py"),
            "langchain": lambda: self._script("langchain_answers.py"),
            "aiperf": self._aiperf,
            "guidellm": self._guidellm,
            "schemathesis": self._schemathesis,
            "chat": self._chat,
        }

    def _script(self, name: str) -> dict[str, Any]:
        arguments = [SCRIPTS / name, self._url, self._key, self._picture]
        _, text = self._run("openai", "python", arguments, name)
        return json.loads(text.splitlines()[-1])

    def _aiperf(self, requests: int = 24, tokens: int = 16) -> dict[str, Any]:
        folder = self._out / "aiperf"
        arguments = ["profile", "-m", self._model, "--url", self._url, "--api-key", self._key, "--ui", "none"]
        arguments += ["--endpoint-type", "chat", "--streaming", "--tokenizer", self._tokenizer()]
        arguments += ["--use-server-token-count", "--concurrency", 4, "--request-count", requests]
        arguments += ["--isl", 64, "--osl", tokens, "--extra-inputs", "ignore_eos:true"]
        arguments += ["--image-width-mean", self._side, "--image-height-mean", self._side]
        code, _ = self._run("aiperf", "aiperf", [*arguments, "--output-artifact-dir", folder], "aiperf")
        if code:
            return {"faults": [["aiperf", f"exit code {code}"]]}
        found = json.loads((folder / "profile_export_aiperf.json").read_text())
        lengths = found["output_sequence_length"]
        counts = {"requests": found["request_count"]["avg"], "error_rate": found["request_error_rate"]["avg"]}
        figures = counts | {"shortest": lengths["min"], "longest": lengths["max"]}
        wanted = {"requests": requests, "error_rate": 0, "shortest": tokens, "longest": tokens}
        names = ("time_to_first_token", "inter_token_latency", "request_latency")
        times = {f"{name}_ms": {part: round(found[name][part], 2) for part in ("p50", "p90", "p99")} for name in names}
        return {**figures, **times, "faults": _unequal(figures, wanted) + found["error_summary"]}

    def _guidellm(self, requests: int = 16, tokens: int = 16) -> dict[str, Any]:
        path = self._out / "guidellm.json"
        target = f"kind=openai_http,target={self._url},model={self._model},api_key={self._key}"
        arguments = ["run", "--backend", target, "--profile", "kind=concurrent,streams=4"]
        arguments += ["--constraint", f"kind=max_requests,count={requests}"]
        arguments += ["--tokenizer", f"kind=huggingface_auto,model={self._tokenizer()}"]
        arguments += ["--data", f"kind=synthetic_text,prompt_tokens=64,output_tokens={tokens}"]
        arguments += ["--output", f"kind=json,path={path}", "--disable-progress"]
        code, _ = self._run("guidellm", "guidellm", arguments, "guidellm")
        if code:
            return {"faults": [["guidellm", f"exit code {code}"]]}
        metrics = json.loads(path.read_text())["benchmarks"][0]["metrics"]
        lengths, totals = metrics["output_token_count"]["successful"], metrics["request_totals"]
        figures = {"requests": totals["successful"], "errors": totals["errored"] + totals["incomplete"]}
        figures |= {"shortest": lengths["min"], "longest": lengths["max"]}
        wanted = {"requests": requests, "errors": 0, "shortest": tokens, "longest": tokens}
        return {**figures, "faults": _unequal(figures, wanted)}

    def _schemathesis(self) -> dict[str, Any]:
        config = self._out / "schemathesis.toml"
        config.write_text(CONFIG)
        arguments = ["--config-file", config, "run", f"{self._url}/openapi.json", "--max-examples", 40, "--seed", 1]
        arguments += ["--phases", "examples,coverage,fuzzing", "--no-color", "-H", f"Authorization: Bearer {self._key}"]
        code, text = self._run("schemathesis", "schemathesis", arguments, "schemathesis")
        lines = [line.strip() for line in text.splitlines()]
        faults = [["schemathesis", line] for line in lines if line.startswith("- ST")]
        faults = faults or [["schemathesis", f"exit code {code}"]] * bool(code)
        return {"cases": [line for line in lines if " generated, " in line], "faults": faults}

    def _chat(self) -> dict[str, Any]:
        return sameness.compare(self._url, self._key, self._checkpoint, self._side)

    def _run(self, environment: str, program: str, arguments: Sequence[object], log: str) -> tuple[int, str]:
        """Exit code and stdout of a program of an environment; all of its words go to a log."""
        command = [str(self._environment(environment) / "bin" / program), *map(str, arguments)]
        variables = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        with open(self._out / f"{log}.log", "w") as file:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=file, text=True, env=variables, timeout=1800, cwd=self._out
            )
            file.write(done.stdout)
        return done.returncode, done.stdout

    def _environment(self, name: str) -> pathlib.Path:
        folder, packages = self._out / "venvs" / name, PACKAGES[name]
        stamp = folder / "made"
        if not stamp.exists() or stamp.read_text() != repr(packages):
            if not (folder / "bin" / "python").exists():
                subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", *packages], check=True)
            stamp.write_text(repr(packages))
        return folder

    def _tokenizer(self) -> pathlib.Path:
        """The model's, with the chat template that transformers asks for."""
        folder = self._out / "tokenizer"
        folder.mkdir(exist_ok=True)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).write_bytes((self._checkpoint / name).read_bytes())
        config = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE} | config))
        return folder


def _unequal(found: dict[str, Any], wanted: dict[str, Any]) -> list[list[str]]:
    return [[name, f"{found[name]}, not {value}"] for name, value in wanted.items() if found[name] != value]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("accept_out"))
    parser.add_argument("--only", default="")
    parser.add_argument("--serve", action="append", default=[])
    given = parser.parse_args()
    out, key = given.out.resolve(), f"sk-{secrets.token_hex(16)}"
    out.mkdir(parents=True, exist_ok=True)
    os.environ["INTERNVL_API_KEY"] = key
    found: dict[str, dict[str, Any]] = {}
    with contextlib.ExitStack() as stack:
        flags = [f"--checkpoint={given.checkpoint}", "--dtype=float32", *given.serve]
        server = ServerProcess(flags, out / "server.log")
        stack.callback(server.close)
        tasks = Acceptance(given.checkpoint.resolve(), out, server.url, key).tasks()
        for name in given.only.split(",") if given.only else tasks:
            began = time.monotonic()
            found[name] = tasks[name]()
            print(f"{name}: {time.monotonic() - began:.0f} s: {json.dumps(found[name])}", flush=True)
    faults = sum(len(each["faults"]) for each in found.values())
    print(json.dumps({"faults": faults} | found))
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
