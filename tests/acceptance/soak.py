"""python -m tests.acceptance.soak --checkpoint=DIR [--seconds=60] [--streams=64] [--aborts=200] [--bodies=20000]

Wears a server out (with --vision_servers=N a decoupled one), in parts, each of which may be left out with 0:

1. streams: as many clients at once as given, who never wait, so that most of what they ask must be refused. Every
   request is answered in full or refused with 429, and each answer to a known question is the one that is given alone.
2. aborts: clients that leave at random moments, in the middle of sending too.
3. bodies: HTTP requests that are nearly right (`bodies`). A fault's number brings it back: --first=NUMBER --bodies=1.
4. After each part: memory and open files are what they were, nothing runs or waits, all rows can be used at once, and
   known questions have their answers.

The last line of stdout is JSON; exit code 1 if there is any fault.
"""

import argparse
import asyncio
import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from benchmarks.http_client import Address, Heard, ask, fetch
from benchmarks.served_process import ServerProcess, serving
from checkpoint_convert import read_model_config
from tests.acceptance import bodies
from tests.acceptance.sameness import asked, data_url

ROWS, CONTEXT, TOKENS, KNOWN = 8, 512, 128, 40
SERVER = (
    *(f"--rows={ROWS}", f"--context={CONTEXT}", "--dtype=float32"),
    *("--limit=waiting_requests=16", "--limit=waiting_tokens=4096"),
    *("--limit=body_seconds=3", "--limit=default_tokens=16"),
)
SETTLED = 10.0  # seconds until nothing runs or waits any more
GROWTH = 0.03  # of memory, from the second fifth of a part to its last


@dataclasses.dataclass
class Asked:
    """A question with its answer."""

    body: dict[str, Any]
    texts: dict[int, str]


