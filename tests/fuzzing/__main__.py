"""python -m tests.fuzzing [--inputs=20000] [--seed=0] [--only=meta,lines]

Gives nearly right inputs to every door of the project (`targets`). An input may be taken, or refused with an
`InputError` or `OSError`, which launchers turn into one line. Faults are other exceptions, inputs that take over ten
seconds or two gigabytes, processes that die, and values taken that no run can have. The last line of stdout is JSON;
exit code 1 if there is any fault. A fault's number brings it back: --only=TARGET --first=NUMBER --inputs=1.
"""

import argparse
import json
import os
import pathlib
import random
import resource
import signal
import sys
import tempfile
import traceback
import zlib

from internvl_jax.errors import InputError
from tests.fuzzing.targets import TARGETS

SECONDS, BYTES = 10, 2 << 30


class Late(BaseException):
    pass


def _late(*_: object) -> None:
    raise Late


def attempts(name: str, first: int, last: int, seed: int, report: int) -> None:
    """Runs inputs first..last-1 of a target in this process; writes every input's number, and faults, to `report`."""
    target = TARGETS[name]
    say = lambda **values: os.write(report, (json.dumps(values) + "\n").encode())
    with tempfile.TemporaryDirectory() as folder:
        made = target.prepare(pathlib.Path(folder))  # what it raises ends this process, and is told as such
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + BYTES, resource.RLIM_INFINITY))
        signal.signal(signal.SIGALRM, _late)
        for number in range(first, last):
            say(number=number)
            rng = random.Random(zlib.crc32(f"{seed} {name} {number}".encode()))
            signal.alarm(SECONDS)
            try:
                target.attempt(rng, pathlib.Path(folder), made)
            except (InputError, OSError) as error:
                signal.alarm(0)
                if "\n" in str(error) or len(str(error)) > 2000:
                    say(number=number, fault="an error that is no sentence", at=str(error)[:300])
            except Late:
                say(number=number, fault=f"over {SECONDS} s", at=traceback.format_exc(limit=-3)[-600:])
            except BaseException as error:
                say(
                    number=number,
                    fault=f"{type(error).__name__}: {str(error)[:200]}",
                    at=traceback.format_exc(limit=-3)[-600:],
                )
            signal.alarm(0)


def run(name: str, first: int, last: int, seed: int) -> list[dict]:
    """Runs the inputs of a target in child processes, going on after each that dies."""
    faults = []
    while first < last:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what libraries print of faults is not ours
            attempts(name, first, last, seed, writer)
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as lines:
            entries = [json.loads(line) for line in lines]
        _, status = os.waitpid(child, 0)
        faults += [entry for entry in entries if "fault" in entry]
        reached = entries[-1]["number"] if entries else first
        if status == 0:
            break
        faults.append({"number": reached, "fault": f"the process ended with status {status}", "at": ""})
        first = reached + 1
    return [{"target": name, **fault} for fault in faults]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(TARGETS))
    given = parser.parse_args()
    names = given.only.split(",")
    shares = sum(TARGETS[name].share for name in names)
    done, faults = 0, []
    for name in names:
        count = -(-given.inputs * TARGETS[name].share // shares)
        found = run(name, given.first, given.first + count, given.seed)
        done, faults = done + count, faults + found
        print(f"{name}: {count} inputs, {len(found)} faults", flush=True)
        kinds: dict[str, list[dict]] = {}
        for fault in found:
            kinds.setdefault(fault["fault"].partition(":")[0] + fault["at"].rpartition("File ")[2][:80], []).append(
                fault
            )
        for same in kinds.values():
            print(f"  {len(same)} as {same[0]['number']}: {same[0]['fault']}\n{same[0]['at']}", flush=True)
    print(json.dumps({"inputs": done, "faults": len(faults)}))
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
