"""docs/PLANS.md: training of every size on a slice of its size, serving on the smallest that holds it.

Plans go into a JSON file beside the table as they are made: the command goes on where it stopped, and compiles again
what is removed from that file.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from internvl_jax.errors import InputError
from internvl_jax.files import whole_file
from internvl_jax.planning.assumed import DEFAULT, Assumed
from internvl_jax.planning.layouts import Serving
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
# Besides: more chips for a mixture, where every group of them has rows of its own.
_WIDER = {"30b-a3b": ("v6e:4x4", dataclasses.replace(SIZE, rows=16))}
_PACKED = Assumed(median=4096, sigma=0.8)
_MIXTURES = tuple(name for name in TRAINING if "-a" in name)


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
      title: its heading.
      task: the task of its plans.
      stage: whose configs are planned.
      sizes: of which models.
      assumed: what times and operations take for granted.
    """

    title: str
    task: str = "train"
    stage: str = "sft"
    sizes: Sequence[str] = tuple(TRAINING)
    assumed: Assumed = DEFAULT


# By the first word of the keys of its plans.
_SECTIONS = {
    "train": Section("SFT: 512 rows of 32,768 tokens and 96 tiles a step, each row one sample"),
    "packed": Section(
        "SFT: the same rows, packed of samples of 4,096 tokens (median; log-normal, sigma 0.8)",
        sizes=("8b", "30b-a3b"),
        assumed=_PACKED,
    ),
    "mpo": Section("MPO: 256 rows of a pair in 32,768 tokens", stage="mpo", sizes=("8b", *_MIXTURES)),
    "gspo": Section("GSPO: 512 responses in rows of 40,960 tokens", stage="gspo", sizes=("8b", *_MIXTURES)),
    "consistency": Section("ViCO's consistency: 512 rows of 32,768 tokens", stage="consistency", sizes=("8b",)),
    "prefill": Section(f"Prefill: {SIZE.rows} prompts of {SIZE.prompt:,} tokens at once", "prefill"),
    "decode": Section(f"Decode: a token of {SIZE.rows} conversations of {SIZE.slots:,} tokens", "decode"),
    "serve": Section(
        f"Serving: {SIZE.rows} conversations of {SIZE.slots:,} tokens, prompts in parts of {SIZE.chunk}", "serve"
    ),
    "rollout": Section("GSPO's rollouts: prompts of 8,192 tokens, answers of 32,768", "rollout", "gspo"),
}
STAGES = tuple({section.stage: None for section in _SECTIONS.values()})


def write(path: str, configs: Mapping[str, Mapping[str, TrainConfig]]) -> dict[str, Any]:
    """Makes the missing plans and writes the table; returns a summary.

    Args:
      configs: of every stage (`STAGES`), those of the sizes by their names; of a size that is missing nothing is
        planned.
    """
    table = pathlib.Path(path)
    store = table.with_suffix(".json")
    plans = json.loads(store.read_text()) if store.exists() else {}
    for key, (config, task, where, size, assumed) in _rows(configs).items():
        if key not in plans:
            try:
                plans[key] = plan(config, task, where, size, auto=True, assumed=assumed)
            except InputError as error:
                plans[key] = {"task": task, "fits": False, "reason": str(error)}
            _replace(store, json.dumps(plans, indent=1) + "\n")
    _replace(table, render(plans, list(_rows(configs))))
    return {"table": str(table), "plans": len(plans), "fit": sum(one["fits"] for one in plans.values())}


def _rows(configs: Mapping[str, Mapping[str, TrainConfig]]) -> dict[str, tuple]:
    """What is planned, by the key of its plan: the arguments of `plan`."""
    rows = {}
    for word, section in _SECTIONS.items():
        task = section.task
        for name in section.sizes:
            if (config := configs[section.stage].get(name)) is None:
                continue
            where = TRAINING[name] if task in ("train", "rollout") else SERVING
            rows[f"{word} {name}"] = config, task, where, SIZE, section.assumed
            if task == "decode" and name in _WIDER:
                rows[f"{word} {name} {_WIDER[name][0]}"] = config, task, *_WIDER[name], section.assumed
    return rows


def render(plans: Mapping[str, dict[str, Any]], keys: Sequence[str]) -> str:
    """The page."""
    parts = [_HEAD]
    for word, section in _SECTIONS.items():
        cells = _CELLS.get(section.task, _step)
        own = [(key.split()[1], plans[key]) for key in keys if key.split()[0] == word and key in plans]
        if not own:
            continue
        rows = [cells(name, found) if found["fits"] else _unfit(name, found) for name, found in own]
        columns = max(rows, key=len)
        parts += ["", f"## {section.title}", "", _line(columns), "|---|---|---|---|" + "--:|" * (len(columns) - 4)]
        parts += [_line({column: row.get(column, "") for column in columns}.values()) for row in rows]
    return "\n".join([*parts, ""])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _unfit(name: str, found: Mapping[str, Any]) -> dict[str, str]:
    return {"size": name, "slice": found.get("topology", "-"), "mesh": "-", "how": found["reason"]}


