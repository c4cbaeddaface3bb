"""A suite's file, opened: checked against the published one, rows as the official code names them, pictures at hand."""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from internvl_jax.data import DEFAULT_MAX_PIXELS, ImageConfig, images, tiling
from internvl_jax.errors import InputError
from internvl_jax.evaluation.suites import suite_prompts
from internvl_jax.evaluation.suites.place_scores import HEIGHT, WIDTH, split_of
from internvl_jax.evaluation.suites.predictions import Prediction
from internvl_jax.evaluation.suites.suite import Predicted, Suite
from internvl_jax.evaluation.suites.suite_prompts import Mode
from internvl_jax.evaluation.suites.suite_videos import FrameSource, VideoClip, clip_of, decode_frames
from internvl_jax.evaluation.suites.tsv import BenchmarkTable, Picture, TableRow, read_table, whole_index
from internvl_jax.validation import nearest

RELEASED_TILES = ImageConfig(448, 256, 1, 12, True, False, DEFAULT_MAX_PIXELS)
MAGNIFIED = 2  # times as large as its file, in width and height


class RuleCells(dict[str, str]):
    """Cells of a row, for a rule, which may miss one."""

    def __missing__(self, column: str) -> str:
        raise InputError(f"the table has no column {column!r}, which scoring needs; give the suite's own file.")


@dataclasses.dataclass(frozen=True)
class SuiteFile:
    """A benchmark file with what it is.

    Attributes:
      folders: where relative paths of pictures may begin.
      frames: of each video.
      is_published: whether it is the file whose md5 is published; None where none is.
      source: decodes frames of videos.
    """

    suite: Suite
    table: BenchmarkTable
    folders: tuple[pathlib.Path, ...]
    frames: int
    is_published: bool | None
    source: FrameSource = decode_frames

    def pictures(self, row: TableRow) -> list[Picture]:
        """The pictures of a row, or the frames of its video.

        Raises:
          InputError: see `BenchmarkTable.pictures`, `clip` and `decode_frames`.
        """
        if self.suite.has_pictures:
            return self.table.pictures(row, self.folders)
        return list(self.source(self.clip(row)))

    def clip(self, row: TableRow) -> VideoClip:
        """Which frames of which video a row is about; InputError where the video is not there."""
        return clip_of(self.suite.name, row.cells, self.frames, (self.table.path.parent, *self.folders))

    def known_by(self, mode: Mode) -> dict[str, Any]:
        """What the questions depend on, as it is kept beside answers."""
        shown = {} if self.suite.has_pictures else {"frames": self.frames}
        return {"suite": self.suite.name, "md5": self.table.md5, "mode": mode, **shown}

    @property
    def has_answers(self) -> bool:
        """Whether the table says what is right; tables of hidden tests don't."""
        return bool({"answer", "bbox", "bbox_x1", "correct_choice", "grading_query"} & set(self.table.columns))

    def prompts(self, mode: Mode) -> Iterator[dict]:
        """For each row its index, 'question' (the final text handed to chat), 'tiles' of each picture, 'system' and
        'generation'.

        Raises:
          InputError: a picture can't be read.
        """
        for row in self.table.rows:
            if self.suite.has_pictures:
                pictures = self.pictures(row)
                prompt = suite_prompts.prompt(self.suite, row, len(pictures), mode)
                with self._naming(row):
                    tiles = [
                        tiles_of(picture, prompt.limit, prompt.magnified and not place)
                        for place, picture in enumerate(pictures)
                    ]
            else:
                prompt, tiles = suite_prompts.prompt(self.suite, row, self.frames, mode), [1] * self.frames
            yield {
                "index": row.index,
                "question": prompt.question,
                "tiles": tiles,
                "system": prompt.system,
                "generation": suite_prompts.generation(mode),
            }

    def named(self, predictions: Mapping[str, Prediction]) -> dict[str, Prediction]:
        """Predictions by the names that rows have here: a table's index may be 01, and a file of predictions call it 1
        or the other way round.

        Raises:
          InputError: two predictions to one row.
        """
        known, found = {row.index for row in self.table.rows}, dict[str, Prediction]()
        for index, each in predictions.items():
            own = index if index in known else whole_index(index)
            if own in found:
                raise InputError(f"the predictions have the row {own!r} twice; remove one.")
            found[own] = each
        return found

    def predicted(self, texts: Mapping[str, str], questions: Mapping[str, str]) -> list[Predicted]:
        """The answered rows, in the order of the table.

        Args:
          texts: answers by index.
          questions: what they answer, by index, where that is known.

        Raises:
          InputError: answers to rows that the table doesn't have, or to other questions.
        """
        known = {row.index: row for row in self.table.rows}
        if strange := [index for index in texts if index not in known]:
            raise InputError(
                f"the predictions have the row {strange[0]!r}{nearest(strange[0], sorted(known))}, which is not in "
                f"{self.table.path}; give those of {self.suite.name}."
            )
        rows = [(place, row) for place, row in enumerate(self.table.rows) if row.index in texts]
        pairs = [(row.cells["question"], questions[row.index]) for _, row in rows if row.index in questions]
        asked = [ours.split() == theirs.split() for ours, theirs in pairs]
        if not rows or (asked and not any(asked)):
            raise InputError(f"no question of {self.table.path} has a prediction; give those of {self.suite.name}.")
        return [Predicted(row.index, self._cells(row), row.options, texts[row.index], place) for place, row in rows]

    def _cells(self, row: TableRow) -> Mapping[str, str]:
        cells = RuleCells(row.cells)
        if self.suite.kind == "GUI":
            picture, *_ = self.pictures(row)
            with self._naming(row):
                width, height = images.image_size(picture, RELEASED_TILES)
            cells |= {WIDTH: str(width), HEIGHT: str(height)}
        return cells

    @contextlib.contextmanager
    def _naming(self, row: TableRow) -> Iterator[None]:
        """Errors about a picture say whose it is."""
        try:
            yield
        except InputError as error:
            raise InputError(f"{self.table.path}, row {row.index}: {error}") from None