class Soak:
    """One run.

    Args:
      processes: as `serving` gives them.
      side: pixels of a tile.
      seed: of everything that is random.
    """

    def __init__(self, processes: Mapping[str, ServerProcess], side: int, seed: int):
        self._processes, self._server = processes, processes["server"]
        self._side, self._seed = side, seed
        self._address = Address.of(self._server.url)
        self._known: list[Asked] = []
        self.faults: list[str] = []

    def fault(self, what: str) -> None:
        self.faults.append(what[:500])
        print(f"fault: {what[:500]}", flush=True)

    async def know(self) -> None:
        """Asks known questions one by one."""
        for number in range(KNOWN):
            pictures = [data_url(number + each, (self._side, self._side)) for each in range(number % 3)]
            body = {
                "messages": [asked(f"what is number {number}?", *pictures)],
                "ignore_eos": True,
                "n": 1 + number % 2,
            }
            body |= {"max_tokens": TOKENS, "temperature": 0 if number % 4 == 0 else 1, "seed": number}
            heard = await ask(self._address, json.dumps(body).encode(), 60)
            if not heard.whole:
                self.fault(f"a question alone: {heard.status} {heard.error}")
            self._known.append(Asked(body, heard.texts))

    async def idle(self, part: str, files: int) -> dict[str, Any]:
        """Looks whether the server is as it was before anything was asked."""
        names = ("num_requests_running", "num_requests_waiting", "vision_requests", "vision_credits")
        end = time.monotonic() + SETTLED
        while left := {name: value for name, value in (await self._metrics()).items() if name in names and value}:
            if time.monotonic() > end:
                self.fault(f"{part}: after {SETTLED:g} s there is still {left}")
                break
            await asyncio.sleep(0.05)
        await self._use_all_rows(part)
        for known in self._known:
            heard = await ask(self._address, json.dumps(known.body).encode(), 60)
            if heard.texts != known.texts:
                self.fault(f"{part}: alone again {heard.texts!r} ({heard.status} {heard.error}), not {known.texts!r}")
        await asyncio.sleep(1)
        if (opened := self._files()) > files + 4:
            self.fault(f"{part}: {opened} files and connections are open, {files} were before")
        return {"open_files": [files, opened], "memory_mb": self._bytes() >> 20}

    async def _use_all_rows(self, part: str) -> None:
        for _ in range(3):  # the last of them may begin when the first have ended
            most, heard = await self._together()
            if most == ROWS:
                break
        if most != ROWS or not all(each.whole for each in heard) or len({each.texts[0] for each in heard}) != 1:
            self.fault(f"{part}: {most:g} of {ROWS} rows were used; {[(each.status, each.error) for each in heard]}")

    async def _together(self) -> tuple[float, list[Heard]]:
        body = {"messages": [asked("go on")], "ignore_eos": True, "max_tokens": CONTEXT - 64, "temperature": 0}
        asking = [asyncio.create_task(ask(self._address, json.dumps(body).encode(), 120)) for _ in range(ROWS)]
        most = 0.0
        while not all(task.done() for task in asking):
            most = max(most, (await self._metrics())["num_requests_running"])
            await asyncio.sleep(0.01)
        return most, [task.result() for task in asking]

    async def streams(self, count: int, seconds: float) -> dict[str, Any]:
        """Clients who never wait."""
        counts: collections.Counter[str] = collections.Counter()
        times: list[float] = []
        end = time.monotonic() + seconds

        async def client(number: int) -> None:
            rng = random.Random(f"{self._seed} {number}")
            while time.monotonic() < end:
                known = rng.choice(self._known) if rng.random() < 0.7 else None
                body = known.body if known else self._new(rng)
                heard = await ask(self._address, json.dumps(body | {"stream": rng.random() < 0.7}).encode(), 120)
                counts[self._verdict(heard, body, known)] += 1
                if heard.whole:
                    times.append(heard.ended - heard.sent)
                else:
                    await asyncio.sleep(rng.uniform(0, 0.02))

        async with self._watched("streams"):
            await asyncio.gather(*(client(number) for number in range(count)))
        answered, all_of_them = len(times), sum(counts.values())
        figures = {"requests": all_of_them, **counts, "offered_per_answered": round(all_of_them / max(answered, 1), 1)}
        p50 = round(statistics.median(times), 3) if times else None
        return figures | {"answered_per_s": round(answered / seconds, 2), "p50_s": p50}

    def _new(self, rng: random.Random) -> dict[str, Any]:
        pictures = [data_url(rng.getrandbits(60), (self._side * rng.randint(1, 2), self._side)) for _ in range(2)]
        sampling = {"max_tokens": TOKENS, "ignore_eos": True, "temperature": 1}
        return {"messages": [asked(f"what of {rng.random()}?", *pictures[: rng.randrange(3)])]} | sampling

    def _verdict(self, heard: Heard, body: dict[str, Any], known: Asked | None) -> str:
        if heard.status == 429 and heard.error == "server_busy" and heard.retry.isdecimal():
            return "refused"
        if not heard.whole:
            self.fault(f"streams: {heard.status} {heard.error}")
            return "lost"
        if known is not None and heard.texts != known.texts:
            self.fault(f"streams: {heard.texts!r}, alone {known.texts!r}")
            return "mixed"
        if heard.usage and heard.usage["completion_tokens"] != TOKENS * body.get("n", 1):
            self.fault(f"streams: {heard.usage['completion_tokens']} tokens")
            return "wrong length"
        return "answered"

    async def aborts(self, count: int) -> dict[str, Any]:
        """Clients who leave."""
        limit = asyncio.Semaphore(12)
        before = await self._metrics()

        async def leave(number: int) -> None:
            rng = random.Random(f"{self._seed} leaves {number}")
            way = rng.choice(("in the middle of sending", "at some moment", "while it is answered"))
            body = self._new(rng) | {"max_tokens": 400, "n": rng.choice((1, 1, 3))}
            if rng.random() < 0.2:
                body |= {"structured_outputs": {"regex": "[a-z ]{100,180}"}, "ignore_eos": False}
            body["stream"] = way == "while it is answered" or rng.random() < 0.5
            content = json.dumps(body).encode()
            content = self._address.head("POST", "/v1/chat/completions", len(content)) + content
            if way == "in the middle of sending":
                content = content[: rng.randrange(len(content))]
            async with limit:
                reader, writer = await asyncio.open_connection(self._address.host, self._address.port)
                writer.write(content)
                with contextlib.suppress(ConnectionError, EOFError):
                    await writer.drain()
                    if way == "while it is answered":
                        await asyncio.wait_for(reader.readuntil(b"data: "), 60)
                    await asyncio.sleep(rng.uniform(0, 0.2))
                if rng.random() < 0.5:
                    writer.transport.abort()
                else:
                    writer.close()

        async with self._watched("aborts"):
            await asyncio.gather(*(leave(number) for number in range(count)))
        await asyncio.sleep(0.5)
        after = await self._metrics()
        return {"clients": count, "in_the_engine": after["request_aborted_total"] - before["request_aborted_total"]}

    async def bodies(self, first: int, count: int) -> dict[str, Any]:
        """Requests that are nearly right."""
        maker = bodies.Bodies(self._address, self._documents(), self._seed)
        numbers, counts = iter(range(first, first + count)), collections.Counter[str]()
        slowest = 0.0

        async def client() -> None:
            nonlocal slowest
            for number in numbers:
                kind, attempt = maker.make(number)
                began = time.monotonic()
                statuses, wrong = await bodies.judge(self._address, attempt)
                slowest = max(slowest, time.monotonic() - began)
                counts.update(map(str, statuses or ["none"]))
                if wrong:
                    self.fault(f"bodies {number} ({kind}): {wrong}")

        async with self._watched("bodies"):
            await asyncio.gather(*(client() for _ in range(8)))
        return {"requests": count, "statuses": dict(sorted(counts.items())), "slowest_s": round(slowest, 2)}

    def _documents(self) -> list[tuple[str, Any]]:
        picture = data_url(1, (self._side, self._side))
        plain = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
        full = plain | {
            "model": None, "temperature": 0.5, "top_p": 0.9, "n": 2, "seed": 3, "stop": ["x"], "stream": True,
            "stream_options": {"include_usage": True}, "logprobs": True, "top_logprobs": 2, "logit_bias": {"5": 1.0},
            "presence_penalty": 0.5, "frequency_penalty": 0.5, "top_k": 5, "min_p": 0.1, "min_tokens": 1,
            "stop_token_ids": [3], "chat_template_kwargs": {"enable_thinking": False}, "thresholds": {"relative": 0.5},
            "response_format": {"type": "text"}, "metadata": {"a": "b"},
        }  # fmt: skip
        schema = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}}}
        shaped = {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}}
        turns = [{"role": "system", "content": "x"}, asked("a", picture), {"role": "assistant", "content": "b"}]
        shown = {"messages": [*turns, asked("c", picture)], "max_completion_tokens": 4, "return_tiles": True}
        return [
            ("/v1/chat/completions", plain),
            ("/v1/chat/completions", full),
            ("/v1/chat/completions", shown),
            ("/v1/chat/completions", plain | shaped),
            ("/v1/chat/completions", plain | {"structured_outputs": {"regex": "[a-c]{1,3}"}}),
            ("/v1/completions", {"prompt": "hello", "max_tokens": 4, "logprobs": 1, "n": 1}),
            ("/v1/completions", {"prompt": [5, 6, 7], "max_tokens": 4, "stream": True}),
            ("/tokenize", {"messages": plain["messages"]}),
            ("/tokenize", {"prompt": "hello"}),
            ("/detokenize", {"tokens": [5, 6, 7]}),
        ]

    async def _metrics(self) -> dict[str, float]:
        _, text = await fetch(self._address, "/metrics")
        lines = [line.split(" ") for line in text.decode().splitlines() if line.startswith("internvl:")]
        return {name.removeprefix("internvl:"): float(value) for name, value in lines if "{" not in name}

    @contextlib.asynccontextmanager
    async def _watched(self, part: str) -> AsyncIterator[None]:
        """Notes memory twice a second, and looks whether it stays what it was."""
        sizes: list[int] = []

        async def watch() -> None:
            while True:
                sizes.append(self._bytes())
                await asyncio.sleep(0.5)

        watching = asyncio.create_task(watch())
        try:
            yield
        finally:
            watching.cancel()
        fifth = max(len(sizes) // 5, 1)
        medians = [int(statistics.median(sizes[at : at + fifth])) for at in range(0, len(sizes), fifth)][:5]
        early, late = medians[min(1, len(medians) - 1)], medians[-1]
        told = [each >> 20 for each in medians]
        print(f"{part}: memory in MB, a fifth after the other: {told}; at most {max(sizes) >> 20}", flush=True)
        if len(sizes) >= 40 and late > early * (1 + GROWTH) + (16 << 20):
            self.fault(f"{part}: memory grew from {int(early):,} to {int(late):,} bytes")
        for name, process in self._processes.items():
            if not process.alive:
                self.fault(f"{part}: {name} has ended")

    def _bytes(self) -> int:
        return sum(sum(process.memory().values()) for process in self._processes.values())

    def _files(self) -> int:
        return len(os.listdir(f"/proc/{self._server.pid}/fd"))

    async def run(self, given: argparse.Namespace) -> dict[str, Any]:
        """All parts."""
        found: dict[str, Any] = {}
        await self.know()
        await self.idle("before", self._files() + 8)
        files = self._files()
        parts = {
            "streams": (given.streams and given.seconds, lambda: self.streams(given.streams, given.seconds)),
            "aborts": (given.aborts, lambda: self.aborts(given.aborts)),
            "bodies": (given.bodies, lambda: self.bodies(given.first, given.bodies)),
        }
        for name, (wanted, part) in parts.items():
            if wanted and self._server.alive:
                began = time.monotonic()
                found[name] = await part()
                found[name] |= {"seconds": round(time.monotonic() - began, 1)} | await self.idle(name, files)
                print(f"{name}: {json.dumps(found[name])}", flush=True)
        return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("accept_out"))
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--aborts", type=int, default=200)
    parser.add_argument("--bodies", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vision_servers", type=int, default=0)
    parser.add_argument("--serve", action="append", default=[])
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    side = read_model_config(given.checkpoint).vision.image_size
    with serving(str(given.checkpoint), [*SERVER, *given.serve], given.vision_servers, given.out) as processes:
        soak = Soak(processes, side, given.seed)
        found = asyncio.run(soak.run(given))
    print(json.dumps({"faults": len(soak.faults)} | found))
    return int(bool(soak.faults))


if __name__ == "__main__":
    sys.exit(main())
