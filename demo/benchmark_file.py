"""The test's questions as a benchmark file of VLMEvalKit's form, of which `launch.evaluate` makes the same accuracy."""

import base64
import csv
import os
import pathlib

from demo import easy_vqa
from internvl_jax.files import whole_file

_COLUMNS = ("index", "image", "question", "answer", "category")


def write(path: str | os.PathLike) -> int:
    """Writes the table (TSV); a picture stands in the row of the first question about it, the others name that row.

    Returns:
      how many questions there are.
    """
    questions, pictures, first = easy_vqa.questions("test"), easy_vqa.image_paths("test"), dict[int, int]()
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(_COLUMNS)
        for index, question in enumerate(questions):
            held = first.setdefault(question.image, index)
            encoded = base64.b64encode(pictures[question.image].read_bytes()).decode() if held == index else str(held)
            table.writerow([index, encoded, question.text, question.answer, easy_vqa.kind(question)])
    return len(questions)
