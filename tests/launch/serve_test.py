"""A server, started as every launcher is; a model that lies in two processes is served by one of them."""

import json
import os
import runpy
import signal
import sys
import time

import httpx
import pytest

import internvl_jax as ivl
from checkpoint_convert import read_model_config
from checkpoint_convert.adapters import Adapter
from checkpoint_convert.peft_writer import write_adapter
from tests import forks
from tests.adapters import drawn_adapter
from tests.training import lives

MESSAGES = [{"role": "system", "content": "be short"}, {"role": "user", "content": "what is it?"}]


def serve(folder, arguments):
    """One process with one device; what it says goes into files."""
    os.environ["XLA_FLAGS"] = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = ["serve", *arguments]
    runpy.run_module("launch.serve", run_name="__main__", alter_sys=True)


def wait_for(found, seconds=120):
    end = time.monotonic() + seconds
    while (value := found()) is None:
        assert time.monotonic() < end
        time.sleep(0.02)
    return value


ROWS = """
import json, sys
from absl import flags
from internvl_jax.errors import InputError
from launch import server_rows
found = []
for given in sys.argv[1:]:
    flags.FLAGS.unparse_flags()
    for name in ("rows", "context", "page", "reserve"):
        flags.FLAGS[name].value = flags.FLAGS[name].default
    flags.FLAGS(["serve", "--checkpoint=none", *given.split()])
    try:
        found.append([server_rows.ladders().classes, server_rows.ladders().reserve])
    except InputError as error:
        found.append(str(error))
print(json.dumps(found))
"""


def test_rows_of_every_length():
    right = ("", "--rows=3 --context=96", "--rows=8x4096,4x16384 --reserve=512")
    wrong = ("--rows=0", "--rows=8x32", "--rows=8x4096,", "--rows=2x4096 --context=96")
    pages = ("--rows=2x64,1x96 --page=16", "--reserve=9 --page=16")
    done = forks.python("-c", ROWS, *right, *wrong, *pages)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found[:3] == [[[[8, 4096]], None], [[[3, 96]], None], [[[8, 4096], [4, 16384]], 512]]
    assert [each[:20] for each in found[3:]] == [
        "--rows=0: give how m",
        "--rows=8x32: give ho",
        "--rows=8x4096,: give",
        "--rows=2x4096 says h",
        *["rows that have pages"] * 2,
    ]


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.soak)])
def test_a_server_from_its_start_to_its_end(checkpoint, tmp_path, count):
    port, pod = lives.free_port(), f"--coordinator=127.0.0.1:{lives.free_port()}"
    common = (f"--checkpoint={checkpoint}", f"--port={port}", "--rows=1x96", "--reserve=8", "--chunk=32", "--workers=1")
    processes = []
    for number in range(count):
        (tmp_path / str(number)).mkdir()
        own = (f"--mesh=tensor={count}", pod, f"--processes={count}", f"--process={number}") if count > 1 else ()
        processes.append(forks.start(serve, tmp_path / str(number), (*common, *own)))
    said = lambda: [(tmp_path / str(number) / "err").read_text() for number in range(count)]
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:

            def probed():
                assert all(process.is_alive() for process in processes), said()
                try:
                    return client.get("/ready")
                except httpx.TransportError:  # not yet, or between the one that answers while loading and the server
                    return None

            first = wait_for(probed)
            assert (first.status_code, first.json()) == (503, {"status": "starting"})
            wait_for(lambda: (found := probed()) and (True if found.status_code == 200 else None))
            body = {"messages": MESSAGES, "max_tokens": 6, "temperature": 0, "reasoning_effort": "none"}
            answer = client.post("/v1/chat/completions", json=body).json()
        os.kill(processes[0].pid, signal.SIGTERM)
        for process in processes:
            process.join(60)
        # The other ends by itself, or because it is told that the first does, whichever comes first.
        codes = [process.exitcode for process in processes]
        assert codes[0] == 143 and set(codes) <= {0, 143}, said()
    finally:
        for process in processes:
            process.kill()
    model, processor = ivl.load(checkpoint, "float32")
    assert answer["choices"][0]["message"]["content"] == ivl.chat(model, processor, MESSAGES, max_new_tokens=6)


@pytest.mark.soak
def test_a_folder_of_adapters_is_looked_at_again_at_sighup(checkpoint, tmp_path):
    folder, port = tmp_path / "adapters", lives.free_port()
    config = read_model_config(checkpoint)

    def write(name, seed):
        write_adapter(tmp_path / "made", Adapter(*drawn_adapter(config, seed)), config, "hf", "base")
        (tmp_path / "made").rename(folder / name)

    for path in (folder, tmp_path / "made", tmp_path / "0"):
        path.mkdir()
    write("one", 1)
    (tmp_path / "made").mkdir()
    common = (f"--checkpoint={checkpoint}", f"--port={port}", "--rows=1", "--context=96", "--chunk=32", "--workers=1")
    process = forks.start(serve, tmp_path / "0", (*common, f"--adapter_folder={folder}", "--max_adapters=2"))
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:

            def get(path):
                assert process.is_alive(), (tmp_path / "0" / "err").read_text()
                try:
                    return client.get(path)
                except httpx.TransportError:
                    return None

            def names():
                found = get("/v1/models")
                if found is None:
                    return None
                return [model["id"] for model in found.json()["data"]] if found.status_code == 200 else None

            body = {"messages": MESSAGES, "max_tokens": 6, "temperature": 0, "reasoning_effort": "none"}
            ask = lambda name: client.post("/v1/chat/completions", json=body | {"model": name})
            content = lambda name: ask(name).json()["choices"][0]["message"]["content"]
            assert wait_for(lambda: get("/ready")).status_code == 503
            os.kill(process.pid, signal.SIGHUP)  # long before it is ready
            assert wait_for(names) == ["model", "one"]
            first = content("one")
            write("two", 2)
            os.kill(process.pid, signal.SIGHUP)
            wait_for(lambda: names() == ["model", "one", "two"] or None)
            assert content("one") == first and len({first, content("two"), content("model")}) == 3
            (folder / "one").rename(tmp_path / "gone")
            os.kill(process.pid, signal.SIGHUP)
            wait_for(lambda: names() == ["model", "two"] or None)
            assert ask("one").status_code == 404
        os.kill(process.pid, signal.SIGTERM)
        process.join(60)
        assert process.exitcode == 143
    finally:
        process.kill()
