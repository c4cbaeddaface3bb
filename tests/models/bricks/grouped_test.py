"""Grouped products: CPU's loop, TPU's kernels (interpreted) and XLA's own, against one product a group."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvl_jax.models.bricks import grouped

SIZES = np.array([0, 5, 0, 11], np.int32)  # of 24 rows: eight belong to no group
ROWS, IN, OUT = 24, 9, 6


@pytest.mark.parametrize(("first", "weights"), [(0, len(SIZES)), (3, 9)])
@pytest.mark.parametrize("platform", ["cpu", "tpu", "gpu"])
def test_a_product_for_every_group(monkeypatch, platform, first, weights):
    monkeypatch.setattr(grouped, "platform", lambda: platform)
    monkeypatch.setattr(grouped, "meshed", lambda: True)
    monkeypatch.setattr(grouped, "_BLOCK", 4)
    kernels = importlib.import_module("jax.experimental.pallas.ops.tpu.megablox.gmm")
    for name in ("gmm", "tgmm"):
        monkeypatch.setattr(kernels, name, functools.partial(getattr(kernels, name), interpret=True))
    monkeypatch.setattr(grouped, "ROWS", 16)  # of which 24 rows are no multiple
    monkeypatch.setattr(grouped, "_tiles", lambda *sizes: (8, 8, 8))
    rng = np.random.default_rng(0)
    x, w, g = (rng.normal(size=shape).astype(np.float32) for shape in ((ROWS, IN), (weights, OUT, IN), (ROWS, OUT)))
    real_U1 = (np.arange(ROWS) < SIZES.sum())[:, None]
    group_R = np.append(np.repeat(np.arange(len(SIZES)), SIZES), np.zeros(ROWS - SIZES.sum(), int))

    def loss(product, x, w):
        y = jnp.where(real_U1, product(jnp.where(real_U1, x, 0), w), 0)
        return jnp.sum(y * g), y

    ours = lambda x, w: grouped.grouped_product(x, w, grouped.Groups(jnp.asarray(SIZES), first))
    plain = lambda x, w: jnp.einsum("ri,roi->ro", x, w[first + group_R])
    run = lambda product: jax.value_and_grad(functools.partial(loss, product), argnums=(0, 1), has_aux=True)(x, w)
    found, expected = run(ours), run(plain)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
