"""What a layer's backward pass has of the forward one: kept on the device, kept in the host's memory, or made again."""

import jax
import jax.numpy as jnp
import pytest
from jax.ad_checkpoint import checkpoint_name

from internvl_jax.errors import InputError
from internvl_jax.models import Runtime
from internvl_jax.models.attention.kernels import BRANCH, GATE, MID, QKV, SAVED, UP

NAMES = (SAVED, QKV, GATE, UP, MID, BRANCH)


def where(runtime: Runtime, name: str) -> str:
    """Where the backward pass gets a value of this name from."""
    function = lambda x: jnp.sin(checkpoint_name(jnp.exp2(x), name))
    text = str(jax.make_jaxpr(jax.grad(jax.checkpoint(function, policy=runtime.policy)))(1.0))
    if "<host>" in text:
        return "host"
    return "again" if f"name={name}" in text.split("remat2", 1)[1] else "device"


@pytest.mark.parametrize(
    ("remat", "offload", "device", "host"),
    [
        ("full", "none", (), ()),
        ("gate", "none", (SAVED, QKV, GATE), ()),
        ("full", "attention", (), (SAVED, MID, BRANCH)),
        ("attention", "gate", (SAVED,), (QKV, GATE, MID, BRANCH)),
    ],
)
def test_where_activations_lie(remat, offload, device, host):
    runtime = Runtime(remat=remat, offload=offload)
    expected = {name: "device" if name in device else "host" if name in host else "again" for name in NAMES}
    assert {name: where(runtime, name) for name in NAMES} == expected


@pytest.mark.parametrize("remat", ["none", "dots", "mlp", "gate"])
def test_an_offload_that_keeps_nothing_more_is_refused(remat):
    with pytest.raises(InputError, match=f"remat '{remat}' leaves nothing for offload 'gate' to keep; set offload"):
        Runtime(remat=remat, offload="gate")
