"""Rows of samples as a teacher sees them and as a student does: the same texts about the same tiles, some of which the
student sees with fewer tokens.

1. The teacher's row is a row of plain samples (`batch.assemble_row`), every tile at full resolution.
2. For every sample the student has one text or several, each with tiles of its own choice compressed. A compressed tile
   keeps the first of its image tokens, the other tokens stay; positions count the tokens that are left.
3. `teacher_BT` says where in the teacher's row each of the student's tokens stands: the same is predicted there.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np

from internvl_jax.data.rows.batch import Batch, RowConfig, Sample, assemble_row

Probe = Literal["one", "all"]  # which tiles are compressed together
Rate = Literal["picture", "tile"]  # what is drawn to be compressed or not


class Views(NamedTuple):
    """Attributes:
    rows: the teacher's rows, with the tiles of both.
    student: the student's texts, without tiles of their own: `slots_BJ` point at tiles of the teacher's same row.
    teacher_BT: int32, for every token of the student its place in the teacher's row; 0 in padding.
    compress_BJ: bool, for every slot of the student whether its tile is compressed.
    measured_G2: int32, for every tile two of the student's texts in its row, counted from 0: one where it is compressed
      and one where nothing is; -1 where a tile is not measured.
    """

    rows: Batch
    student: Batch
    teacher_BT: np.ndarray
    compress_BJ: np.ndarray
    measured_G2: np.ndarray

    @property
    def texts(self) -> Batch:
        """What the trained model reads."""
        return self.student


class RowLayout(Protocol):
    """What a row of a run holds of its samples."""

    def lengths(self, tokens_I: np.ndarray, tiles_I: np.ndarray) -> np.ndarray:
        """Tokens that samples take of a row's budget; 0 for a sample that is of no use."""
        ...

    def assemble(self, samples: Sequence[Sample], rngs: Sequence[np.random.Generator], config: RowConfig) -> NamedTuple:
        """A row (B = 1) of these samples; each has random numbers of its own."""
        ...


@dataclasses.dataclass(frozen=True)
class PlainRows:
    """Samples one after another."""

    def lengths(self, tokens_I: np.ndarray, tiles_I: np.ndarray) -> np.ndarray:
        return tokens_I

    def assemble(self, samples: Sequence[Sample], rngs: Sequence[np.random.Generator], config: RowConfig) -> Batch:
        return assemble_row(samples, config)


@dataclasses.dataclass(frozen=True)
class Rates:
    """The student sees every picture at a rate of its own, full or compressed with equal chance. All tiles of a picture
    share its rate, the thumbnail included. Or else every tile has one of its own, as a router will give it: a share is
    drawn for the picture, then each tile is compressed with that chance, so that any number of them is equally likely.

    Source: InternVL3.5 paper, section 2.3 (consistency training).
    """

    compressed: int  # how many tokens a compressed tile has
    of: str = "picture"  # what has a rate of its own: every "picture" or every "tile"

    def lengths(self, tokens_I: np.ndarray, tiles_I: np.ndarray) -> np.ndarray:
        return tokens_I

    def assemble(self, samples: Sequence[Sample], rngs: Sequence[np.random.Generator], config: RowConfig) -> Views:
        compress = []
        for sample, rng in zip(samples, rngs, strict=True):
            if self.of == "picture":
                compress_G = np.repeat(rng.integers(2, size=len(sample.images)) == 1, sample.images)
            else:
                share_G = np.repeat(rng.random(len(sample.images)), sample.images)
                compress_G = rng.random(len(share_G)) < share_G
            compress.append(compress_G[None])
        return view(samples, compress, config, config.token_budget, self.compressed, slots=config.tile_budget)


