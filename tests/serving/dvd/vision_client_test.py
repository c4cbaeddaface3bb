"""Features come over the wire as they are, each tile once, and no more than has to."""

import asyncio
import random
import threading
import time

import ml_dtypes
import numpy as np
import pytest

from internvl_jax.errors import InputError
from internvl_jax.inference import EncodedTiles, Thresholds, digest
from internvl_jax.serving.dvd.feature_request import FeatureRequest
from internvl_jax.serving.dvd.tile_dispatch import VisionBusy, VisionUnavailable
from tests.serving.dvd.fake_tower import (
    FLASH,
    PLAIN,
    SIDE,
    WIDTH,
    FakeTower,
    client,
    local,
    same,
    server,
    talk,
    tiles,
    until,
)

FULL, SMALL = 4 * WIDTH * 2, WIDTH * 2  # bytes of a tile's features


@pytest.mark.parametrize("config", [PLAIN, FLASH], ids=["plain", "flash"])
@pytest.mark.parametrize("dtype", ["bfloat16", np.float32])
@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:0", "ipc"])
def test_features_are_bit_equal_to_local_ones(config, dtype, address, tmp_path):
    shown = tiles(*range(9))
    address = f"ipc://{tmp_path}/vision" if address == "ipc" else address
    with server(FakeTower(config, dtype=dtype), address) as serving:
        come = talk(client(config, serving.address), lambda asking: asking.features(shown))
    assert same(come, local(shown, config, dtype=dtype))
    assert config is PLAIN or 0 < come.compress_G.sum() < 9


