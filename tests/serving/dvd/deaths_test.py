"""Servers and clients that are killed, stopped or start again: real processes."""

import asyncio
import contextlib
import os
import signal
import time

import pytest

from internvl_jax.serving.dvd.tile_dispatch import VisionUnavailable
from tests import forks
from tests.serving.dvd.fake_tower import (
    FLASH,
    PLAIN,
    FakeTower,
    ask_for_ever,
    client,
    local,
    same,
    serve_for_ever,
    server,
    talk,
    tiles,
    until,
)


@contextlib.contextmanager
def vision_process(flash=False, delay=0.0, port=0):
    """A process and its address."""
    ours, theirs = forks.Pipe()
    process = forks.start(serve_for_ever, port, flash, delay, theirs)
    try:
        assert ours.poll(30), "no server"
        yield process, ours.recv()
    finally:
        process.kill()
        process.join()
        for end in (ours, theirs):
            end.close()


async def asked_while(asking, config, disturb):
    """Fifty requests, eight at a time, of which some ask for the same tiles; `disturb` is awaited amid them."""
    answered, turn = [], asyncio.Semaphore(8)

    async def one(number):
        shown = tiles(*range(number, number + 1 + number % 5))
        async with turn:
            come = await asking.features(shown)
        assert same(come, local(shown, config))
        answered.append(number)
        if len(answered) == 12:
            await disturb()

    await asyncio.gather(*map(one, range(50)))
    assert sorted(answered) == list(range(50))


@pytest.mark.parametrize("config", [PLAIN, FLASH], ids=["plain", "flash"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM], ids=lambda number: number.name)
def test_one_of_two_servers_dies_amid_fifty_requests(config, number):
    flash = config is FLASH
    with vision_process(flash, 0.02) as (first, one), vision_process(flash, 0.02) as (_, other):
        asking = client(config, one, other, limits={"cache_bytes": 0})

        async def conversation(asking):
            assert asking.status == "ok"
            (link,) = (link for link in asking._dispatch.links if link.address == one)

            async def strike():
                await until(lambda: link.used > 0)  # it is at something that others must take over
                os.kill(first.pid, number)

            start = time.monotonic()
            await asked_while(asking, config, strike)
            assert time.monotonic() - start < asking._limits.total
            await until(lambda: asking.status == "degraded")
            assert asking.counters.failed == 0 and asking.counters.lost >= 1

        talk(asking, conversation)
        assert asking.counters.moved > 0


def test_the_only_server_dies_and_comes_back():
    with vision_process(delay=0.5) as (process, address):
        port = int(address.rpartition(":")[2])

        async def conversation(asking):
            task = asyncio.create_task(asking.features(tiles(0)))
            await until(lambda: asking.state.credits == 1)
            process.kill()
            start = time.monotonic()
            for late in (task, asking.features(tiles(1))):
                with pytest.raises(VisionUnavailable, match=r"no vision server for 1 s \(.*\); try again later"):
                    await late
            assert 0.9 < time.monotonic() - start < 3  # twice the limit for those that wait, and what is slow here
            assert asking.status == "unavailable" and asking.state.servers == 0
            await until(lambda: asking.state.reserved_bytes == asking.state.requests == 0)
            with vision_process(port=port):
                start = time.monotonic()
                await until(lambda: asking.status == "ok")
                assert same(await asking.features(tiles(0)), local(tiles(0), PLAIN))
                assert time.monotonic() - start < 5

        talk(client(PLAIN, address), conversation)


def test_who_can_wait_for_a_servers_return_is_answered():
    with vision_process() as (process, address):
        port = int(address.rpartition(":")[2])

        async def conversation(asking):
            process.kill()
            await until(lambda: asking.status == "unavailable")
            task = asyncio.create_task(asking.features(tiles(0)))
            await asyncio.sleep(0.3)
            with vision_process(port=port):
                assert same(await task, local(tiles(0), PLAIN))

        talk(client(PLAIN, address, limits={"absent": 30.0}), conversation)


def test_a_client_that_is_killed_leaves_nothing_behind():
    tower = FakeTower(PLAIN, delay=0.02)
    with server(tower, limits={"timeout": 0.5}) as serving:
        process = forks.start(ask_for_ever, serving.address)
        asyncio.run(until(lambda: serving.state.credits > 8, 30))
        process.kill()
        process.join()
        asyncio.run(until(lambda: serving.state.clients == serving.state.credits == serving.state.awaited == 0))
        come = talk(client(PLAIN, serving.address), lambda asking: asking.features(tiles(1)))
        assert same(come, local(tiles(1), PLAIN))


def test_a_server_that_stops_in_order_hands_over_at_once():
    """Without waiting for a time of silence."""
    towers = [FakeTower(PLAIN), FakeTower(PLAIN)]
    with server(towers[0]) as first, server(towers[1]) as second:
        for tower in towers:
            tower.gate.clear()

        async def conversation(asking):
            task = asyncio.create_task(asking.features(tiles(0, 1)))
            await until(lambda: towers[0].sizes or towers[1].sizes)
            serving, tower = (first, towers[0]) if towers[0].sizes else (second, towers[1])
            for each in towers:
                if each is not tower:
                    each.gate.set()
            ending = asyncio.create_task(asyncio.to_thread(serving.stop))
            assert same(await asyncio.wait_for(task, 5), local(tiles(0, 1), PLAIN))
            tower.gate.set()
            await ending

        talk(client(PLAIN, first.address, second.address, limits={"timeout": 60.0}), conversation)
