"""The planner's estimate beside speeds that others measured on TPUs: their models' shapes in this project's programs.

What was measured is MaxText's (AI-Hypercomputer/maxtext, docs/reference/models/tiering.md): tokens a second and chip,
and an MFU. Some of these MFU count causal attention whole, as its footnote says; so compared is the MFU that the tokens
come to in this project's count. The shapes are trained as this project would: its layers (Qwen3's, with a norm on
queries and keys), kernels and rules, beside a tower of one small layer that has no tiles.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from configs.experiments import ntp
from configs.models.sizes import TINY, like
from internvl_jax.errors import InputError
from internvl_jax.files import whole_file
from internvl_jax.models import PEAK, InternVLConfig, MoeConfig, train_flops
from internvl_jax.planning import Assumed, Topology, plan, table
from internvl_jax.training import TrainConfig


@dataclasses.dataclass(frozen=True)
class Measured:
    """What somebody ran.

    Attributes:
      topology: on which slice; a mixture's 256 are tensor cores, its shape says 128 chips.
      kind: jax's device_kind of its chips.
      rows: of a step on each chip, in the plan (where several fit, tokens hide the gathering of weights).
      tokens: of a row.
      speed: tokens a second and chip.
      mfu: as published.
      text: fields of the language model.
    """

    topology: str
    kind: str
    rows: int
    tokens: int
    speed: float
    mfu: float
    text: Mapping[str, Any]


_LLAMA = {"kv_heads": 8, "head_width": 128, "tie_embeddings": False, "norm_eps": 1e-5, "init_std": 0.02}
MEASURED = {
    "Llama-3.1-8B": Measured(
        "v6e:16x16",
        "TPU v6 lite",
        rows=2,
        tokens=8192,
        speed=7207,
        mfu=0.4546,
        text={**_LLAMA, "vocab": 128256, "width": 4096, "layers": 32, "heads": 32, "mlp": 14336},
    ),
    "Mixtral-8x7B": Measured(
        "v5p:4x4x8",
        "TPU v5p",
        rows=4,
        tokens=4096,
        speed=2909,
        mfu=0.5256,
        text={
            **_LLAMA,
            "vocab": 32000,
            "width": 4096,
            "layers": 32,
            "heads": 32,
            "mlp": 14336,
            "moe": MoeConfig(experts=8, per_token=2),
        },
    ),
    "Llama-2-70B": Measured(
        "v5p:8x8x8",
        "TPU v5p",
        rows=4,
        tokens=4096,
        speed=692,
        mfu=0.654,
        text={**_LLAMA, "vocab": 32000, "width": 8192, "layers": 80, "heads": 64, "mlp": 28672},
    ),
}


def counted(one: Measured, model: InternVLConfig) -> float:
    """The MFU of the tokens that somebody measured, in this project's count: every row one sample."""
    seen = one.tokens * one.tokens / 2
    return train_flops(model, 0, one.tokens, seen) / one.tokens * one.speed / PEAK[one.kind]


def shape(one: Measured) -> InternVLConfig:
    """A model of this project with such a language model."""
    return like(TINY, {"layers": 1, "width": 512, "mlp": 1024}, dict(one.text))


def settings(one: Measured, chips: int) -> TrainConfig:
    """Its training, in bfloat16 with float32 state."""
    config = ntp.config("tiny-moe" if "moe" in one.text else "tiny", learning_rate=1e-4, steps=1)
    data = dataclasses.replace(config.data, token_budget=one.tokens, tile_budget=0)
    run = dataclasses.replace(config.run, rows=one.rows * chips, dtype="bfloat16")
    return dataclasses.replace(config, model=shape(one), data=data, run=run)


def write(path: str, names: Iterable[str], assumed: Assumed) -> dict[str, Any]:
    """Plans what is missing in the JSON file beside the page, and writes the page; returns a summary.

    Args:
      names: of `MEASURED`.

    Raises:
      InputError: no such name, or libtpu is not there.
    """
    page = pathlib.Path(path)
    store = page.with_suffix(".json")
    plans = json.loads(store.read_text()) if store.exists() else {}
    for name in names:
        if name not in MEASURED:
            raise InputError(f"nothing is published of {name!r}; there are {', '.join(MEASURED)}")
        if name not in plans:
            one = MEASURED[name]
            config = settings(one, Topology.parse(one.topology).chips)
            plans[name] = plan(config, "train", one.topology, table.SIZE, auto=True, assumed=assumed)
            _replace(store, json.dumps(plans, indent=1) + "\n")
    _replace(page, render(plans))
    return {"page": str(page), **{name: deviation(name, found) for name, found in plans.items()}}


def deviation(name: str, found: Mapping[str, Any]) -> float:
    """The estimated MFU over the one that was measured, less 1."""
    return found["mfu"] / counted(MEASURED[name], shape(MEASURED[name])) - 1


def render(plans: Mapping[str, Mapping[str, Any]]) -> str:
    """The page."""
    rows = []
    for name, found in plans.items():
        one, layout = MEASURED[name], found["layout"]
        tokens = one.rows * one.tokens / found["step_s"]
        parts = " + ".join(f"{found[part]:.3f}" for part in ("compiled_s", "kernels_s", "transfers_s"))
        cells = (
            name,
            one.topology,
            f"{one.rows} x {one.tokens:,}",
            f"{one.speed:,.0f}",
            f"{one.mfu:.1%}",
            f"{counted(one, shape(one)):.1%}",
            f"{found['mfu']:.1%}",
            f"{deviation(name, found):+.0%}",
            f"{tokens:,.0f}",
            f"{layout['mesh']}, {layout['remat']}, {layout['micro_batches']}",
            f"{found['step_s']:.3f} = {parts}",
            f"{found['executed_flops_per_device'] / found['model_flops_per_device']:.2f}",
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([_HEAD, *rows, _FOOT])


def _replace(path: pathlib.Path, text: str) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(text)


_HEAD = """# The estimate beside measured speeds

`python -m launch.bench_published --page=docs/PUBLISHED.md` plans the shapes of models whose speed on TPUs is published
(MaxText, docs/reference/models/tiering.md) and writes this page. Nothing was run here.

| model | slice | rows a chip | measured: tokens/s a chip | MFU as published | MFU in our count | MFU, estimated \
| off by | tokens/s, estimated | mesh, remat, micro-batches | seconds a step: compiled + kernels + transfers \
| executed / model |
|---|---|---|--:|--:|--:|--:|--:|--:|---|---|--:|"""
_FOOT = """
*MFU in our count* is what the measured tokens come to with causal attention counted half: some of the published ones
count it whole.

Why the mixture is off (2026-11): its recipe (AI-Hypercomputer/tpu-recipes, training/v5p/Mixtral-8X7B-Maxtext) takes 36
rows a chip, with weights in bfloat16 and everything recomputed. So much work hides the transfers, 1.0 s of the
estimate, and leaves 4.2 of the 5.6 s that 16,384 tokens were measured to take to kernels, which need 3.4 s at the peak:
they run at 80 % of it, where 60 % are assumed. `--kernel_rate=0.8` gives 43 %, and without the transfers 50 %. The
grouped products of few and large experts are faster than assumed; nothing here says so of small ones.
"""
