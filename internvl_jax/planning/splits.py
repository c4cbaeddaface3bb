"""How the chips of a pod are best shared between vision servers and language servers, against servers that do both.

Step times are compiled (`step_times`), queues simulated (`queueing`). Every language server has a link of its own,
through which tiles leave as pixels and features come in, at the resolution that is kept.
"""

import dataclasses
import functools
import math
import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from internvl_jax.data import DEFAULT_MAX_PIXELS, ImageConfig, tiling
from internvl_jax.errors import InputError
from internvl_jax.inference import Ladders, fit
from internvl_jax.models import InternVLConfig
from internvl_jax.planning.chips import CHIPS, Topology
from internvl_jax.planning.layouts import Serving, candidates, serving_layout
from internvl_jax.planning.queueing import Arrival, Curve, TextSteps, Told, TowerSteps, encoded, link, poisson, served
from internvl_jax.planning.step_times import coupled_times, server_times, vision_times
from internvl_jax.training import TrainConfig

HOST = 4  # chips of a vision server
# Step times by what is compiled, each by the slice: of a chip of a 'vision' server (`vision_times`, of one slice), of a
# 'server' that reads and writes (`server_times`), of a 'coupled' one's tower (`coupled_times`).
StepTimes = dict[str, dict[str, dict[str, Any]]]
_LOAD = 0.7  # of what the coupled servers can take, where first tokens are timed


