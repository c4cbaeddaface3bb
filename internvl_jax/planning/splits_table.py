"""docs/DVD_PLANS.md: pods shared between vision and language servers, beside what the paper measured.

Step times go into a JSON file beside the page as they are compiled: the command goes on where it stopped, and compiles
again what is removed from that file. Queues are simulated anew every time.
"""

import itertools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from internvl_jax.files import whole_file
from internvl_jax.planning.chips import Topology
from internvl_jax.planning.layouts import Serving
from internvl_jax.planning.splits import StepTimes, Traffic, no_times, parts, split
from internvl_jax.training import TrainConfig

SIZE = Serving(rows=32, prompt=512, slots=4096, chunk=512, tiles=10)
PODS = {"38b": ("v6e:4x4", "v6e:4x8"), "241b-a28b": ("v5p:2x2x4", "v5p:2x4x4")}
NETWORKS = (10.0, 100.0)
# Requests a second: coupled, decoupled, decoupled with ViR; by the side of the pictures. arXiv 2508.18265, table 18.
TABLE_18 = {
    "38b": {448: (12.39, 14.69, 18.62), 896: (2.71, 5.06, 10.97), 1344: (1.48, 2.92, 5.14)},
    "241b-a28b": {448: (11.29, 14.05, 20.84), 896: (2.54, 4.73, 8.81), 1344: (1.37, 2.75, 4.27)},
}

Store = dict[str, dict[str, Any]]


def write(path: str, configs: Mapping[str, tuple[TrainConfig, TrainConfig]]) -> dict[str, Any]:
    """Compiles what is missing and writes the page; returns a summary.

    Args:
      configs: of the sizes of `PODS`, each without and with ViR.
    """
    page = pathlib.Path(path)
    kept = page.with_suffix(".json")
    store: Store = json.loads(kept.read_text()) if kept.exists() else {}
    for key, make in _compiled(configs):
        if key not in store:
            store[key] = make()
            with whole_file(kept) as part:
                part.write_text(json.dumps(store, indent=1) + "\n")
    found = list(plans(configs, store))
    with whole_file(page) as part:
        part.write_text(render(store, found))
    return {"table": str(page), "step_times": len(store), "plans": len(found)}


def _compiled(configs: Mapping[str, tuple[TrainConfig, TrainConfig]]) -> Iterator[tuple[str, Callable]]:
    """Keys of step times, and how they are made. What reads and writes is the same with ViR."""
    for name, both in configs.items():
        pod = Topology.parse(PODS[name][-1])
        for kind, where, make in parts(both[0], pod, SIZE):
            yield f"{kind} {name} {where}", make
        for kind, where, make in parts(both[1], pod, SIZE):
            if kind != "server":
                yield f"{kind} {name}-flash {where}", make


def _times(store: Store, name: str, flash: bool) -> StepTimes:
    found = no_times()
    for key, one in store.items():
        kind, size, where = key.split()
        if size == (f"{name}-flash" if flash and kind != "server" else name):
            found[kind][where] = one
    return found


def plans(configs: Mapping[str, tuple[TrainConfig, TrainConfig]], store: Store) -> Iterator[dict[str, Any]]:
    """All splits: of every size, pod and network, without and with ViR. First tokens with ViR are timed at the rate of
    those without.
    """
    for name, both in configs.items():
        for pod, gbits in itertools.product(PODS[name], NETWORKS):
            rates: dict[int, float] = {}
            for flash, config in enumerate(both):
                traffic = Traffic(gbits=gbits)
                times = _times(store, name, bool(flash))
                found = split(config.model, Topology.parse(pod), times, traffic, rates or None)
                rates = {one["side"]: one["rate"] for one in found["workloads"]}
                yield {"size": name, "vir": bool(flash), **found}


def render(store: Store, found: Sequence[Mapping[str, Any]]) -> str:
    """The page."""
    out = [
        _HEAD,
        "",
        "## Step times",
        "",
        *_grid([_tower_row(key, one) for key, one in store.items() if "encode" in one]),
    ]
    out += ["", *_grid([_server_row(key, one) for key, one in store.items() if "first" in one])]
    for name, pod, gbits in dict.fromkeys((one["size"], one["topology"], one["gbits"]) for one in found):
        own = [one for one in found if (one["size"], one["topology"], one["gbits"]) == (name, pod, gbits)]
        coupled = {work["side"]: work["coupled"]["requests_s"] for work in own[0]["workloads"]}
        rows = [(one["vir"], work) for one in own for work in one["workloads"]]
        rows.sort(key=lambda row: (row[1]["side"], row[0]))
        out += ["", f"## {name} on {pod}, {own[0]['chips']} chips, links of {gbits:.0f} Gbit/s", ""]
        out += _grid([_work_row(name, vir, work, coupled[work["side"]]) for vir, work in rows])
    return "\n".join([*out, ""])


