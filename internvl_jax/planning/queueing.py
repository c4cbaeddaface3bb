"""Requests through servers, simulated: servers that do all, or vision servers, a network and language servers.

Everything takes the time that is given for it, and nothing else takes any; only arrivals are drawn.

1. A link sends one request's bytes after the other.
2. A vision server takes all tiles that wait, in their order, up to the most that its chips hold at a time; what comes
   meanwhile waits for the next batch. A request goes to the server with the fewest tiles to do.
3. A server steps as the engine does: tiles of requests that wait (as many as it has chips while answers are being
   written, else all), rows for requests that are seen, a part of one prompt for every group of its chips, then a token
   of all rows, or several where no prompt is left to read. A language server has no tiles.

A link, a vision server of one tile and a server of one row are queues of one line: with a fixed time for each request
they wait as long as theory says of these (M/D/1).
"""

import collections
import dataclasses
import itertools
import random
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Curve:
    """Seconds by size: straight lines between the sizes that are known, and on beyond the last one.

    Attributes:
      points: (size, seconds), rising sizes. Smaller ones take as long as the first.
    """

    points: tuple[tuple[float, float], ...]

    def at(self, size: float) -> float:
        if size <= self.points[0][0] or len(self.points) == 1:
            return self.points[0][1]
        after = next((n for n, (known, _) in enumerate(self.points) if known >= size), len(self.points) - 1)
        (x0, y0), (x1, y1) = self.points[after - 1 : after + 1]
        return y0 + (y1 - y0) * (size - x0) / (x1 - x0)