@dataclasses.dataclass(frozen=True)
class Probes:
    """The student sees every sample once in full, and again with tiles compressed, to measure what that costs.

    Samples without a picture are left out. A sample with N probes is planned with N + 1 times its tokens (what its
    probes save is left empty), so at least twice: the teacher's row is half as long as the student's.
    """

    compressed: int  # how many tokens a compressed tile has
    probe: str  # "one": every probed tile in a text of its own; "all": all tiles of a sample in one
    most: int  # how many tiles of a sample are probed at a visit, drawn anew each time; 0: every one

    def lengths(self, tokens_I: np.ndarray, tiles_I: np.ndarray) -> np.ndarray:
        probes_I = self._probed(tiles_I) if self.probe == "one" else np.minimum(tiles_I, 1)
        return np.where(tiles_I > 0, (probes_I + 1) * tokens_I.astype(np.int64), 0)

    def assemble(self, samples: Sequence[Sample], rngs: Sequence[np.random.Generator], config: RowConfig) -> Views:
        compress = []
        for sample, rng in zip(samples, rngs, strict=True):
            G = len(sample.tiles_GHWC)
            probed = np.sort(rng.permutation(G)[: self._probed(np.array(G))])
            alone_XG = np.arange(G)[None] == probed[:, None]
            probes_XG = alone_XG if self.probe == "one" else alone_XG.any(axis=0, keepdims=True)
            compress.append(np.concatenate([np.zeros((1, G), bool), probes_XG]))
        shorter = dataclasses.replace(config, token_budget=config.token_budget // 2)
        slots = config.token_budget // self.compressed
        return view(samples, compress, shorter, config.token_budget, self.compressed, slots)

    def _probed(self, tiles_I: np.ndarray) -> np.ndarray:
        return np.minimum(tiles_I, self.most) if self.most else tiles_I


def kept(tokens_T: np.ndarray, compress_G: np.ndarray, image_token_id: int, full: int, compressed: int) -> np.ndarray:
    """bool [T]: the tokens of a text that stay.

    Args:
      tokens_T: the text, with as many image tokens as all tiles have at full resolution.
      compress_G: for every tile, in the order of the image tokens, whether it is compressed.
      full, compressed: how many tokens a tile has, and a compressed one.
    """
    image_T = tokens_T == image_token_id
    tile, place = np.divmod(np.cumsum(image_T)[image_T] - 1, full)
    kept_T = np.ones(len(tokens_T), bool)
    kept_T[image_T] = ~compress_G[tile] | (place < compressed)
    return kept_T


def view(
    samples: Sequence[Sample],
    compress: Sequence[np.ndarray],
    config: RowConfig,
    student_budget: int,
    compressed: int,
    slots: int,
) -> Views:
    """One row.

    Args:
      samples: the row's samples, each of one text.
      compress: for every sample bool [X, G]: the tiles that are compressed in each of the student's X texts. If there
        are several, nothing is compressed in the first.
      config: the sizes of the teacher's row.
      student_budget: how many tokens the student's row holds.
      compressed: how many tokens a compressed tile has.
      slots: how many places for tiles the student's row has; the tiles of all texts have to fit.
    """
    rows = assemble_row(samples, config)
    views = _empty(rows, student_budget, slots)
    start = tile = end = segment = slot = 0
    for sample, compress_XG in zip(samples, compress, strict=True):
        tiles_G = np.arange(tile, tile + len(sample.tiles_GHWC))
        full = segment
        for compress_G in compress_XG:
            kept_T = kept(sample.tokens_T, compress_G, config.image_token_id, config.tokens_per_tile, compressed)
            teacher_T = start + np.flatnonzero(kept_T)
            _lay(views, teacher_T, end, segment + 1)
            views.student.slots_BJ[0, slot : slot + len(tiles_G)] = tiles_G
            views.compress_BJ[0, slot : slot + len(tiles_G)] = compress_G
            if segment > full:
                views.measured_G2[tiles_G[compress_G]] = (segment, full)
            end, segment, slot = end + len(teacher_T), segment + 1, slot + len(tiles_G)
        start, tile = start + len(sample.tokens_T), tile + len(tiles_G)
    return views


def _lay(views: Views, teacher_T: np.ndarray, start: int, segment: int) -> None:
    """Writes one of the student's texts: the teacher's tokens at these places."""
    rows, student, end = views.rows, views.student, start + len(teacher_T)
    student.tokens_BT[0, start:end] = rows.tokens_BT[0, teacher_T]
    student.targets_BT[0, start : end - 1] = rows.tokens_BT[0, teacher_T[1:]]
    student.weights_BT[0, start:end] = rows.weights_BT[0, teacher_T]
    student.segments_BT[0, start:end] = segment
    student.positions_BT[0, start:end] = np.arange(end - start)
    views.teacher_BT[0, start:end] = teacher_T


def _empty(rows: Batch, student_budget: int, slots: int) -> Views:
    shape = (1, student_budget)
    student = Batch(
        tokens_BT=np.zeros(shape, np.int32),
        targets_BT=np.zeros(shape, np.int32),
        weights_BT=np.zeros(shape, np.float32),
        segments_BT=np.zeros(shape, np.int32),
        positions_BT=np.zeros(shape, np.int32),
        tiles_GHWC=None,
        tile_mask_G=None,
        slots_BJ=np.full((1, slots), -1, np.int32),
    )
    return Views(
        rows,
        student,
        teacher_BT=np.zeros(shape, np.int32),
        compress_BJ=np.zeros((1, slots), bool),
        measured_G2=np.full((len(rows.tile_mask_G), 2), -1, np.int32),
    )
