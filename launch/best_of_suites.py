"""Best-of-N on the paper's benchmark files."""

import pathlib
from collections.abc import Sequence
from typing import Any

from internvl_jax.data import Messages
from internvl_jax.evaluation import BestOfFiles, SuiteFile, messages, write_chosen
from internvl_jax.inference import SamplingParams, Thresholds
from launch import best_of_answers, best_of_flags, suite_flags


def answer(
    suites: Sequence[SuiteFile],
    folder: pathlib.Path,
    batch: int,
    sampling: SamplingParams,
    thresholds: Thresholds,
    settings: dict[str, Any],
) -> None:
    """Writes candidates, choices and what is scored: NAME.candidates.jsonl, NAME.choices.jsonl and NAME.jsonl.

    Args:
      sampling: as flags have it.
      settings: see `write_chosen`.
    """
    sampling = best_of_flags.drawn(sampling)
    found = [_files(file, folder, batch) for file in suites]
    best_of_answers.write(found, sampling, thresholds)
    known = settings | {"best_of": best_of_flags.BEST_OF.value, "by": best_of_flags.chosen_by()}
    for file, files in zip(suites, found, strict=True):
        answers = {index: chosen.answer for index, chosen in files.read().items()}
        target, mode = folder / f"{file.suite.name}.jsonl", suite_flags.mode()
        write_chosen(file, mode, target, answers, known, batch)


def _files(file: SuiteFile, folder: pathlib.Path, batch: int) -> BestOfFiles:
    rows, mode = {row.index: row for row in file.table.rows}, suite_flags.mode()

    def asked(index: str) -> Messages:
        return messages(file, rows[index], mode)

    return BestOfFiles(folder / file.suite.name, list(rows), asked, file.known_by(mode), batch)
