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
    towers = [_tower_row(key, one) for key, one in store.items() if not key.startswith("server")]
    servers = [_server_row(key, one) for key, one in store.items() if key.startswith("server")]
    out = [_HEAD, "", "## Step times", "", *_grid(towers), "", *_grid(servers)]
    for name, pod in dict.fromkeys((one["size"], one["topology"]) for one in found):
        own = [one for one in found if (one["size"], one["topology"]) == (name, pod)]
        works = {(work["side"], one["vir"], one["gbits"]): work for one in own for work in one["workloads"]}
        rows = [key for key in sorted(works) if key[2] == NETWORKS[0]]
        paper = TABLE_18[name]
        out += ["", f"## {name} on {pod}, {own[0]['chips']} chips, links of {NETWORKS[0]:.0f} Gbit/s", ""]
        out += _grid([_most_row(works[key], works[key[0], False, key[2]], key, paper[key[0]]) for key in rows])
        out += ["", "First tokens, mean and 90th percentile:", ""]
        faster = {key: [works[*key[:2], gbits] for gbits in NETWORKS[1:]] for key in rows}
        out += _grid([_first_row(works[key], key) | _faster(faster[key]) for key in rows])
    return "\n".join([*out, ""])


def _grid(rows: Sequence[Mapping[str, str]]) -> list[str]:
    line = lambda cells: f"| {' | '.join(cells)} |"
    return [line(rows[0]), "|" + "---|" * len(rows[0]), *(line(row.values()) for row in rows)]


def _head(work: Mapping[str, Any], key: tuple[int, bool, float]) -> dict[str, str]:
    return {"picture": f"{key[0]}, {_count(work['tiles'], 'tile')}", "ViR": "yes" if key[1] else "no"}


def _most_row(
    work: Mapping[str, Any], plain: Mapping[str, Any], key: tuple[int, bool, float], paper: tuple[float, float, float]
) -> dict[str, str]:
    """Requests a second.

    Args:
      plain: the same without ViR, whose coupled servers are what gains are counted from.
      paper: see `TABLE_18`.
    """
    best, whole = work["most_requests"], work["coupled_with_whole_towers"]
    coupled, base = work["coupled"], plain["coupled"]["requests_s"]
    alike = lambda row: (row["server"], row["servers"]) == (best["server"], best["servers"])
    (same,) = [row["coupled_on_language_chips_s"] for row in plain["splits"] if alike(row)]
    return {
        **_head(work, key),
        "tokens": f"{work['prompt']:,.0f}",
        "coupled": f"{coupled['requests_s']:.1f} ({_chips(coupled)})",
        "patient": f"{work['coupled_patient']['requests_s']:.1f}",
        "with whole towers": "no room" if whole is None else f"{whole['requests_s']:.1f}",
        "no waste": f"{work['no_waste_s']:.1f}",
        "**apart**": f"**{best['requests_s']:.1f}**",
        "vision + language chips": _chips(best),
        "held by": best["bound_by"],
        "in balance": f"1 : {1 / work['balance']:.1f}",
        "gain": f"**{best['requests_s'] / base:.2f}x**",
        "on patient": f"{best['requests_s'] / plain['coupled_patient']['requests_s']:.2f}x",
        "table 18": f"{paper[2 if key[1] else 1] / paper[0]:.2f}x",
        "on coupled of its language chips": "-" if same is None else f"{best['requests_s'] / same:.2f}x",
        "splits": "; ".join(f"{_chips(row)}: {row['requests_s']:.1f}" for row in work["splits"][:6]),
    }


def _first_row(work: Mapping[str, Any], key: tuple[int, bool, float]) -> dict[str, str]:
    soonest = work["soonest"]
    return {
        **_head(work, key),
        "requests a second": f"{work['rate']:.1f}",
        "coupled": _wait(work["coupled"]),
        "the split for most requests": _wait(work["most_requests"]),
        "the soonest": _wait(soonest),
        "its vision + language chips": _chips(soonest),
    }