def open_suite(
    suite: Suite,
    data: str | os.PathLike,
    folder: str | os.PathLike | None = None,
    frames: int = 8,
    strict: bool = False,
    source: FrameSource = decode_frames,
) -> SuiteFile:
    """Reads a suite's file.

    Args:
      data: the file, or the folder that NAME.tsv is in.
      folder: where its pictures lie, if they aren't in it.
      frames: of each video.
      source: decodes frames of videos.
      strict: refuse another file than the published one, where its md5 is known.

    Raises:
      InputError: see `read_table`; or the wrong md5.
    """
    path = pathlib.Path(data)
    path = path / f"{suite.name}.tsv" if path.is_dir() else path
    name = (lambda index, cells: f"{split_of(cells)}_{index}") if suite.name == "RefCOCO" else None
    table = read_table(path, suite.has_pictures, name)
    is_published = table.md5.startswith(suite.md5) if suite.md5 else None
    if is_published is False and strict:
        raise InputError(
            f"{path} is not the published {suite.name}: its md5 is {table.md5[:8]}..., not {suite.md5}...; "
            "download it again."
        )
    beside = path.parent / "images"
    own = [beside / (suite.folder or suite.name), beside] if folder is None else [pathlib.Path(folder)]
    return SuiteFile(suite, table, tuple(own), frames, is_published, source)


def tiles_of(picture: Picture, limit: int, magnified: bool) -> int:
    """Tiles of a picture with released settings, its thumbnail included, from its header alone."""
    width, height = images.image_size(picture, RELEASED_TILES)
    scale = MAGNIFIED if magnified else 1
    return tiling.num_tiles(scale * width, scale * height, tiling.limit_tiles(RELEASED_TILES, limit))
