"""What survives a kill, and what is shown meanwhile: whole files, the time that was spent, bars."""

import contextlib
import json
import pathlib
import sys
import threading
import time
from collections.abc import Iterator

from tqdm import tqdm

from internvl_jax.files import whole_file

BEAT = 2.0  # seconds: a kill may forget so much of the time that was spent


def write_whole(path: pathlib.Path, text: str) -> None:
    """The file appears under its name once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        temporary.write_text(text)


@contextlib.contextmanager
def clock(folder: pathlib.Path, part: str) -> Iterator[None]:
    """Adds the time spent within to `FOLDER/seconds/PART.json`, over all runs until the part ends once; a part that
    has ended before takes no time, however long it is looked at.
    """
    path = folder / "seconds" / f"{part}.json"
    spent = json.loads(path.read_text()) if path.exists() else {"seconds": 0.0, "ended": False}
    if spent["ended"]:
        yield
        return
    started, stopped = time.perf_counter(), threading.Event()

    def note(ended: bool) -> None:
        seconds = spent["seconds"] + time.perf_counter() - started
        write_whole(path, json.dumps({"seconds": round(seconds, 2), "ended": ended}) + "\n")

    def beat() -> None:
        while not stopped.wait(BEAT):
            note(ended=False)

    thread, ended = threading.Thread(target=beat, daemon=True), False
    thread.start()
    try:
        yield
        ended = True
    finally:
        stopped.set()
        thread.join()
        note(ended)


def seconds(folder: pathlib.Path) -> dict[str, float]:
    """The seconds of every part that has begun."""
    return {path.stem: json.loads(path.read_text())["seconds"] for path in sorted(folder.glob("seconds/*.json"))}


def bar(what: str, total: int) -> tqdm:
    """A progress bar on a terminal, one line elsewhere."""
    if not sys.stderr.isatty():
        print(f"{what}: {total}", file=sys.stderr, flush=True)
    return tqdm(total=total, desc=what, file=sys.stderr, disable=None)
