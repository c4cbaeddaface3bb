"""MXFP4, the format of GPT-OSS's released experts: 4-bit floats in blocks of 32 that share a scale.

1. Two values lie in a byte, the low half first: a sign, two bits of exponent, one of mantissa (E2M1).
2. A scale is a byte s (E8M0): its block is multiplied by 2^(s - 127); 255 means that the block holds no numbers.
3. bfloat16 holds every product exactly, so dequantising rounds nothing.

Source: OCP Microscaling Formats (MX) specification 1.0 for the numbers; the order within a byte is the released files'.
"""

import dataclasses
import functools
from collections.abc import Sequence

import ml_dtypes
import numpy as np
from einops import rearrange

from checkpoint_convert.rows import Row

_BLOCK = 32  # values that share a scale
_BYTES = _BLOCK // 2
_MAGNITUDES = (0, 0.5, 1, 1.5, 2, 3, 4, 6)
_BIAS, _NO_NUMBERS = 127, 255  # of scales


def dequantize(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """uint8 blocks `[..., n, 16]` and their scales `[..., n]` -> bfloat16 `[..., 32 * n]`, exactly.

    What bfloat16 can't hold, as it is beyond its range or no number, comes out as an infinity or NaN.
    """
    places = np.left_shift(scales, 8, dtype=np.uint16)[..., None] | blocks
    values = _pairs().take(places).view(ml_dtypes.bfloat16)
    return values.reshape(*scales.shape[:-1], scales.shape[-1] * _BLOCK)


@dataclasses.dataclass(frozen=True)
class Mxfp4Row(Row):
    """Reads a parameter from SOURCE_blocks and SOURCE_scales; the pattern's last axis is the one that has blocks.

    It only reads: checkpoints are written in bfloat16, by the plain row of the same target.
    """

    @property
    def templates(self) -> tuple[str, ...]:
        return f"{self.source}_blocks", f"{self.source}_scales"

    @property
    def in_bytes(self) -> bool:
        return True

    def dtype(self, stored: Sequence[np.dtype]) -> np.dtype:
        return np.dtype(ml_dtypes.bfloat16)

    def source_shapes(self, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        *outer, width = self.source_shape(shape)
        count = -(-width // _BLOCK)
        return [(*outer, count, _BYTES), (*outer, count)]

    def read(
        self, tensors: Sequence[np.ndarray], shape: tuple[int, ...], index: tuple[slice, ...], out: np.ndarray
    ) -> None:
        """Dequantises the blocks that the slice touches and no others, one entry of its first axis after the other."""
        left, right = self.pattern.split("->")
        *outer, width = shape[self.stacked_axes :]
        sizes = dict(zip(right.split()[:-1], outer, strict=True))
        start, stop, _ = index[-1].indices(width)
        first, last = start // _BLOCK, -(-stop // _BLOCK)
        touched = (*index[:-1], slice(first, last))
        blocks, scales = (rearrange(tensor, f"{left} ... -> {right} ...", **sizes)[touched] for tensor in tensors)
        for piece, *packed in zip(out, blocks, scales, strict=True):
            piece[...] = dequantize(*packed)[..., start - first * _BLOCK : stop - first * _BLOCK]


@functools.cache
def _pairs() -> np.ndarray:
    """uint32 [65536]: the two bfloat16 of every byte under every scale, at 256 * scale + byte."""
    magnitudes = np.array(_MAGNITUDES, np.float32)
    values = np.concatenate([magnitudes, -magnitudes])
    low, high = np.tile(values, 16), np.repeat(values, 16)
    exponents = np.arange(256, dtype=np.int32)[:, None, None] - _BIAS
    with np.errstate(over="ignore"):
        pairs = np.ldexp(np.stack([low, high], axis=-1), exponents)
    pairs[_NO_NUMBERS] = np.nan
    return pairs.astype(ml_dtypes.bfloat16).reshape(-1).view(np.uint32)