def no_times() -> StepTimes:
    return {"vision": {}, "server": {}, "coupled": {}}


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What a deployment is asked, and the network inside it.

    Attributes:
      sides: pixels of the sides of the square pictures, of which every request has one; each is planned by itself.
      text: tokens of a request that are no image tokens.
      answer: tokens of an answer.
      share: of tiles that a Flash model compresses; two thirds halve the image tokens.
      gbits: of each language server's link, in 10^9 bits a second, each way.
      requests: how many are simulated for each language server.
      seed: of their arrivals and of the tiles that are compressed.
    """

    sides: tuple[int, ...] = (448, 896, 1344)
    text: int = 64
    answer: int = 32
    share: float = 2 / 3
    gbits: float = 10.0
    requests: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.sides, default=0) < 1 or min(self.text, self.answer, self.gbits) <= 0 or not 0 <= self.share <= 1:
            raise InputError(
                f"traffic {self} makes no sense: sides, text, answer and gbits are positive, the share is from 0 to 1"
            )
        if self.requests < 100:
            raise InputError(f"{self.requests} requests say little; simulate 100 or more")


@dataclasses.dataclass(frozen=True)
class Asking:
    """One request's needs.

    Attributes:
      tiles: of its picture.
      prompt: tokens.
      up: bytes of its tiles' pixels.
      down: bytes of their features.
      answer: tokens.
    """

    tiles: int
    prompt: int
    up: int
    down: int
    answer: int


@dataclasses.dataclass(frozen=True)
class Deployment:
    """Equal servers, that have features sent to them or make their own.

    Attributes:
      topology: the slice of each of them.
      servers: how many there are.
      text: what reading and writing takes them.
      tower: what tiles take: a vision server's, or their own.
      vision: how many vision servers there are; 0: they have the tower themselves.
    """

    topology: str
    servers: int
    text: TextSteps
    tower: TowerSteps
    vision: int

    @property
    def chips(self) -> int:
        return self.servers * Topology.parse(self.topology).chips

    def run(self, at: Sequence[float], asking: Sequence[Asking], gbits: float) -> list[Told]:
        """What becomes of requests that come at these moments, in turn to each server; those of the first one, as all
        are alike.
        """
        ready, bandwidth = list(at), gbits * 1e9 / 8
        first = range(0, len(at), self.servers)
        if self.vision:
            for server in range(self.servers):
                mine = range(server, len(at), self.servers)
                sent = link([at[n] for n in mine], [asking[n].up / bandwidth for n in mine])
                for n, moment in zip(mine, sent, strict=True):
                    ready[n] = moment
            every = sorted(range(len(at)), key=lambda n: (ready[n], n))
            done = encoded([ready[n] for n in every], [asking[n].tiles for n in every], self.tower, self.vision)
            for n, moment in zip(every, done, strict=True):
                ready[n] = moment
            back = sorted(first, key=lambda n: (ready[n], n))
            there = link([ready[n] for n in back], [asking[n].down / bandwidth for n in back])
            for n, moment in zip(back, there, strict=True):
                ready[n] = moment
        order = sorted(first, key=lambda n: (ready[n], n))
        told = served([_arrival(ready[n], asking[n]) for n in order], self.text, None if self.vision else self.tower)
        return [one for _, one in sorted(zip(order, told, strict=True), key=lambda pair: pair[0])]

    def most(self, traffic: Traffic, asking: Sequence[Asking]) -> float:
        """Requests a second where all wait from the beginning: after the first quarter, until nine tenths are done."""
        count = self.servers * traffic.requests
        ends = sorted(one.last for one in self.run([0.0] * count, asking[:count], traffic.gbits))
        low, high = len(ends) // 4, len(ends) * 9 // 10
        return self.servers * (high - low) / (ends[high] - ends[low])

    def first_tokens(self, traffic: Traffic, asking: Sequence[Asking], rate: float) -> tuple[float, float]:
        """Mean and 90th percentile of the seconds to a first token, of requests that come at a rate by chance; without
        the first tenth of them.
        """
        at = poisson(rate, self.servers * traffic.requests, traffic.seed)
        told = self.run(at, asking[: len(at)], traffic.gbits)
        waits = [one.first - moment for one, moment in zip(told, at[:: self.servers], strict=True)]
        waits = waits[len(waits) // 10 :]
        return statistics.mean(waits), statistics.quantiles(waits, n=10)[-1]

    def limits(self, traffic: Traffic, asking: Sequence[Asking]) -> dict[str, float]:
        """Requests a second that each stage could take alone."""
        tiles, up, down = (statistics.mean(part) for part in zip(*((one.tiles, one.up, one.down) for one in asking)))
        batch = self.tower.most / self.tower.time(self.tower.most)
        nothing = dataclasses.replace(traffic, gbits=math.inf)
        alone = dataclasses.replace(self, servers=1, vision=1, tower=TowerSteps(1, 1, Curve(((1, 0.0),))))
        return {
            "vision": self.vision * batch / tiles,
            "network": self.servers * traffic.gbits * 1e9 / 8 / max(up, down),
            "language": self.servers * alone.most(nothing, asking),
        }


def _arrival(at: float, one: Asking) -> Arrival:
    return Arrival(at, one.tiles, one.prompt, one.answer)


def tiles_of(side: int, config: InternVLConfig) -> int:
    """Tiles of a square picture as the released models cut it, its thumbnail among them."""
    size, tokens = config.vision.image_size, config.tokens_per_tile
    cut = ImageConfig(size, tokens, 1, 12, thumbnail=True, apply_exif=False, max_pixels=DEFAULT_MAX_PIXELS)
    return tiling.num_tiles(side, side, cut)


def asking_of(config: InternVLConfig, side: int, traffic: Traffic, servers: int) -> list[Asking]:
    """Requests of so many servers with a picture of so many pixels each; a Flash model compresses the share of the
    tiles, by chance.
    """
    draw, tiles = random.Random(traffic.seed), tiles_of(side, config)
    full, pixels = config.tokens_per_tile, 3 * config.vision.image_size**2
    asking = []
    for _ in range(traffic.requests * servers):
        tokens = full * tiles
        if config.flash is not None:
            compressed = sum(draw.random() < traffic.share for _ in range(tiles))
            tokens -= (full - config.tokens_per_compressed_tile) * compressed
        down = 2 * config.text.width * tokens
        asking.append(Asking(tiles, traffic.text + tokens, pixels * tiles, down, traffic.answer))
    return asking


def server_slices(config: TrainConfig, pod: Topology, size: Serving) -> Iterator[Topology]:
    """Slices of a chip for a server in a pod: those whose memory should hold all of the model, and on which all chips
    share every row, or experts. (More copies of the weights in one server would only be more servers in step.)
    """
    for where in candidates(config, "decode", size, pod.name):
        if where.chips <= pod.chips and serving_layout(config, where, size)[0]["data"] == 1:
            yield where


def parts(config: TrainConfig, pod: Topology, size: Serving) -> Iterator[tuple[str, str, Callable[[], dict[str, Any]]]]:
    """What is compiled for a pod: 'vision', 'server' or 'coupled', the slice, and how."""
    host = Topology.parse(f"{pod.name}:{CHIPS[pod.name].slices[0]}")
    yield "vision", str(host), lambda: vision_times(config.model, host)
    for where in server_slices(config, pod, size):
        yield "server", str(where), functools.partial(server_times, config, where, size)
        yield "coupled", str(where), functools.partial(coupled_times, config, where, size)


def plan_splits(config: TrainConfig, topology: str, size: Serving, traffic: Traffic) -> dict[str, Any]:
    """`split` of a pod, and the step times that it rests on, compiled.

    Args:
      size: what a server holds.

    Raises:
      InputError: a chip whose step times nobody knows; see `split`.
    """
    pod, times = Topology.parse(topology), no_times()
    if pod.chip.platform != "tpu":
        raise InputError(f"no step times are known of {pod}, and splits are planned by them; give a TPU slice")
    for kind, where, make in parts(config, pod, size):
        times[kind][where] = make()
    return {**split(config.model, pod, times, traffic), "times": times}


def split(
    config: InternVLConfig,
    pod: Topology,
    times: StepTimes,
    traffic: Traffic,
    rates: Mapping[int, float] | None = None,
) -> dict[str, Any]:
    """What deployments on all of a pod's chips can take, for every size of pictures, the best ones first.

    Args:
      times: see `StepTimes`; of slices that are no part of the pod too.
      rates: requests a second for which first tokens are timed, by the side of the pictures; None: 70 % of what the
        best coupled servers can take.

    Raises:
      InputError: no room, or rows that are too short.
    """
    servers = pod.chips // min((Topology.parse(name).chips for name in times["server"]), default=1)
    workloads = [
        _workload(asking_of(config, side, traffic, servers), pod, times, traffic, rates[side] if rates else None)
        for side in traffic.sides
    ]
    found = [{"side": side, **one} for side, one in zip(traffic.sides, workloads, strict=True)]
    return {"task": "dvd", "topology": str(pod), "chips": pod.chips, **dataclasses.asdict(traffic), "workloads": found}


def _workload(
    asking: Sequence[Asking], pod: Topology, times: StepTimes, traffic: Traffic, rate: float | None
) -> dict[str, Any]:
    slots = fit("tokens of prompt and answer", max(one.prompt + one.answer for one in asking), Ladders.slots)
    rated = lambda several: sorted(((one.most(traffic, asking), one) for one in several), key=lambda pair: -pair[0])
    together, apart = rated(_coupled(pod, times, slots, whole=False)), rated(_decoupled(pod, times, slots))
    whole = rated(_coupled(pod, times, slots, whole=True))
    patient = rated(dataclasses.replace(one, tower=dataclasses.replace(one.tower, patient=True)) for _, one in together)
    if not together or not apart:
        raise InputError(f"{pod} has no room for a coupled server, or for a vision server beside a language server")
    rate = rate or _LOAD * together[0][0]
    one_server = {one.topology: most / one.servers for most, one in together}
    rows = []
    for most, one in apart:
        limits = one.limits(traffic, asking)
        same = one_server.get(one.topology)
        rows.append(
            _row(most, one, rate, asking, traffic)
            | {
                "limits": limits,
                "bound_by": min(limits, key=lambda stage: limits[stage]),
                "coupled_on_language_chips_s": None if same is None else same * one.servers,
            }
        )
    # With the same work on the same chips, nothing waiting and no place empty.
    tiles_s = max(row["limits"]["vision"] / row["vision_chips"] for row in rows)
    texts_s = max(one.limits(traffic, asking)["language"] / one.chips for _, one in (*apart, *together))
    return {
        "tiles": asking[0].tiles,
        "prompt": statistics.mean(one.prompt for one in asking),
        "rate": rate,
        "coupled": _row(*together[0], rate, asking, traffic),
        "coupled_patient": _row(*patient[0], rate, asking, traffic),
        "coupled_with_whole_towers": _row(*whole[0], rate, asking, traffic) if whole else None,
        "no_waste_s": pod.chips / (1 / tiles_s + 1 / texts_s),
        # Vision chips for each language chip that would have as much to do.
        "balance": texts_s / tiles_s,
        "splits": rows,
        "most_requests": rows[0],
        "soonest": min(rows, key=lambda row: row["ttft_p90_s"] or math.inf),
    }


def _row(most: float, one: Deployment, rate: float, asking: Sequence[Asking], traffic: Traffic) -> dict[str, Any]:
    mean, p90 = one.first_tokens(traffic, asking, rate) if rate < most else (None, None)
    return {
        "server": one.topology,
        "servers": one.servers,
        "language_chips": one.chips,
        "vision_chips": HOST * one.vision,
        "requests_s": most,
        "ttft_mean_s": mean,
        "ttft_p90_s": p90,
    }


def _coupled(pod: Topology, times: StepTimes, slots: int, whole: bool) -> list[Deployment]:
    """Servers that do both.

    Args:
      whole: every chip has the whole tower, as those of vision servers have.
    """
    found = []
    (vision,) = times["vision"].values()
    for name, server in times["server"].items():
        tower, chips = times["coupled"][name], Topology.parse(name).chips
        encode = vision if whole else tower
        if server["reason"] or encode["reason"] or pod.chips % chips:
            continue
        alone = server["bytes"] - server["tower"]
        needed = alone + vision["bytes"] if whole else max(server["bytes"], tower["bytes"] + server["cache"])
        if needed <= server["limit"]:
            steps = TowerSteps(chips, Ladders.tiles[-1] // chips * chips, _curve(encode["encode"]))
            found.append(Deployment(name, pod.chips // chips, _text(server, slots), steps, 0))
    return found


def _decoupled(pod: Topology, times: StepTimes, slots: int) -> Iterator[Deployment]:
    """Language servers, and vision servers on all chips that are left."""
    (vision,) = times["vision"].values()
    if vision["reason"]:
        return
    curve = _curve(vision["encode"])
    # More tiles for a chip need not be faster: as many at a time as take least for each.
    each = min((size for size, _ in curve.points), key=lambda size: curve.at(size) / size)
    steps = TowerSteps(HOST, HOST * int(each), curve)
    for name, server in times["server"].items():
        chips = Topology.parse(name).chips
        if server["reason"] or max(vision["bytes"], server["bytes"] - server["tower"]) > server["limit"]:
            continue
        for servers in range(1, pod.chips // chips + 1):
            left = pod.chips - servers * chips
            if left and left % HOST == 0:
                yield Deployment(name, servers, _text(server, slots), steps, left // HOST)


def _text(server: Mapping[str, Any], slots: int) -> TextSteps:
    if slots > server["slots"]:
        raise InputError(f"a prompt and its answer need rows of {slots} slots, and were compiled for {server['slots']}")
    first, chunk = _curve(server["first"]), server["chunk"]
    return TextSteps(
        rows=server["rows"],
        groups=server["groups"],
        chunk=chunk,
        piece=Ladders.piece,
        slots=server["slots"],
        first=first,
        late=max(0.0, server["late"] - first.at(chunk)),
        begin=server["begin"],
        token=_curve(server["token"]).at(slots),
    )


def _curve(seconds: Mapping[str, float]) -> Curve:
    return Curve(tuple(sorted((int(size), one) for size, one in seconds.items())))
