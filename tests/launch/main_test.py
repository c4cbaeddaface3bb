"""Every launcher's manners: one line on stderr and exit code 1 for bad input, tracebacks only for our own faults."""

import os
import re
import signal
import subprocess
import sys

import pytest

from launch import cpu_threads
from tests import forks

LAUNCHER = '''"""Helps."""
from absl import flags
from internvl_jax.errors import InputError
from launch import main as launcher

_WHAT = ["nothing", "input", "file", "fault", "code", "interrupt", "speak", "memory", "device", "runtime"]
_DO = flags.DEFINE_enum("do", "nothing", _WHAT, "what to do")
flags.DEFINE_integer("times", 1, "how often")
flags.DEFINE_float("share", 1.0, "of all")

def main(argv):
    match _DO.value:
        case "input": raise InputError("two\\nlines")
        case "file": open("/none/at/all")
        case "fault": raise ZeroDivisionError
        case "memory": raise MemoryError("Unable to allocate 9 GiB")
        case "device": raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\\nBuffers")
        case "runtime": raise RuntimeError("INTERNAL: RESOURCE_EXHAUSTED: ")
        case "code": return 3
        case "interrupt":
            import threading, time
            threading.Thread(target=time.sleep, args=(60,)).start()
            raise KeyboardInterrupt
    print("done" if _DO.value != "speak" else "gr\\xfc\\udcff")

if __name__ == "__main__":
    launcher.run(main)
'''


def launch(*arguments):
    return subprocess.run([sys.executable, "-c", LAUNCHER, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--do=input", "error: two lines\n"),
        ("--do=file", "error: [Errno 2] No such file or directory: '/none/at/all'\n"),
        ("--do=memory", "error: memory is short (Unable to allocate 9 GiB); docs/TROUBLESHOOTING.md says what"),
        ("--do=device", "error: memory is short (Out of memory allocating 9 bytes.); docs/TROUBLESHOOTING.md says"),
        ("--dont=1", "error: Unknown command line flag 'dont'"),
        ("--do=sing", "error: flag --do=sing: value should be one of"),
        ("--times=few", "error: --times=few is no whole number (--help lists the flags)\n"),
        ("--share=some", "error: --share=some is no number (--help lists the flags)\n"),
        ("do", "error: argument 'do' is no flag"),
    ],
)
def test_bad_input_is_one_line(argument, message):
    done = launch(argument)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(message) and done.stderr.count("\n") == 1


def test_good_input():
    done = launch()
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_what_stdout_can_not_show_is_escaped():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-c", LAUNCHER, "--do=speak"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "gr\\xfc\\udcff\n", "")
    done = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_exit_code_is_passed_on():
    assert launch("--do=code").returncode == 3


def test_an_interrupt_is_one_line_and_waits_for_no_thread():
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHER, "--do=interrupt"], capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_an_interrupt_while_it_imports_is_one_line():
    program = "import launch\nraise {}"
    told = [
        subprocess.run([sys.executable, "-c", program.format(error)], capture_output=True, text=True, check=False)
        for error in ("KeyboardInterrupt", "ZeroDivisionError")
    ]
    assert (told[0].returncode, told[0].stderr) == (-signal.SIGINT, "interrupted\n")
    assert told[1].returncode == 1 and "Traceback" in told[1].stderr


@pytest.mark.parametrize(("then", "code", "told"), [("", 130, "interrupted"), ("launch.imported()", 1, "ImportError")])
def test_an_interrupt_while_modules_are_imported_reaches_none_of_them(then, code, told):
    program = f"""import os, signal, sys
sys.argv = ["-m"]  # as `python -m` has it while modules are looked for
signal.signal(signal.SIGINT, signal.default_int_handler)  # which tests in the background of a shell are not given
import launch
{then}
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    raise ImportError("what an extension module makes of it") from None
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == code and done.stderr.strip().split("\n")[-1].startswith(told)


def python(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


def test_what_a_launcher_imports_is_not_searched_for_garbage():
    program = """
