"""docs/PLANS.md: training of every size on a slice of its size, serving on the smallest that holds it.

Plans go into a JSON file beside the table as they are made: the command goes on where it stopped, and compiles again
what is removed from that file.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from internvl_jax.errors import InputError
from internvl_jax.files import whole_file
from internvl_jax.planning.lowering import Serving
from internvl_jax.planning.plan import plan
from internvl_jax.training import TrainConfig

TRAINING = {
    "1b": "v5p:2x2x2",
    "2b": "v5p:2x2x4",
    "4b": "v5p:2x4x4",
    "8b": "v5p:4x4x4",
    "14b": "v5p:4x4x8",
    "38b": "v5p:4x8x8",
    "20b-a4b": "v5p:4x4x4",
    "30b-a3b": "v5p:4x4x8",
    "241b-a28b": "v5p:8x8x8",
}
SERVING = "v6e"
SIZE = Serving(rows=8, prompt=8192, slots=32768)
_TITLES = {
    "train": "## SFT: 512 rows of 32,768 tokens and 96 tiles a step",
    "prefill": f"## Prefill: {SIZE.rows} prompts of {SIZE.prompt:,} tokens",
    "decode": f"## Decode: {SIZE.rows} conversations of {SIZE.slots:,} tokens",
}


def write(path: str, configs: Mapping[str, TrainConfig]) -> dict[str, Any]:
    """Makes the missing plans and writes the table; returns a summary."""
    table = pathlib.Path(path)
    store = table.with_suffix(".json")
    plans = json.loads(store.read_text()) if store.exists() else {}
    for task in _TITLES:
        for name, config in configs.items():
            where = TRAINING.get(name, "v5p") if task == "train" else SERVING
            key = f"{task} {name}"
            if key not in plans:
                try:
                    plans[key] = plan(config, task, where, SIZE, auto=True)
                except InputError as error:
                    plans[key] = {"task": task, "fits": False, "reason": str(error)}
                _replace(store, json.dumps(plans, indent=1) + "\n")
    _replace(table, render(plans, list(configs)))
    return {"table": str(table), "plans": len(plans), "fit": sum(one["fits"] for one in plans.values())}


def render(plans: Mapping[str, dict[str, Any]], names: list[str]) -> str:
    """The page."""
    parts = [_HEAD]
    for task, title in _TITLES.items():
        parts += ["", title, "", _COLUMNS, "|---|---|---|---|" + "--:|" * 8]
        parts += [_row(name, plans[f"{task} {name}"]) for name in names]
    return "\n".join([*parts, ""])


def _row(name: str, found: Mapping[str, Any]) -> str:
    if not found["fits"]:
        return f"| {name} | - | - | {found['reason']} |" + " |" * 8
    layout, gb = found["layout"], {kind: (size or 0) / 1e9 for kind, size in found["bytes_per_device"].items()}
    how = [layout["rules"]]
    if found["task"] == "train":
        how += [layout["remat"], f"{layout['micro_batches']} micro-batches"]
    state = gb["parameters"] + gb.get("optimizer", 0) + gb.get("cache", 0)
    step, *parts = (_time(found[part]) for part in ("step_s", "compiled_s", "kernels_s", "transfers_s"))
    sent = sum(found["collective_bytes_per_device"].values()) / 1e9
    cells = [name, found["topology"], layout["mesh"], ", ".join(how)]
    cells += [f"{gb['total']:.1f} of {gb['limit']:.0f}", f"{state:.1f}", f"{gb['activations']:.1f}", f"{sent:,.1f}"]
    cells += [step, " + ".join(parts), f"{found['mfu']:.1%} ({found['mfu_in_cycles']:.1%})"]
    return "| " + " | ".join([*cells, f"{found['compile_s']:.0f} s"]) + " |"


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def _replace(path: pathlib.Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        temporary.write_text(text)


_COLUMNS = (
    "| size | slice | mesh | rules, remat | GB a chip | weights, moments, cache | activations | GB sent a chip | step "
    "| compiled + kernels + transfers | MFU (by cycles) | compiled in |"
)
_HEAD = """# Plans

What the real programs need on TPU slices, found by compiling them with libtpu on a CPU: no TPU was attached and nothing
was run. Memory is the compiler's own account. **Times and MFU are estimates.** One command makes this page, going on
where `PLANS.json` ends: `python -m launch.plan --table=docs/PLANS.md`. One plan: `python -m launch.plan
--config=configs/experiments/sft.py:8b --topology=v5p:4x4x4`.

How a time is estimated (`internvl_jax/planning/estimate.py`):

- XLA's cost analysis counts the body of a loop once, and layers, micro-batches and chunks of the vocabulary are loops.
  So the compiled program is read instead, every loop counted as often as it runs.