def _step(name: str, found: Mapping[str, Any]) -> dict[str, str]:
    """Of one program."""
    layout, gb = found["layout"], _gb(found)
    how = [layout["rules"]]
    if found["task"] == "train":
        offload = layout.get("offload", "none")
        how += [layout["remat"], *([] if offload == "none" else [f"{offload} on the host"])]
        how.append(f"{layout['micro_batches']} micro-batches")
    if found["task"] == "decode":
        how.append(f"{layout['rows']} rows")
    step, *parts = (_time(found[part]) for part in ("step_s", "compiled_s", "kernels_s", "transfers_s"))
    return {
        "size": name,
        "slice": found["topology"],
        "mesh": layout["mesh"],
        "how": ", ".join(how),
        "GB a chip": f"{gb['total']:.1f} of {gb['limit']:.0f}",
        "weights, moments, cache": f"{_held(gb):.1f}",
        "activations": f"{gb['activations']:.1f}",
        **(_token("step", found) if found["task"] == "decode" else {"GB sent a chip": f"{_sent(found) / 1e9:,.1f}"}),
        "step": step,
        "compiled + kernels + transfers": " + ".join(parts),
        "MFU (by cycles)": f"{found['mfu']:.1%} ({found['mfu_in_cycles']:.1%})",
        "compiled in": f"{found['compile_s']:.0f} s",
    }


def _serve(name: str, found: Mapping[str, Any]) -> dict[str, str]:
    layout, programs, gb = found["layout"], found["programs"], _gb(found)
    return {
        "size": name,
        "slice": found["topology"],
        "mesh": layout["mesh"],
        "how": f"{layout['rows']} rows",
        "GB a chip": f"{gb['total']:.1f} of {gb['limit']:.0f}",
        "weights": f"{gb['weights']:.1f}",
        "cache": f"{programs['decode']['bytes_per_device']['cache'] / 1e9:.1f}",
        f"{layout['tiles']} tiles": _time(programs["encode"]["step_s"]),
        f"{layout['chunk']} tokens of a prompt": _time(programs["chunk"]["step_s"]),
        "first tokens": _time(programs["begin"]["step_s"]),
        **_token("a token", programs["decode"]),
    }


def _rollout(name: str, found: Mapping[str, Any]) -> dict[str, str]:
    sampling, programs, gb = found["sampling"], found["programs"], _gb(found)
    first, longest = programs["decode"], programs.get("decode, longest", programs["decode"])
    rows = sampling["prompts"] * sampling["width"]
    return {
        "size": name,
        "slice": found["topology"],
        "mesh": f"{found['layout']['mesh']} -> {sampling['mesh']}",
        "how": f"{sampling['prompts']} prompts, {rows} rows",
        "GB a chip": f"{gb['total']:.1f} of {gb['limit']:.0f}",
        "state": f"{gb['parameters'] + gb['optimizer']:.1f}",
        "weights": f"{longest['bytes_per_device']['weights'] / 1e9:.1f}",
        "cache": f"{longest['bytes_per_device']['cache'] / 1e9:.1f}",
        "reshard": f"{_time(programs['reshard']['step_s'])}, {_sent(programs['reshard']) / 1e9:.1f} GB",
        "prompts read": f"{sampling['read_together']} in {_time(programs['prompts']['step_s'])}",
        "a token at first": _time(first["step_s"]),
        **_token("a token of the longest", longest),
    }


def _token(title: str, found: Mapping[str, Any]) -> dict[str, str]:
    return {
        title: _time(found["step_s"]),
        "by what it must read": f"{found['step_s'] / found['read_s']:.2f}",
        "transfers, MB sent a chip": f"{found['transfers']}, {_sent(found) / 1e6:.1f}",
    }


_CELLS = {"serve": _serve, "rollout": _rollout}


def _gb(found: Mapping[str, Any]) -> dict[str, float]:
    return {kind: (size or 0) / 1e9 for kind, size in found["bytes_per_device"].items()}


def _held(gb: Mapping[str, float]) -> float:
    return sum(gb.get(kind, 0.0) for kind in ("parameters", "optimizer", "weights", "features", "cache"))


