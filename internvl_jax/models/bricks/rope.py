"""Rotary position embeddings, half-split: plain, YaRN and dynamic NTK for texts longer than those of the training.

A rope is a brick: `(positions_BT, segments_BT) -> (cosines, sines)`, float32 `[B, 1, T, H/2]`: bfloat16 rounds 257 to
256, and sin of the two differs widely.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from internvl_jax.models.config import NtkConfig, TextConfig, YarnConfig

Table = tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class PlainRope:
    """The i-th pair of a head turns by theta^(-2i / H) a position."""

    head_width: int
    theta: float

    def __call__(self, positions_BT: jax.Array, segments_BT: jax.Array) -> Table:
        return _table(positions_BT, jnp.asarray(_inverse(self.head_width, self.theta))[None, None, None, :])


@dataclasses.dataclass(frozen=True)
class YarnRope:
    """Slow rotations are slowed by `factor`, fast ones stay, a ramp between (arXiv 2309.00071, section 3.2).

    The bounds of the ramp are not rounded, as GPT-OSS has it.
    """

    head_width: int
    theta: float
    yarn: YarnConfig

    def __call__(self, positions_BT: jax.Array, segments_BT: jax.Array) -> Table:
        scale = 0.1 * math.log(self.yarn.factor) + 1
        cos, sin = _table(positions_BT, jnp.asarray(self._slowed())[None, None, None, :])
        return cos * scale, sin * scale

    def _slowed(self) -> np.ndarray:
        inverse, yarn = _inverse(self.head_width, self.theta), self.yarn
        low, high = max(self._place(yarn.beta_fast), 0), min(self._place(yarn.beta_slow), self.head_width - 1)
        ramp = np.clip((np.arange(self.head_width // 2, dtype=np.float32) - low) / (high - low), 0, 1)
        return (inverse / yarn.factor * ramp + inverse * (1 - ramp)).astype(np.float32)

    def _place(self, rotations: float) -> float:
        """Index of the frequency that turns so often over the first training's context."""
        turns = math.log(self.yarn.positions / (rotations * 2 * math.pi))
        return self.head_width * turns / (2 * math.log(self.theta))


@dataclasses.dataclass(frozen=True)
class NtkRope:
    """Plain up to the context of the training; in a longer text of L tokens the base of all positions is

        theta * (factor * L / positions - (factor - 1)) ^ (H / (H - 2)).

    Source: InternLM2's released code and transformers 4.55 (`rope_type` "dynamic"). L is counted when the model runs,
    not when it is compiled: the position of a segment's last token in this call, plus one. So a packed sample, or a row
    beside longer ones, is rotated as if it were alone, where the released code takes the longest of a batch. A call
    with a cache rotates its own tokens by the length that the text then has, and keys in the cache keep the rotation
    they were written with: also the released code's way, so that beyond the context of the training the answer token
    by token is not that of one pass over everything, there as here. The released code further keeps the longest
    base that it has met for shorter texts that follow; nothing is kept here.
    """

    head_width: int
    theta: float
    ntk: NtkConfig

    def __call__(self, positions_BT: jax.Array, segments_BT: jax.Array) -> Table:
        # With exponents from 0 to 1: theta^-e times growth^-e', so that neither power loses what float32 holds.
        exponents = np.arange(0, self.head_width, 2, dtype=np.float32) / np.float32(self.head_width - 2)
        lengths_BT = _lengths(positions_BT, segments_BT).astype(jnp.float32)
        growth_BT = jnp.maximum(self.ntk.factor * lengths_BT / self.ntk.positions - (self.ntk.factor - 1), 1.0)
        slowed = growth_BT[:, None, :, None] ** -jnp.asarray(exponents)[None, None, None, :]
        inverse = jnp.asarray(_inverse(self.head_width, self.theta))
        return _table(positions_BT, slowed * inverse[None, None, None, :])


Rope = PlainRope | YarnRope | NtkRope


def make_rope(config: TextConfig) -> Rope:
    if config.yarn is not None:
        return YarnRope(config.head_width, config.rope_theta, config.yarn)
    if config.ntk is not None:
        return NtkRope(config.head_width, config.rope_theta, config.ntk)
    return PlainRope(config.head_width, config.rope_theta)


def apply_rope(x_BNTH: jax.Array, table: Table) -> jax.Array:
    """Rotates (x[i], x[i + H/2]) by the position's i-th angle, in float32."""
    cos, sin = table
    low, high = jnp.split(x_BNTH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1).astype(x_BNTH.dtype)


def _inverse(head_width: int, theta: float) -> np.ndarray:
    return theta ** -(np.arange(0, head_width, 2, dtype=np.float32) / np.float32(head_width))


def _table(positions_BT: jax.Array, inverse: jax.Array) -> Table:
    angles = positions_BT.astype(jnp.float32)[:, None, :, None] * inverse
    return jnp.cos(angles), jnp.sin(angles)


def _lengths(positions_BT: jax.Array, segments_BT: jax.Array) -> jax.Array:
    """For every token the position of the last one of its segment, plus one. Tokens of a segment stand together, in
    the order of their positions."""
    T = positions_BT.shape[1]
    ends_BT = jnp.concatenate([segments_BT[:, 1:] != segments_BT[:, :-1], jnp.ones_like(segments_BT[:, :1], bool)], 1)
    last_BT = jax.lax.cummin(jnp.where(ends_BT, jnp.arange(T)[None], T), axis=1, reverse=True)
    return jnp.take_along_axis(positions_BT, last_BT, axis=1) + 1