- *compiled*: what the compiler made. A fused operation with a matrix product takes the cycles that the compiler notes
  for it (75 to 95 % of the peak at these sizes); one that only moves memory takes its bytes at 80 % of the bandwidth,
  or the compiler's cycles where these are fewer. The compiler is more pessimistic about the latter: the MFU in brackets
  takes its cycles for all. It notes none for gathered and scattered rows, which take their bytes.
- *kernels*: attention and the grouped products of experts, opaque to the compiler. Their products are known from shapes
  (attention: two forward, five backward, whole blocks under the diagonal) and are **assumed** to run at 60 % of the
  peak, at half of that where a head is half as wide as the matrix unit (the 300M tower and GPT-OSS on v5p, heads of 128
  on v6e), and no faster than their bytes. Experts are taken to have **equal shares** of the tokens: a step waits for
  the busiest chip. No kernel of this page was timed.
- *transfers*: bytes sent over one dimension of the torus (v5p: 200 GB/s), not hidden where the compiled program does
  not start them early.
- MFU: operations that the model needs (backward twice forward, nothing recomputed, each row one sample from end to end,
  all 96 tiles real) by time and peak (v5p 459, v6e 918 TFLOP/s).

What holds the dense sizes below or near 55 % (2026-11):

- Attention. A row of 32,768 tokens taken as one sample makes it 26 to 53 % of the model's operations (1B: more than all
  products with weights), and the kernel has seven products where the model counts six. At an assumed 75 % instead of
  60 %, the 4B, 8B and 14B would reach 55, 57 and 58 %; at 50 %, 44, 49 and 50 %. Rows packed of short samples cost the
  kernel as much: it masks other segments, and leaves out no block for them.
- Recomputing. `remat` keeps as much as fits beside one row: attention's kernel and products in the 14B (`qkv`), one of
  the two inner feed-forward products besides in the 4B and 8B (`gate`), both in the 1B and 2B (`mlp`), and nothing but
  layer inputs in the 38B (`full`), where 96 tiles leave 28 GB in the 6B tower alone: there 1.35 times the model's
  operations are executed. The tower is recomputed in all.
- The tower: 96 tiles of 1,025 patches in heads of 64 fill half a matrix unit, and patches are padded to 1,152.
- Transfers cost 1 to 2 %: a row a chip is enough work to gather a layer's weights for. Over a whole torus the compiler
  gathers by sums of padded shards, twice the bytes: hence four copies of the state (`data=4`) from 16 chips on.

What holds the mixtures (20B, 30B, 241B) near 35 % (2026-11): attention takes 23, 22 and 28 s of a step, 30 to 42 %, as
few parameters are active beside it (and the heads of the 20B have half the width). Grouped products take 18, 7 and 14
s, a quarter of which is recomputing, and what else is done to the experts' rows (gathering, activating, adding up) 7, 5
and 5 s. Tokens travel between the 4 or 8 chips that share a layer's experts, three times forth and twice back, which
nothing hides: 3.9, 4.5 and 4.4 s. The 241B has a row a chip on 512 chips and keeps layer inputs alone (`full`): 1.42
times the model's operations are executed. If all kernels ran at 75 %, MFU would be 39 to 40 %.

Decoding is bound by memory: every step reads weights and cache (`read_s` in the JSON). The dense sizes take 1.3 to 1.5
times that. So do the mixtures since a layer's experts are read where they lie in the stack of layers: 11.4 ms, 17.4 ms
and 17.8 ms (20B and 30B on v6e:2x2, 241B on v6e:4x8). Their rows above were estimated before, when they were copied out
of it first, 3 to 5 times. In prefill the sums over chips after every
layer are not hidden: a sixth to a quarter of the dense sizes' time, 14 % of the 20B's and the 30B's, and 26 % of the
241B's, where tokens travel as well; gathering and adding up the experts' rows takes 13 to 20 %.

No parameter, moment or cache of 4 MB or more is on more chips than there are data-parallel copies (`replicated` in the
JSON, looked for in every plan), but for these. Training of mixtures: the tower, which is spread over `fsdp` alone (the
width of the 6B tower, 3,200, does not divide by 512): 0.9, 0.9 and 1.0 GB a chip with its moments; and 4 MB of biases
of the 20B's experts. Serving of mixtures: routers (at most 98 MB), and what is not an expert in the 241B, once for
every row: 4 GB a chip. The vocabulary meets 1,024 tokens at a time, never a row. The tower of the 38B and the 241B has
25 heads, which no slice divides: in every preset its weights are spread over their width and its work over tiles, a
row's tiles lying where the row does."""
