"""Attention of rows whose tokens lie on several devices equals that of rows which one device has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvl_jax import sharding
from internvl_jax.errors import InputError
from internvl_jax.models.attention import kernels
from internvl_jax.models.attention.attention import Mask, Window, attend

B, N, M, H = 2, 4, 2, 8
LENGTHS = [[71, 40, 9], [131]]  # of samples; the second row ends in padding


def marks(T):
    segments = [np.repeat(np.arange(1, len(lengths) + 1), lengths) for lengths in LENGTHS]
    positions = [np.concatenate([*map(np.arange, lengths)]) for lengths in LENGTHS]
    padded = lambda rows: np.stack([np.pad(row, (0, T - len(row))) for row in rows]).astype(np.int32)
    return padded(segments), padded(positions)


def run(T, mesh=None):
    """Values at tokens, and gradients of q, k, v and the sinks."""
    rng = np.random.default_rng(0)
    q, k, v, g = (rng.normal(size=(B, n, T, H)).astype(np.float32) for n in (N, M, M, N))
    sinks_N, (segments_BT, positions_BT) = np.linspace(-2, 2, N).astype(np.float32), marks(T)
    real = (segments_BT > 0)[:, None, :, None]

    def both(q, k, v, sinks_N, holds):
        window = Window(37, holds)

        def function(q, k, v, sinks_N):
            with sharding.use(mesh, sharding.PRESETS["long_context"]):
                return attend(q, k, v, Mask.within(segments_BT, positions_BT), window, sinks_N=sinks_N)

        out, back = jax.vjp(function, q, k, v, sinks_N)
        return jnp.where(real, out, 0), back(jnp.where(real, g, 0))

    step = jax.jit(both)
    return [jax.device_get(step(q, k, v, sinks_N, jnp.bool_(holds))) for holds in (False, True)]


@pytest.fixture(scope="module")
def alone():
    return run(136)


# Heads are traded for tokens on 2 and 4 devices (on 4 each key/value head goes to two of them); 8 are too many for four
# heads, and gather the keys.
@pytest.mark.parametrize("axes", [{"fsdp": 2, "context": 4}, {"fsdp": 2, "context": 2, "tensor": 2}, {"context": 8}])
def test_attention_of_rows_on_several_devices(axes, alone):
    found = run(136, sharding.make_mesh(axes))
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.soak
@pytest.mark.parametrize("axes", [{"fsdp": 2, "context": 4}, {"context": 8}])
def test_the_same_by_the_kernel_of_tpus(axes, monkeypatch):
    expected = run(1024)
    splash = kernels.splash
    monkeypatch.setattr(sharding, "platform", lambda: "tpu")
    monkeypatch.setattr(kernels, "LONG", 128)
    monkeypatch.setattr(kernels, "splash", lambda *given: splash(*given[:-1], given[-1]._replace(interpret=True)))
    found = run(1024, sharding.make_mesh(axes))
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_axis_has_to_spread_something():
    mesh = sharding.make_mesh({"fsdp": 2, "context": 4})
    sharding.check_mesh(mesh, sharding.PRESETS["long_context"])
    with pytest.raises(InputError, match=r"context=4: the rules 'moe' .*long_context"):
        sharding.check_mesh(mesh, sharding.PRESETS["moe"])
