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

cast, first = conversion._cast, [getattr(signal, sys.argv.pop())]
came = first[0]

def press(array, dtype):
    number = first.pop() if first else signal.SIGINT  # SIGTERM would end it at once if it came again
    # Of two signals that nobody has looked at yet, Python takes the one of the lower number first.
    while number != came and came == signal.SIGTERM and signal.getsignal(came) != signal.SIG_DFL:
        time.sleep(0.01)
    os.kill(os.getpid(), number)
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