def test_values_of_every_pattern_of_bits_come_as_they_are():
    """All finite bfloat16 numbers: signed zeros and subnormals too."""
    bits = np.array([n for n in range(1 << 16) if n & 0x7F80 != 0x7F80], np.uint16)
    pages = np.resize(bits, (-(-len(bits) // (4 * WIDTH)), 4, WIDTH)).view("bfloat16")
    given = np.zeros((len(pages), SIDE, SIDE, 3), np.uint8)
    given[:, 0, 0, 0], given[:, 0, 0, 1] = np.arange(len(pages)) % 256, np.arange(len(pages)) // 256

    class Patterns(FakeTower):
        def __call__(self, tiles_GHWC):
            numbers = tiles_GHWC[:, 0, 0].astype(int) @ (1, 256, 0)
            return EncodedTiles(pages[numbers], None, None)

    with server(Patterns(PLAIN), limits={"credits": 4096}) as serving:
        come = talk(client(PLAIN, serving.address), lambda asking: asking.features(given))
    assert np.stack(come.features).tobytes() == pages.tobytes()


def test_only_the_kept_resolution_travels_and_thresholds_decide_over_all_tiles():
    shown = tiles(*range(8))
    with server(FakeTower(FLASH)) as serving:

        async def conversation(asking):
            for own in (Thresholds(), Thresholds(0.5, 0.0), Thresholds(1.0, 0.0), Thresholds(0.25, 0.9)):
                fresh, before = shown ^ np.uint8(len(seen)), asking.counters.received_bytes
                come = await asking.features(fresh, own)
                assert same(come, local(fresh, FLASH, own))
                compressed = int(come.compress_G.sum())
                seen.append(compressed)
                assert asking.counters.received_bytes - before == compressed * SMALL + (8 - compressed) * FULL

        seen = []
        talk(client(FLASH, serving.address), conversation)
    assert seen[1:3] == [4, 0] and len(set(seen)) > 2
    assert serving.counters.sent_bytes == sum(n * SMALL + (8 - n) * FULL for n in seen)


def test_what_is_known_does_not_travel():
    shown = tiles(*range(6))
    tower = FakeTower(FLASH)
    with server(tower) as serving:

        async def conversation(asking):
            first = await asking.features(shown)
            moved = lambda: (asking.counters.sent_bytes, asking.counters.received_bytes, serving.counters.asked)
            before = moved()
            assert same(await asking.features(shown), first)
            assert same(await asking.features(shown[:3]), local(shown[:3], FLASH))  # decided anew, here
            assert moved() == before
            nothing = Thresholds(1.0, 1.0)
            assert same(await asking.features(shown, nothing), local(shown, FLASH, nothing))
            there = int(first.compress_G.sum())  # those lacked the full resolution
            assert asking.counters.sent_bytes == before[0] == shown.nbytes
            assert asking.counters.received_bytes - before[1] == there * FULL

        talk(client(FLASH, serving.address), conversation)
    assert sum(tower.sizes) == 6


def test_without_a_router_only_tiles_that_are_lacking_are_asked_for():
    with server(FakeTower(PLAIN)) as serving:

        async def conversation(asking):
            await asking.features(tiles(0, 1))
            assert same(await asking.features(tiles(1, 2, 0, 2)), local(tiles(1, 2, 0, 2), PLAIN))
            assert asking.counters.received == 3 and asking.counters.sent_bytes == tiles(0, 1, 2).nbytes

        talk(client(PLAIN, serving.address), conversation)


@pytest.mark.parametrize("config", [PLAIN, FLASH], ids=["plain", "flash"])
def test_an_equal_tile_passes_the_tower_once(config):
    """In one request, in two at the same time, of two clients, and later from another client."""
    tower = FakeTower(config, delay=0.05)
    with server(tower) as serving:

        async def conversation(asking):
            other = client(config, serving.address)
            await other.start()
            asked = [tiles(0, 1, 0), tiles(1, 2), tiles(2, 0)]
            both = [who.features(each) for who in (asking, other) for each in asked]
            for come, each in zip(await asyncio.gather(*both), asked * 2, strict=True):
                assert same(come, local(each, config))
            await other.close()

        talk(client(config, serving.address), conversation)
        talk(client(config, serving.address), lambda asking: asking.features(tiles(2, 1, 0)))
    assert sum(tower.sizes) == serving.counters.tiles == 3


def test_batches_are_made_over_requests_and_clients():
    tower = FakeTower(PLAIN, delay=0.05)
    with server(tower, limits={"batch": 8}) as serving:

        async def conversation(asking):
            other = client(PLAIN, serving.address)
            await other.start()
            each = [(asking, other)[n % 2].features(tiles(n)) for n in range(24)]
            for n, come in enumerate(await asyncio.gather(*each)):
                assert same(come, local(tiles(n), PLAIN))
            await other.close()

        talk(client(PLAIN, serving.address), conversation)
    assert sum(tower.sizes) == 24 and max(tower.sizes) == 8 and len(tower.sizes) <= 6
    assert dict(serving.counters.batches) == {size: tower.sizes.count(size) for size in tower.sizes}


def test_a_batch_is_waited_for_no_longer_than_it_may():
    tower = FakeTower(PLAIN)
    with server(tower, limits={"gather": 0.3}) as serving:

        async def conversation(asking):
            start = time.monotonic()
            first = asyncio.create_task(asking.features(tiles(0)))
            await asyncio.sleep(0.1)
            await asyncio.gather(first, asking.features(tiles(1)))
            return time.monotonic() - start

        seconds = talk(client(PLAIN, serving.address), conversation)
    assert tower.sizes == [2] and 0.3 <= seconds < 1


def test_a_slow_tower_does_not_hold_up_signs_of_life():
    tower = FakeTower(PLAIN, delay=2.0)
    with server(tower, limits={"timeout": 0.8}) as serving:

        async def conversation(asking):
            assert same(await asking.features(tiles(0)), local(tiles(0), PLAIN))
            assert asking.counters.lost == 0 and asking.status == "ok"

        talk(client(PLAIN, serving.address, limits={"timeout": 0.8}), conversation)


def test_caches_are_bounded_in_bytes():
    limits = {"cache_bytes": 5 * FULL}
    with server(FakeTower(PLAIN), limits=limits) as serving:

        async def conversation(asking):
            for n in range(20):
                assert same(await asking.features(tiles(n, n + 1)), local(tiles(n, n + 1), PLAIN))
                await asyncio.sleep(0.03)
                assert asking.state.cache_bytes <= 5 * FULL and serving.state.cache_bytes <= 5 * FULL
            assert asking.state.cache_bytes == serving.state.cache_bytes == 5 * FULL
            assert asking.counters.received < 30

        talk(client(PLAIN, serving.address, limits=limits), conversation)


def test_room_and_credits_are_waited_for_in_turn():
    """Neither end ever holds more than it may, and all requests are answered."""
    tower = FakeTower(PLAIN)
    most = {"pending_bytes": 12 * 4 * WIDTH * 4}
    with server(tower, limits={"credits": 8, "cache_bytes": 0}) as serving:
        asking = client(PLAIN, serving.address, limits={"cache_bytes": 0, **most})
        held, over = [], threading.Event()

        def watch():
            while not over.wait(0.002):
                held.append((asking.state.credits, asking.state.reserved_bytes, serving.state.credits))

        async def conversation(asking):
            asked = [tiles(*range(n, n + 1 + n % 5)) for n in range(40)]
            for come, each in zip(await asyncio.gather(*map(asking.features, asked)), asked, strict=True):
                assert same(come, local(each, PLAIN))

        watcher = threading.Thread(target=watch)
        watcher.start()
        talk(asking, conversation)
        over.set()
        watcher.join()
    credits, reserved, theirs = (max(each) for each in zip(*held, strict=True))
    assert 0 < credits <= 8 and 0 < reserved <= most["pending_bytes"] and 0 < theirs <= 8


def test_what_never_fits_is_refused_at_once():
    with server(FakeTower(PLAIN), limits={"credits": 4}) as serving:

        async def conversation(asking):
            with pytest.raises(InputError, match="5 tiles, more than the 4 that a vision server takes at a time"):
                await asking.features(tiles(*range(5)))
            for wrong in (tiles(0).astype(np.float32), tiles(0)[:, :28], tiles(0)[0]):
                with pytest.raises(InputError, match=r"give uint8\[G, 56, 56, 3\]"):
                    await asking.features(wrong)
            nothing = await asking.features(tiles(0)[:0])
            assert nothing.names == nothing.features == () and nothing.compress_G.shape == (0,)
            assert same(await asking.features(tiles(0, 1, 2, 3)), local(tiles(0, 1, 2, 3), PLAIN))

        talk(client(PLAIN, serving.address), conversation)

        async def narrow(asking):
            with pytest.raises(InputError, match="3 tiles, more than the 2 whose features are taken in at a time"):
                await asking.features(tiles(0, 1, 2))

        limits = {"pending_bytes": 2 * 4 * WIDTH * 4}
        talk(client(PLAIN, serving.address, limits=limits), narrow)

        async def as_wide(asking):  # as many again of half the bytes, before any has come
            assert same(await asking.features(tiles(0, 1, 2, 3)), local(tiles(0, 1, 2, 3), PLAIN))

        talk(client(PLAIN, serving.address, limits=limits, dtype=np.dtype(ml_dtypes.bfloat16)), as_wide)


def test_a_request_whose_turn_never_comes_is_told_that_others_were_before_it():
    tower = FakeTower(PLAIN)
    tower.gate.clear()
    with server(tower, limits={"credits": 1}) as serving:

        async def conversation(asking):
            first = asyncio.create_task(asking.features(tiles(0)))
            await until(lambda: tower.sizes)
            second = FeatureRequest(1 << 40, [digest(tiles(1)[0])], tiles(1), Thresholds(), None)
            second.started -= asking._limits.total - 0.2  # it has waited for most of its time
            asking._dispatch.ask(second)
            with pytest.raises(VisionBusy, match="no features after 10 s; try again later"):
                await asyncio.wrap_future(second.answer)
            asking._dispatch.forget(second)
            tower.gate.set()
            assert same(await first, local(tiles(0), PLAIN))
            await until(lambda: asking.state.requests == asking.state.credits == asking.state.waiting == 0)

        talk(client(PLAIN, serving.address), conversation)


def test_a_tower_that_takes_too_long_is_given_up():
    tower = FakeTower(PLAIN)
    tower.gate.clear()
    with server(tower) as serving:

        async def conversation(asking):
            with pytest.raises(VisionUnavailable, match=r"no features after 0\.3 s; try again later") as error:
                await asking.features(tiles(0))
            assert type(error.value) is VisionUnavailable
            await until(lambda: serving.state.credits == asking.state.credits == asking.state.reserved_bytes == 0)
            tower.gate.set()

        talk(client(PLAIN, serving.address, limits={"total": 0.3}), conversation)


def test_cancelling_gives_credits_and_room_back():
    tower = FakeTower(PLAIN)
    with server(tower, limits={"credits": 6, "batch": 1}) as serving:

        async def conversation(asking):
            tower.gate.clear()
            task = asyncio.create_task(asking.features(tiles(*range(6))))
            await until(lambda: serving.state.credits == serving.state.awaited == 6 and tower.sizes)
            assert asking.state.credits == 6 and asking.state.reserved_bytes > 0
            task.cancel()
            await until(lambda: serving.state.credits == asking.state.credits == asking.state.reserved_bytes == 0)
            await until(lambda: serving.state.awaited == 1 and serving.state.queued == 0)  # the one in the tower
            tower.gate.set()
            assert same(await asking.features(tiles(*range(6, 12))), local(tiles(*range(6, 12)), PLAIN))

        talk(client(PLAIN, serving.address), conversation)
    assert sum(tower.sizes) == 7


@pytest.mark.parametrize("config", [PLAIN, FLASH], ids=["plain", "flash"])
def test_two_hundred_cancels_at_random_moments_leave_nothing_behind(config):
    rng = random.Random(0)
    with server(FakeTower(config, delay=0.002), limits={"credits": 40, "batch": 4}) as serving:

        async def one(asking, number):
            shown = tiles(*(rng.randrange(60) for _ in range(rng.randrange(1, 9))))
            task = asyncio.create_task(asking.features(shown))
            await asyncio.sleep(rng.random() * 0.02 * (number % 4))
            if rng.random() < 0.8:
                task.cancel()
            try:
                assert same(await task, local(shown, config))
                return 1
            except asyncio.CancelledError:
                return 0

        async def conversation(asking):
            answered = sum(await asyncio.gather(*(one(asking, number) for number in range(250))))
            assert 50 < answered < 250
            state = lambda: (asking.state.requests, asking.state.waiting, asking.state.credits)
            await until(lambda: state() == (0, 0, 0) and asking.state.reserved_bytes == 0)
            await until(lambda: serving.state.credits == serving.state.awaited == serving.state.queued == 0)
            assert asking.counters.lost == 0 and serving.counters.refused == 0

        talk(client(config, serving.address, limits={"cache_bytes": 10 * FULL}), conversation)


def test_names_are_digests_of_the_pixels():
    with server(FakeTower(PLAIN)) as serving:
        come = talk(client(PLAIN, serving.address), lambda asking: asking.features(tiles(3, 4)))
    assert come.names == tuple(digest(tile_HWC) for tile_HWC in tiles(3, 4))


def test_after_closing_requests_are_refused_and_those_in_progress_end():
    tower = FakeTower(PLAIN)
    tower.gate.clear()
    with server(tower) as serving:

        async def conversation(asking):
            task = asyncio.create_task(asking.features(tiles(0)))
            await until(lambda: tower.sizes)
            await asking.close()
            for each in (task, asking.features(tiles(1))):
                with pytest.raises(VisionUnavailable, match="was closed"):
                    await each
            tower.gate.set()

        talk(client(PLAIN, serving.address), conversation)
