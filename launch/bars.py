"""How launchers show how far they are."""

import sys
from collections.abc import Callable
from typing import Any

import tqdm


def questions(**options: Any) -> tqdm.tqdm:
    """A bar for a terminal; elsewhere a line every half minute."""
    seen = sys.stderr.isatty()
    return tqdm.tqdm(unit="question", mininterval=0.1 if seen else 30, ascii=not seen, **options)


def advance(bar: tqdm.tqdm) -> Callable[[int], None]:
    """A function that moves a bar to how many are done."""

    def move(done: int) -> None:
        bar.update(done - bar.n)

    return move