import gc, sys
sys.argv[0] = "-m"
from launch import main
print(gc.isenabled())
main.run(lambda argv: print(gc.isenabled(), gc.get_freeze_count() > 10_000))
"""
    assert python("-c", program).stdout == "False\nTrue True\n"
    assert python("-c", "import gc, launch; print(gc.isenabled())").stdout == "True\n"


def test_help_imports_nothing_that_only_some_runs_need():
    done = python("-X", "importtime", "-m", "launch.train", "--help")
    imported = set(re.findall(r"\| +(\w+)$", done.stderr, re.MULTILINE))
    assert "optax" in imported, done.stderr
    assert not imported & {"grain", "matplotlib", "orbax", "sympy", "tensorboardX", "torch", "transformers"}


def test_a_server_without_its_extra_is_one_line():
    done = python("-c", "import sys; sys.modules['fastapi'] = None; import launch.serve")
    sentence = "error: a server needs the library fastapi: pip install 'internvl_jax[serve]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", sentence)


def test_help_is_no_error():
    done = launch("--help")
    assert done.returncode == 0 and "Helps." in done.stdout and "--do" in done.stdout


@pytest.mark.parametrize(
    ("launcher", "flags"),
    [
        ("train", ("--config:", "--distributed:", "--config.run.steps:", "--config.stage.clip_low:")),
        ("chat", ("--checkpoint:", "--dtype:", "--prompt:", "--[no]thinking:", "--coordinator:")),
        ("compare", ("--checkpoint:", "--reference:", "--coordinator:")),
    ],
)
def test_help_lists_flags_wherever_they_are_defined(launcher, flags):
    done = forks.python("-m", f"launch.{launcher}", "--help")
    listed = re.findall(r"^  (--\S+?:)", done.stdout, re.MULTILINE)
    assert done.returncode == 0 and not [flag for flag in flags if flag not in listed]
    once = [flag for flag in listed if not flag.startswith("--config.stage.")]  # which several stages may have
    assert len(once) == len(set(once))


def test_fields_of_a_config_are_flags():
    program = """
from launch import config, main
main.run(lambda argv: print(config.read().run.steps, config.read().data.pack), config.take)
"""
    command = ["-c", program, "--config=sft:tiny", "--config.run.steps", "7", "--config.data.pack"]
    done = forks.python(*command)
    assert (done.returncode, done.stdout) == (0, "7 True\n"), done.stderr
    done = forks.python(*command, "--config.run.stepz=1")
    assert done.returncode == 1 and done.stderr.startswith("error: --config.run.stepz: run has no field 'stepz' (did")
    assert done.stderr.count("\n") == 1


def test_a_flag_that_is_missing_is_named():
    done = forks.python("-m", "launch.inspect")
    assert done.stderr == "error: --checkpoint is missing; give it as --checkpoint=... (--help lists the flags)\n"


def test_fault_shows_its_traceback():
    done = launch("--do=fault")
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr and "Traceback" in done.stderr
    done = launch("--do=runtime")
    assert done.returncode == 1 and "RuntimeError: INTERNAL" in done.stderr and "Traceback" in done.stderr


def test_devices_of_a_cpu_have_threads_to_wait_in(monkeypatch):
    monkeypatch.delenv("NPROC")
    monkeypatch.setenv("XLA_FLAGS", "--xla_one --xla_force_host_platform_device_count=500")
    cpu_threads.provide()
    assert os.environ["NPROC"] == "2000"
    monkeypatch.setenv("NPROC", "3")  # somebody's own number stands
    cpu_threads.provide()
    assert os.environ["NPROC"] == "3"
    monkeypatch.delenv("NPROC")
    monkeypatch.setenv("XLA_FLAGS", "")
    cpu_threads.provide()
    assert "NPROC" not in os.environ
