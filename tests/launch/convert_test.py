"""launch.convert from the command line: what Ctrl-C and SIGTERM leave."""

import pathlib
import subprocess
import sys
import time

import pytest

RELEASED = str(pathlib.Path(__file__).parent.parent / "golden" / "hf_qwen3")
# Every slice that is written brings a signal along, while others are on their way: Ctrl-C is pressed several times.
INTERRUPTED = """
import os, signal, sys, time
from checkpoint_convert import conversion
from launch import convert, main

cast, which = conversion._cast, [getattr(signal, sys.argv.pop())]

def press(array, dtype):
    number, which[0] = which[0], None
    if number is None:  # SIGTERM would end it at once if it came again
        time.sleep(0.1)  # of signals that come together the handlers run in the order of their numbers
    os.kill(os.getpid(), number or signal.SIGINT)
    time.sleep(0.2)
    return cast(array, dtype)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
conversion._cast = press
main.run(convert.main)
"""


@pytest.mark.parametrize(
    ("form", "which", "code", "word"),
    [
        ("orbax", "SIGINT", 130, "interrupted"),
        ("github", "SIGINT", 130, "interrupted"),
        ("github", "SIGTERM", 143, "terminated"),
    ],
)
def test_a_signal_is_one_line_and_leaves_nothing(tmp_path, form, which, code, word):
    started = time.monotonic()
    command = [sys.executable, "-c", INTERRUPTED, f"--src={RELEASED}", f"--dst={tmp_path}/out", f"--to={form}", which]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr.splitlines()[-1]) == (code, "", word)
    assert "Traceback" not in done.stderr and list(tmp_path.iterdir()) == []
    assert time.monotonic() - started < 30