@dataclasses.dataclass(frozen=True)
class TowerSteps:
    """How tiles become features on some chips.

    Attributes:
      chips: over how many of them tiles are spread; they come in multiples of it.
      most: tiles at a time.
      seconds: of a number of tiles of a chip.
      patient: of a server that also writes: while requests that are seen wait for rows, others' tiles wait until there
        is one for each chip.
    """

    chips: int
    most: int
    seconds: Curve
    patient: bool = False

    def time(self, tiles: int) -> float:
        return self.seconds.at(-(-tiles // self.chips))


@dataclasses.dataclass(frozen=True)
class TextSteps:
    """What the steps of a server take that reads prompts and writes answers.

    Attributes:
      rows: how many requests it holds at a time.
      groups: of chips, each of which reads a part of a prompt of its own.
      chunk: tokens of a part, at most.
      piece: tokens that a row may get in a step without prompts.
      slots: tokens of the row that `late` is of.
      first: seconds of a part of so many tokens that begins its prompt.
      late: seconds that a whole chunk takes besides where it ends a row.
      begin: seconds of a first token.
      token: seconds of a token of all rows.
    """

    rows: int
    groups: int
    chunk: int
    piece: int
    slots: int
    first: Curve
    late: float
    begin: float
    token: float

    def part(self, begin: int, end: int) -> float:
        """Seconds of these tokens of a prompt."""
        before = self.late * (end - begin) / self.chunk * end / self.slots if begin else 0.0
        return self.first.at(end - begin) + before


@dataclasses.dataclass(frozen=True)
class Arrival:
    """A request.

    Attributes:
      at: the second of its arrival.
      tiles: of its pictures.
      prompt: tokens of its prompt, image tokens among them.
      answer: tokens of its answer.
    """

    at: float
    tiles: int
    prompt: int
    answer: int


@dataclasses.dataclass(frozen=True)
class Told:
    """When a request had its first token, and when its last; in seconds."""

    first: float
    last: float


def poisson(rate: float, count: int, seed: int) -> list[float]:
    """Moments of arrivals that know nothing of each other, `rate` a second."""
    draw = random.Random(seed)
    return list(itertools.accumulate(draw.expovariate(rate) for _ in range(count)))


def link(at: Sequence[float], seconds: Sequence[float]) -> list[float]:
    """When what is sent from these moments on, in their order, has arrived.

    Args:
      seconds: that each of them needs.
    """
    free, arrived = 0.0, []
    for moment, needed in zip(at, seconds, strict=True):
        free = max(free, moment) + needed
        arrived.append(free)
    return arrived


def encoded(at: Sequence[float], tiles: Sequence[int], encoder: TowerSteps, servers: int) -> list[float]:
    """When all tiles of requests that come at these moments, in their order, are encoded by equal servers."""
    done = [0.0] * len(at)
    lines = [_TileQueue(encoder) for _ in range(servers)]
    for number, moment in enumerate(at):
        for line in lines:
            line.run(moment, done)
        min(lines, key=lambda line: line.left(moment)).add(number, moment, tiles[number])
    for line in lines:
        line.run(float("inf"), done)
    return done


class _TileQueue:
    """The queue of one vision server."""

    def __init__(self, encoder: TowerSteps):
        self._encoder = encoder
        self._waiting: collections.deque[list] = collections.deque()  # of [number, arrival, tiles]
        self._free, self._flying, self._tiles = 0.0, 0, 0  # those that wait

    def add(self, number: int, at: float, tiles: int) -> None:
        self._waiting.append([number, at, tiles])
        self._tiles += tiles

    def left(self, now: float) -> int:
        """Tiles that are not encoded."""
        return self._tiles + (self._flying if self._free > now else 0)

    def run(self, until: float, done: list[float]) -> None:
        """Begins all batches that can be begun before a moment."""
        while self._waiting and (start := max(self._free, self._waiting[0][1])) < until:
            taken, ended = 0, []
            while self._waiting and self._waiting[0][1] <= start and taken < self._encoder.most:
                first = self._waiting[0]
                count = min(first[2], self._encoder.most - taken)
                taken, first[2] = taken + count, first[2] - count
                if first[2] == 0:
                    ended.append(self._waiting.popleft()[0])
            self._free, self._flying = start + self._encoder.time(taken), taken
            self._tiles -= taken
            for number in ended:
                done[number] = self._free


def served(asked: Sequence[Arrival], steps: TextSteps, encoder: TowerSteps | None) -> list[Told]:
    """What becomes of requests at one server, in the order of their arrival.

    Args:
      encoder: the server's own; None: features come with the requests.
    """
    server = _Server(asked, steps, encoder)
    while not server.idle:
        server.step()
    return [Told(first, last) for first, last in zip(server.first, server.last, strict=True)]


class _Server:
    def __init__(self, asked: Sequence[Arrival], steps: TextSteps, encoder: TowerSteps | None):
        self._asked, self._steps, self._encoder = asked, steps, encoder
        self.first, self.last = [0.0] * len(asked), [0.0] * len(asked)
        self._now = 0.0
        # So many requests have come, have been seen, have got a row: all in their order.
        self._come = self._seen = self._seated = 0
        self._dark = asked[0].tiles if asked else 0  # tiles of the first request that is not seen
        self._reading: list[list[int]] = []  # of [number, tokens that are read]
        self._writing: dict[int, int] = {}  # tokens that are left of answers

    @property
    def idle(self) -> bool:
        return not (self._reading or self._writing or self._seated < len(self._asked))

    def step(self) -> None:
        if not self._reading and not self._writing:
            self._now = max(self._now, self._asked[self._seated].at)
        while self._come < len(self._asked) and self._asked[self._come].at <= self._now:
            self._come += 1
        self._look()
        while self._seated < self._seen and len(self._reading) + len(self._writing) < self._steps.rows:
            self._reading.append([self._seated, 0])
            self._seated += 1
        alone = not self._reading  # nobody's prompt holds up the others
        self._read()
        self._write(self._steps.piece if alone else 1)

    def _look(self) -> None:
        if self._encoder is None:
            self._seen = self._come
            return
        room, taken = self._encoder.chips if self._writing else self._encoder.most, 0
        ahead = min(self._come, self._seated + self._steps.rows)
        if self._encoder.patient and self._seen > self._seated and self._lacking(ahead) < self._encoder.chips:
            return
        while self._seen < ahead and taken < room:
            count = min(self._dark, room - taken)
            taken, self._dark = taken + count, self._dark - count
            if self._dark:
                break
            self._seen += 1
            self._dark = self._asked[self._seen].tiles if self._seen < len(self._asked) else 0
        if taken:
            self._now += self._encoder.time(taken)

    def _lacking(self, ahead: int) -> int:
        """Tiles of the requests before number `ahead` that are not encoded."""
        return self._dark + sum(one.tiles for one in self._asked[self._seen + 1 : ahead]) if self._seen < ahead else 0

    def _read(self) -> None:
        seconds, complete = 0.0, []
        for part in self._reading[: self._steps.groups]:
            number, begin = part
            part[1] = end = min(begin + self._steps.chunk, self._asked[number].prompt)
            seconds = max(seconds, self._steps.part(begin, end))
            if end == self._asked[number].prompt:
                complete.append(number)
        self._now += seconds + (self._steps.begin if complete else 0.0)
        self._reading = [part for part in self._reading if part[0] not in complete]
        for number in complete:
            self.first[number] = self.last[number] = self._now
            if self._asked[number].answer > 1:
                self._writing[number] = self._asked[number].answer - 1

    def _write(self, most: int) -> None:
        if not self._writing:
            return
        left = self._writing.values()
        # A row that somebody waits for is given away as soon as its answer ends.
        enough = min(left) if self._come > self._seated else max(left)
        count = min(most, enough)
        for number in list(self._writing):
            self._writing[number] -= count
            if self._writing[number] <= 0:
                self.last[number] = self._now + (count + self._writing.pop(number)) * self._steps.token
        self._now += count * self._steps.token
