"""The cascade's data, in the released formats.

    FOLDER/images/NAME/NUMBER.png      boards, and single boxes for CPT
    FOLDER/boxes.jsonl, boards.jsonl   for CPT: pictures and the digits in them
    FOLDER/reading.jsonl               the same as conversations
    FOLDER/sums.jsonl                  text alone, `14+7=21.`
    FOLDER/chains.jsonl                for SFT: questions, answered with a chain of thought
    FOLDER/rl.jsonl                    prompts of MPO and GSPO: final answers alone
    FOLDER/answers.jsonl               for ViCO, written later: right answers that the GSPO model gave to these
    FOLDER/dev.jsonl, test.jsonl       questions about digits that nothing above has
    FOLDER/tokenizer                   a byte-level BPE of these texts

The folder appears under its name once it is whole, and the same settings always give the same files. Whose settings a
cascade's are is noted in its own folder (`run`).
"""

import json
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image

from cascade import boards, questions
from cascade.boards import Board, BoardLayout, Split
from cascade.recipe import Data
from internvl_jax.data import INTERNVL2_5, Tokenizer, train_bpe
from internvl_jax.files import whole_folder

# Their places number random streams; boards of two files never share one.
FILES = ("boxes", "boards", "reading", "chains", "rl", "dev", "test")
_BOX_HOLDINGS = (0, 1, 1, 1, 1, 1, 2, 3, 4, 4, 4)  # single boxes of CPT


def write(folder: pathlib.Path, data: Data, progress: Callable[[], object]) -> None:
    """Writes all files, unless the folder is there already; `progress` is called after every file."""
    if folder.exists():
        return
    with whole_folder(folder) as partial:
        for name in FILES:
            (partial / "images" / name).mkdir(parents=True)
            with (partial / f"{name}.jsonl").open("w") as file:
                for number in range(getattr(data, name)):
                    board = make(name, number, data.seed)
                    image = f"{name}/{number}.png"
                    Image.fromarray(board.picture_HW).save(partial / "images" / image, compress_level=1)
                    file.write(json.dumps(entry(name, number, image, board)) + "\n")
            progress()
        with (partial / "sums.jsonl").open("w") as file:
            for text in sums(data.sums, data.seed):
                file.write(json.dumps({"conversations": [{"from": "pretrain", "value": text}]}) + "\n")
        (partial / "tokenizer").mkdir()
        train_tokenizer(data.vocab).save(partial / "tokenizer")


def meta(folder: pathlib.Path, names: Sequence[str]) -> dict[str, dict]:
    """A meta file of conversations and transcripts: these files of the folder."""
    root, files = str(folder / "images"), {name: str(folder / f"{name}.jsonl") for name in names}
    return {name: {"root": root, "annotation": file, "data_augment": False} for name, file in files.items()}


def make(name: str, number: int, seed: int) -> Board:
    """Board `number` of a file: a function of these three alone."""
    rng = np.random.default_rng((seed, FILES.index(name), number))
    layout = boards.random_layout(rng)
    if name == "boxes":
        layout = BoardLayout(1, 1, (_BOX_HOLDINGS[rng.integers(len(_BOX_HOLDINGS))],))
    held_out: dict[str, Split] = {"dev": "dev", "test": "test"}
    return boards.draw(layout, held_out.get(name, "train"), rng)


def entry(name: str, number: int, image: str, board: Board) -> dict:
    """A line of the file `name`."""
    height, width = board.picture_HW.shape
    sized = {"id": image, "image": image, "width": width, "height": height}
    if name in ("boxes", "boards"):
        return {**sized, "conversations": [{"from": "pretrain", "value": f"<image>\n{transcript(board)}"}]}
    kinds = list(questions.KINDS)
    asked = questions.ask(questions.READ if name == "reading" else kinds[number % len(kinds)], board.digits)
    if name in ("reading", "chains"):
        turns = [{"from": "human", "value": f"<image>\n{asked.text}"}, {"from": "gpt", "value": asked.response}]
        return {**sized, "conversations": turns}
    return {"image": f"images/{image}", "question": asked.text, "answer": asked.answer}


def sums(count: int, seed: int) -> list[str]:
    """A running total, a digit more, and what that makes; totals up to the largest that a board can have."""
    most = 9 * max(map(sum, boards.HOLDINGS))
    rng = np.random.default_rng(seed)
    totals, more = rng.integers(most - 8, size=count), rng.integers(10, size=count)
    return [f"{total}+{digit}={total + digit}." for total, digit in zip(totals, more, strict=True)]


def transcript(board: Board) -> str:
    """All digits in reading order, and a stop."""
    return questions.joined(board.digits) + "."


def train_tokenizer(vocab: int) -> Tokenizer:
    """A vocabulary in which the words of the questions, and the parts of the template's system text, are one token."""

    def texts() -> Iterator[str]:
        for kind in (questions.READ, *questions.KINDS):
            asked = questions.ask(kind, (3, 8))
            yield f"system\n{INTERNVL2_5.default_system}\nuser\n{asked.text}\nassistant\n{asked.response}"
            yield "0."

    return train_bpe(texts(), vocab)