def _grid(rows: Sequence[Mapping[str, str]]) -> list[str]:
    line = lambda cells: f"| {' | '.join(cells)} |"
    return [line(rows[0]), "|" + "---|" * len(rows[0]), *(line(row.values()) for row in rows)]


def _work_row(name: str, vir: bool, work: Mapping[str, Any], coupled: float) -> dict[str, str]:
    """One size of pictures.

    Args:
      coupled: requests a second of the coupled servers without ViR.
    """
    best, soonest, paper = work["most_requests"], work["soonest"], TABLE_18[name][work["side"]]
    whole, same = work["coupled_with_whole_towers"], best["coupled_on_language_chips_s"]
    times = lambda value, base: f"{value / base:.2f}x"
    return {
        "picture": f"{work['side']}, {work['tiles']} tiles",
        "ViR": "yes" if vir else "no",
        "prompt": f"{work['prompt']:,.0f}",
        "coupled, a second": _coupled_cell(work["coupled"]),
        "with whole towers": "no room" if whole is None else _coupled_cell(whole),
        "no waste": f"{work['no_waste_s']:.1f}",
        "split for most": _chips(best),
        "a second": f"{best['requests_s']:.1f}, {best['bound_by']}",
        "gain": times(best["requests_s"], coupled),
        "table 18": times(paper[2 if vir else 1], paper[0]),
        "beside coupled on its language chips alone": "-" if same is None else times(best["requests_s"], same),
        "first token at, a second": f"{work['rate']:.1f}",
        "coupled: mean, 90 %": _wait(work["coupled"]),
        "split for most: mean, 90 %": _wait(best),
        "soonest: split, mean, 90 %": f"{_chips(soonest)}: {_wait(soonest)}",
        "all splits": "; ".join(f"{_chips(row)}: {row['requests_s']:.1f}" for row in work["splits"]),
    }


def _chips(row: Mapping[str, Any]) -> str:
    servers, chips = row["servers"], row["language_chips"] // row["servers"]
    return f"{row['vision_chips']} + {f'{servers} x ' if servers > 1 else ''}{chips}"


def _coupled_cell(row: Mapping[str, Any]) -> str:
    return f"{row['requests_s']:.1f} ({row['servers']} x {row['server'].split(':')[1]})"


def _wait(row: Mapping[str, Any]) -> str:
    if row["ttft_mean_s"] is None:
        return "too many"
    return f"{1e3 * row['ttft_mean_s']:.0f}, {1e3 * row['ttft_p90_s']:.0f} ms"


def _tower_row(key: str, one: Mapping[str, Any]) -> dict[str, str]:
    kind, name, where = key.split()
    milliseconds = [f"{tiles}: {1e3 * seconds:.0f}" for tiles, seconds in one["encode"].items() if seconds is not None]
    return {
        "tower": name,
        "where": f"a chip of {where.split(':')[0]}, whole" if kind == "vision" else f"{where}, gathered",
        "tiles a chip: ms": ", ".join(milliseconds),
        "GB a chip": _memory_cell(one),
    }


def _server_row(key: str, one: Mapping[str, Any]) -> dict[str, str]:
    ms = lambda seconds: "-" if seconds is None else f"{1e3 * seconds:.1f}"
    return {
        "reading and writing": key.split()[1],
        "where": one["topology"],
        "mesh": one["mesh"],
        "first part: tokens: ms": ", ".join(f"{tokens}: {ms(seconds)}" for tokens, seconds in one["first"].items()),
        f"last part of {one['slots']:,}": ms(one["late"]),
        "first token": ms(one["begin"]),
        f"a token of {one['rows']} rows, by slots": ", ".join(
            f"{n}: {ms(seconds)}" for n, seconds in one["token"].items()
        ),
        "GB a chip with tower": _memory_cell(one),
        "of which tower": f"{one['tower'] / 1e9:.1f}",
    }


def _memory_cell(one: Mapping[str, Any]) -> str:
    return one["reason"] or f"{one['bytes'] / 1e9:.1f} of {one['limit'] / 1e9:.0f}"


_HEAD = """# Vision and language servers apart: plans"""