def _faster(works: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What faster networks bring."""
    cell = lambda work: f"{work['most_requests']['requests_s']:.1f} a second; {_wait(work['soonest'])}"
    return {f"links of {gbits:.0f} Gbit/s": cell(work) for gbits, work in zip(NETWORKS[1:], works, strict=True)}


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number > 1)}"


def _chips(row: Mapping[str, Any]) -> str:
    servers, chips = row["servers"], row["language_chips"] // row["servers"]
    language = f"{servers} x {chips}" if servers > 1 else f"{chips}"
    return f"{row['vision_chips']} + {language}" if row["vision_chips"] else language


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


_HEAD = """# Vision servers and language servers: plans

How many chips of a pod should be vision servers, how many language servers, and what does that gain on servers that do
both? Step times are those of the real programs, compiled with libtpu for chips that were not there (how a time is
estimated stands in [PLANS.md](PLANS.md)), queues are simulated: **nothing of this was measured.** One command makes
this page, going on where `DVD_PLANS.json` ends: `python -m launch.plan --task=dvd --table=docs/DVD_PLANS.md`. One plan,
with other questions, answers, shares or networks: `python -m launch.plan --task=dvd --config=sft:38b-flash
--topology=v6e:4x4 --answer=64 --gbits=25`.

What is simulated (`internvl_jax/planning/queueing.py`):

- Requests of one square picture (448, 896 or 1344 pixels: 1, 5 or 10 tiles) and 64 more tokens, with answers of 32
  tokens. With ViR two thirds of the tiles, by chance, are compressed to a quarter of their tokens: half of the image
  tokens, as the paper has it on average. The tower sees every tile all the same.
- *coupled*: as many equal servers as the pod holds, of the size that answers most. Each steps as the engine does: tiles
  of requests that wait (one a chip while answers are being written), a part of one prompt of 512 tokens at most, a
  token of all 32 rows. The tower's weights are spread over the server's chips and gathered for every pass. The engine
  has no setting for the next two. *Patient*: while rows are full, tiles wait until there is one for every chip.
  *With whole towers*: every chip has the tower whole, where there is memory for it.
- *apart*: vision servers of 4 chips, each of which has the tower whole, and takes as many tiles at a time as cost least
  each; language servers of any size that fits; no chip is left over. A request's tiles go as pixels through its
  language server's link to the vision server with the fewest tiles to do, which takes what waits; its features come
  back through the same link, in bfloat16 and at the resolution that is kept. The three stages overlap.
- *no waste*: the same work on the same chips, every tower's pass full and nobody waiting. What *apart* gains on
  *coupled* is at most this: it does not do less, it fills its passes, has its towers whole, and never stops writing for
  a picture. *In balance*: so many vision chips for so many language chips would be busy alike.
- Requests a second: where all wait from the beginning. First tokens: requests that come by chance (Poisson), at 70 % of
  what the coupled servers without ViR can take; the same rate for all.

Beside table 18 of the paper (arXiv 2508.18265): its language models sit on 8 A100 in all settings; how many chips the
vision servers had, the prompts, the answers and how requests were batched it does not say. If vision servers came on
top, *on coupled of its language chips* is what to compare: there the coupled servers have only as many chips as the
language servers. *Gain* is on the coupled servers without ViR on as many chips in all, *on patient* on those of them
that are patient.

What is left out, and which way it leans:

- Hosts: cutting pictures, tokens, HTTP, copies between a host and its chips, 5 ms that a vision server may wait for a
  batch. All flatter both sides, and *apart* more: its features go through two hosts' memories.
- The network is a bandwidth for each language server; vision servers' own links, latency, loss and other traffic are
  not there. Credits never run out, nobody fails.
- No picture or prompt comes twice: caches by content would help both.
- Kernels at 60 % of the peak and experts with equal shares are assumptions of the estimates. An error in the tower's
  time alone moves the best split.
- Answers all have the same length, pictures the same size; rows have as many slots as they need. Mixed requests make
  queues longer.
- The released rule never compresses the only tile of a picture: at 448 the rows with ViR are what a rule without that
  exception would give.

What comes out (2026-11):

- 38B: apart gives 2.4, 1.7 and 1.4 times the requests of the engine's coupled servers on as many chips (448, 896, 1344
  pixels), with ViR 2.5, 2.4 and 2.2 times on 32 chips. At 448 pixels most of that is no merit of decoupling: where rows
  are short the engine gives every newcomer's tile a pass of its own, on all chips of a server; patience alone doubles
  what it answers. On patient servers apart gains 1.16, 1.34 and 1.28, with ViR 1.22, 1.88 and 2.06.
- 241B: a language server has 8 chips at least, and five to twelve language chips keep one vision chip busy. On 16 chips
  the only split wastes most of its vision chips and is **slower** than coupled servers without ViR (0.79, 0.73, 0.59);
  on 32 chips it is 1.19, 1.09 and 0.87 times as fast, with ViR 1.24, 1.71 and 1.78 times. Look at *in balance* first: a
  pod that can't be split near it is better not split, or its vision servers serve several pods' language servers.
- ViR makes prompts shorter, not the tower's work less: the more it compresses, the more vision chips a language chip
  needs (38B, 1344 pixels: 1 for 1.6 instead of 3.5).
- Beside the paper: on coupled servers of the language chips alone, 3.2, 2.3 and 1.8 times (38B) and 1.6, 1.5 and 1.3
  times (241B), with ViR 3.4 to 3.8 and 1.7 to 2.6; the paper has 1.2 to 2.0 and 1.5 to 4.1. There the gain grows with
  the pictures. Here it shrinks without ViR: more tiles fill the passes of a coupled server too, and what grows most is
  the reading of prompts, in parts of 512 tokens, which both have.
- First tokens of the 38B on 16 chips: 90 % within 172, 408 and 643 ms instead of 318, 775 and 1,058 (the soonest
  split). Of the 241B on 32 chips: 548, 805 and 1,214 ms instead of 565, 1,966 and 1,712.
- 10 Gbit/s hold nothing: 100 bring no more requests, and first tokens 2 to 25 ms earlier."""
