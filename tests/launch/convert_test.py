"""launch.convert from the command line: what Ctrl-C leaves."""

import pathlib
import subprocess
import sys
import time

import pytest

RELEASED = str(pathlib.Path(__file__).parent.parent / "golden" / "hf_qwen3")
# Every slice that is written brings a Ctrl-C along, while others are on their way: it is pressed several times.
INTERRUPTED = """
import os, signal, sys, time
from checkpoint_convert import conversion
from launch import convert, main

cast = conversion._cast

def press(array, dtype):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.2)
    return cast(array, dtype)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
conversion._cast = press
main.run(convert.main)
"""


@pytest.mark.parametrize("form", ["orbax", "github"])
def test_ctrl_c_is_one_line_and_leaves_nothing(tmp_path, form):
    started = time.monotonic()
    command = [sys.executable, "-c", INTERRUPTED, f"--src={RELEASED}", f"--dst={tmp_path}/out", f"--to={form}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr.splitlines()[-1]) == (130, "", "interrupted")
    assert "Traceback" not in done.stderr and list(tmp_path.iterdir()) == []
    assert time.monotonic() - started < 30