def _sent(found: Mapping[str, Any]) -> float:
    return sum(found["collective_bytes_per_device"].values())


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def _replace(path: pathlib.Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        temporary.write_text(text)


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
- *the host's memory*: what is kept there is taken to travel beside other work, and counts no time; how long it travels
  stands in the JSON (`host`), by arithmetic.
- *transfers*: bytes sent over one dimension of the torus (v5p: 200 GB/s), and an **assumed** 5 us each, however few
  bytes; not hidden where the compiled program does not start them early.
- A loop that data may end runs as often as it may; of two branches each runs half the time, as those for greedy rows
  and for drawn ones, or with and without top-k and top-p.
- MFU: operations that the model needs (backward twice forward, less what frozen parts need not; nothing recomputed,
  each row one sample from end to end, in layers with a window what it lets a token see, all 96 tiles real) by time and
  peak (v5p 459, v6e 918 TFLOP/s).

What holds the dense sizes below or near 55 % (2026-11):

- Attention. A row of 32,768 tokens taken as one sample makes it 26 to 53 % of the model's operations (1B: more than all
  products with weights), and the kernel has seven products where the model counts six. At an assumed 75 % instead of
  60 %, the 4B, 8B and 14B would reach 55, 57 and 58 %; at 50 %, 44, 49 and 50 %. In rows packed of shorter samples the
  kernel leaves out blocks of others: of samples of 4,096 tokens (median, sigma 0.8) it meets 38 % of them forward and
  42 % backward, in blocks of 1,024 and of 1,024 by 2,048, where the tokens see 30 % of the keys.
- Recomputing. `remat` keeps as much as fits beside one row: attention's kernel and products in the 14B (`qkv`), one of
  the two inner feed-forward products besides in the 4B and 8B (`gate`), both in the 1B and 2B (`mlp`), and nothing but
  layer inputs in the 38B (`full`), where 96 tiles leave 28 GB in the 6B tower alone: there 1.35 times the model's
  operations are executed. The tower is recomputed in all. For such sizes plans now try to keep more in the host's
  memory (`offload`); no row of this page does yet.
- The tower: 96 tiles of 1,025 patches in heads of 64 fill half a matrix unit, and patches are padded to 1,152.
- Transfers cost 1 to 2 %: a row a chip is enough work to gather a layer's weights for. Over a whole torus the compiler
  gathers by sums of padded shards, twice the bytes: hence four copies of the state (`data=4`) from 16 chips on.

What holds the mixtures (20B, 30B, 241B) at 28, 34 and 35 % (2026-11): attention takes 23, 22 and 28 s of a step, 30 to
42 %, as few parameters are active beside it (and the heads of the 20B have half the width; in half of its layers they
see 128 tokens, which hardly counts). Grouped products take 18, 7 and 14 s, a quarter of which is recomputing, and what
else is done to the experts' rows (gathering, activating, adding up) 7, 5 and 5 s. Tokens travel between the 4 or 8
chips that share a layer's experts, three times forth and twice back, which nothing hides: 3.9, 4.5 and 4.4 s. The 241B
has a row a chip on 512 chips and keeps layer inputs alone (`full`): 1.42 times the model's operations are executed. If
all kernels ran at 75 %, MFU would be 32, 39 and 40 %.

Decoding is bound by memory: every step reads weights and cache, and the column *by what it must read* says how many
times as long as that it takes. What is above 1: products of few rows, for which the compiler notes 78 % of the memory's
bandwidth (attention 84 %), and transfers, of which a layer has two (three in mixtures whose rows lie on several groups
of chips), nearly all of it latency. Experts count as read whole, though eight rows need fewer.

Serving is the engine as a server has it: a picture through the tower, a part of a prompt that reaches to the end of its
row (its worst place), the first token, a token of all rows. In prefill the sums over chips after every layer are not
hidden.

Rollouts: *state* is what training keeps on the chip, *weights* those that are sampled from, spread as for serving,
*cache* that of answers which have all their slots. The largest program decides about the memory: mostly that which
gives answers more slots, when old and new ones are there. A token sends activations alone; where training's weights
lie, the 8B would gather 17 GB. Rows are those of a run: while prompts wait, each has a quarter as many as answers.

The rows of training were made on 2026-11-23 and 24, before transfers had a latency (hundredths to two tenths of a
second a step), before a slice counted its own bytes (saving and fetching what layers keep: 0.3 s of the 8B's step),
before fusions of dense models had 64 MiB of fast memory (the 8B then takes 80.1 s, MFU 57.7 %) and before norms and
activations were made again in the backward pass.

No parameter, moment or cache of 4 MB or more is on more chips than there are data-parallel copies (`replicated` in the
JSON, looked for in every plan), but for these. Training of mixtures: the tower, which is spread over `fsdp` alone (the
width of the 6B tower, 3,200, does not divide by 512): 0.9, 0.9 and 1.0 GB a chip with its moments; and 4 MB of biases
of the 20B's experts. Serving and rollouts of mixtures: routers (at most 98 MB), and where groups of chips have rows of
their own (`expert` in the mesh) what is not an expert, once for every group: 1 GB a chip of the 30B on 16, 4 GB of the
241B. Spread over the groups as well it would have to be gathered for every token, or heads would have to leave the
chips where their keys lie. The vocabulary meets 1,024 tokens at a time, never a row. The tower of the 38B and the 241B
has 25 heads, which no slice divides: in every preset its weights are spread over their width and its work over tiles, a
row's tiles lying where the row does."""
