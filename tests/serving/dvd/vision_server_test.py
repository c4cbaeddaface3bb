"""Who may not be served is told why; who breaks the rules is put out; whoever dies leaves nothing behind."""

import asyncio
import logging
import math
import time

import numpy as np
import pytest
import zmq

from internvl_jax.errors import InputError
from internvl_jax.inference import EncodedTiles, digest
from internvl_jax.serving.dvd import greeting, wire
from internvl_jax.serving.dvd.tile_dispatch import VisionUnavailable
from internvl_jax.serving.dvd.wire_messages import (
    Bye,
    Cancel,
    Challenge,
    Code,
    EncodeTiles,
    Entry,
    Hello,
    KeptFeatures,
    Need,
    Ping,
    Pong,
    Proof,
    TilePixels,
    TileShape,
    Welcome,
    WireFault,
)
from tests.serving.dvd.fake_tower import (
    FLASH,
    MODEL,
    PLAIN,
    SECRET,
    WEIGHTS,
    FakeTower,
    client,
    local,
    same,
    server,
    talk,
    tiles,
    until,
)
from tests.serving.dvd.strangers import raw_greeting, stranger, telephone

SHAPE = TileShape.of(FLASH)
OTHER = b"another secret of the tests"


def refusal(config, serving, **changes):
    """Why a client may not start."""
    with pytest.raises(InputError) as error:
        talk(client(config, serving.address, **changes), None)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_another_secret_is_refused_on_both_sides(caplog):
    with server(FakeTower(PLAIN)) as serving:
        assert "it refuses the secret; give both sides the same" in refusal(PLAIN, serving, secret=OTHER)
        assert "only one side has a secret" in refusal(PLAIN, serving, secret=None)
    assert "somebody called who does not have the secret" in caplog.text
    with server(FakeTower(PLAIN), secret=None) as serving:
        assert "only one side has a secret" in refusal(PLAIN, serving, secret=SECRET)
        talk(client(PLAIN, serving.address, secret=None), lambda asking: asking.features(tiles(0)))


def test_a_proof_without_the_secret_is_refused():
    with server(FakeTower(FLASH)) as serving, stranger(serving.address, SHAPE) as other:
        other.greet(OTHER)
        fault = other.fault()
        assert (fault.request, fault.code) == (0, Code.SECRET) and "does not fit the secret" in fault.text
        other.say(EncodeTiles(1, (Entry(b"n" * 16),)))
        assert other.fault().code == Code.GREETING


def test_a_proof_counts_once():
    with server(FakeTower(FLASH)) as serving:
        with stranger(serving.address, SHAPE) as first:
            proof = first.greet()
            assert type(first.hear()) is Welcome
        with stranger(serving.address, SHAPE) as second:
            second.say(proof)  # without a challenge
            fault = second.fault()
            assert fault.code == Code.GREETING and "counts once" in fault.text
            second.say(Hello(b"n" * 32))  # with the client's old nonce, too
            assert type(second.hear()) is Challenge
            second.say(proof)
            assert second.fault().code == Code.SECRET
            second.enter()
        with stranger(serving.address, SHAPE) as third:
            third.say(Hello(b"n" * 32))
            nonce = third.hear().nonce
            wrong = Proof(b"x" * 32, greeting.filled(MODEL))
            right = Proof(greeting.client_proof(SECRET, b"n" * 32, nonce, MODEL), greeting.filled(MODEL))
            third.say(wrong)
            assert third.fault().code == Code.SECRET
            third.say(right)  # no second guess at the same nonce
            assert third.fault().code == Code.GREETING


def test_another_model_is_refused():
    with server(FakeTower(PLAIN)) as serving:
        text = refusal(PLAIN, serving, model=b"other")
        assert "has another model, preprocessing or dtype (model) than the language server (other); start both" in text


def test_another_version_is_refused():
    with server(FakeTower(FLASH)) as serving, stranger(serving.address, SHAPE) as other:
        hello = wire.encode(Hello(b"n" * 32))
        other.send(hello[:4] + b"\2\0" + hello[6:])
        fault = other.fault()
        assert fault.code == Code.VERSION and "speaks version 2 of the wire, this one 1; install" in fault.text


def test_servers_with_other_weights_are_not_mixed(caplog):
    with (
        server(FakeTower(PLAIN)) as first,
        server(FakeTower(PLAIN), weights=b"others") as second,
        pytest.raises(InputError, match=r"has other weights .* than the first vision server's; start all"),
    ):
        talk(client(PLAIN, first.address, second.address), None)
    assert "has other weights" in caplog.text


def test_no_more_clients_than_may_be():
    with server(FakeTower(PLAIN), limits={"peers": 1}) as serving:

        async def conversation(asking):
            second = client(PLAIN, serving.address, limits={"absent": 0.2})
            await second.start()
            assert second.status == "unavailable"
            with pytest.raises(VisionUnavailable, match="1 language servers are connected, as many as may be"):
                await second.features(tiles(0))
            await second.close()
            assert same(await asking.features(tiles(0)), local(tiles(0), PLAIN))

        talk(client(PLAIN, serving.address), conversation)


def test_an_address_that_is_taken_is_one_sentence():
    with server(FakeTower(PLAIN)) as serving, pytest.raises(InputError, match=r"can't be had .*; choose another"):
        server(FakeTower(PLAIN), serving.address).start()


def fake_server(conversation, config=PLAIN, **changes):
    """What a client makes of a server that is spoken by hand: it greets rightly, then `answer(message)` is sent."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        router.bind("tcp://127.0.0.1:0")
        address, nonces = router.get_string(zmq.LAST_ENDPOINT), {}

        async def serve(answer):
            while True:
                while not router.poll(0):
                    await asyncio.sleep(0.005)
                who, frame = router.recv_multipart()
                message = wire.decode(frame, TileShape.of(config))
                replies = []
                match message:
                    case Hello(nonce):
                        nonces[who] = nonce
                        replies = [Challenge(b"s" * 32)]
                    case Proof():
                        fields = (None, nonces[who], changes.get("nonce", b"s" * 32), MODEL, WEIGHTS)
                        replies = [Welcome(greeting.server_proof(*fields), greeting.filled(WEIGHTS), 9, 4.0)]
                    case Ping():
                        replies = [Pong()]
                    case _:
                        replies = answer(message)
                for reply in replies:
                    frames = reply if type(reply) is tuple else (reply if type(reply) is bytes else wire.encode(reply),)
                    router.send_multipart((who, *frames))

        async def whole():
            asking = client(
                config, address, secret=None, limits={"absent": 0.3, "timeout": 0.5, **changes.get("l", {})}
            )
            task = asyncio.create_task(serve(changes.get("answer", lambda message: [])))
            try:
                await asking.start()
                await conversation(asking)
            finally:
                await asking.close()
                task.cancel()

        asyncio.run(whole())


def answers(values_PD, tokens=4, probability=math.nan):
    """Features for what is asked, all alike."""

    def answer(message):
        if type(message) is not EncodeTiles:
            return []
        names = dict.fromkeys(entry.name for entry in message.entries)
        return [KeptFeatures(message.request, name, probability, tokens, 8, 2, values_PD) for name in names]

    return answer


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_features_that_are_not_finite_are_refused_and_cost_their_request_alone(bad):
    values_PD = np.ones((4, 8), np.float32)
    values_PD[2, 3] = bad

    async def conversation(asking):
        with pytest.raises(VisionUnavailable, match="sent features that are no finite numbers; look at its weights"):
            await asking.features(tiles(0, 1))
        assert asking.counters.lost == 0 and asking.status == "ok"
        values_PD[2, 3] = 0
        assert len((await asking.features(tiles(0))).features) == 1  # nothing of it was kept

    fake_server(conversation, answer=answers(values_PD))


def test_a_server_that_has_not_the_secret_is_refused():
    """It may have recorded another connection's answer."""

    async def conversation(asking):
        raise AssertionError("it was let in")

    with pytest.raises(InputError, match="its proof does not fit the secret; give both sides the same"):
        fake_server(conversation, nonce=b"t" * 32)


@pytest.mark.parametrize(
    ("config", "answer", "why"),
    [
        (PLAIN, lambda message: [b"IVDV"], "a header of 4 bytes"),
        (PLAIN, lambda message: [b"x" * 32], "does not begin with IVDV"),
        (PLAIN, lambda message: [(wire.encode(Pong()), b"")], "a message of several frames"),
        (PLAIN, lambda message: [Need(message.request, (message.entries[0].name,))] * 2, "or twice for one"),
        (PLAIN, lambda message: [Need(message.request, (b"x" * 16,))], "asked for a tile that it was not asked about"),
        (PLAIN, lambda message: [KeptFeatures(message.request, b"x" * 16, 0.5, 4, 8, 0, None)], "not asked for"),
        (
            PLAIN,
            lambda message: [KeptFeatures(message.request, message.entries[0].name, 0.5, 4, 8, 0, None)],
            "left out",
        ),
        (PLAIN, lambda message: [WireFault(0, 5, "so it is\n")], "it says: so it is"),
        (PLAIN, lambda message: [WireFault(0, 99, "so it is")], "it says: so it is"),
        (PLAIN, lambda message: [Hello(b"n" * 32)], "out of turn"),
        (FLASH, answers(np.ones((4, 8), np.float32)), "without the router's probability"),
    ],
)
def test_a_server_that_breaks_the_rules_is_left_with_a_sentence(config, answer, why, caplog):
    async def conversation(asking):
        with pytest.raises(VisionUnavailable):
            await asking.features(tiles(0))
        await until(lambda: asking.state.credits == 0)

    fake_server(conversation, config, answer=lambda message: answer(message) if type(message) is EncodeTiles else [])
    assert why in caplog.text


def test_a_request_is_moved_twice_at_most():
    came = []

    def leave(message):
        came.append(type(message))
        return [Bye()] if type(message) is EncodeTiles else []

    async def conversation(asking):
        with pytest.raises(VisionUnavailable, match=r"vision server .* was lost, after 2 others; try again"):
            await asking.features(tiles(0))
        assert came.count(EncodeTiles) == 3

    fake_server(conversation, answer=leave, l={"absent": 10.0})


RULES = {
    "a request twice": [EncodeTiles(1, (Entry(b"a" * 16),))] * 2,
    "more than the credits": [EncodeTiles(1, tuple(Entry(bytes([n]) * 16) for n in range(5)))],
    "more than the credits together": [
        EncodeTiles(n, (Entry(bytes([n]) * 16), Entry(bytes([n + 9]) * 16))) for n in (1, 2, 3)
    ],
    "another tile": [EncodeTiles(1, (Entry(b"a" * 16),)), TilePixels(1, b"a" * 16, tiles(0)[0].tobytes())],
    "a tile not asked for": [EncodeTiles(1, (Entry(b"a" * 16),)), TilePixels(1, b"b" * 16, tiles(0)[0].tobytes())],
    "a greeting again": [Hello(b"n" * 32)],
    "what servers say": [Pong()],
}


@pytest.mark.parametrize("messages", RULES.values(), ids=RULES.keys())
def test_a_client_that_breaks_the_rules_is_put_out_and_leaves_nothing(messages):
    with server(FakeTower(FLASH), limits={"credits": 4}) as serving, stranger(serving.address, SHAPE) as other:
        other.enter()
        for message in messages:
            other.say(message)
        heard = [other.hear()]
        while type(heard[-1]) is Need:
            heard.append(other.hear())
        assert type(heard[-1]) is WireFault and heard[-1].request == 0 and heard[-1].code == Code.FRAME
        asyncio.run(until(lambda: serving.state.clients == serving.state.credits == serving.state.awaited == 0))
        other.say(Ping())
        assert other.fault().code == Code.GREETING
        other.enter()


def test_late_and_doubled_tiles_are_dropped():
    tower = FakeTower(FLASH)
    [tile_HWC] = tiles(1)
    name, pixels = digest(tile_HWC), tile_HWC.tobytes()
    with server(tower) as serving, stranger(serving.address, SHAPE) as other:
        other.enter()
        other.say(EncodeTiles(1, (Entry(name),)))
        assert other.hear() == Need(1, (name,))
        for _ in range(3):
            other.say(TilePixels(1, name, pixels))
        assert type(other.hear()) is KeptFeatures
        other.say(TilePixels(1, name, pixels))  # the request has ended
        other.say(Cancel(1))
        other.say(Cancel(77))
        other.say(Ping())
        assert other.hear() == Pong()
    assert tower.sizes == [1] and serving.counters.refused == 0


def test_who_waits_for_the_pixels_of_another_does_not_wait_for_its_death():
    [tile_HWC] = tiles(1)
    name = digest(tile_HWC)
    with server(FakeTower(PLAIN), limits={"timeout": 30.0}) as serving, stranger(serving.address, SHAPE) as lazy:
        lazy.enter()
        lazy.say(EncodeTiles(1, (Entry(name),)))
        assert lazy.hear() == Need(1, (name,))  # and sends nothing
        come = talk(client(PLAIN, serving.address), lambda asking: asking.features(tiles(1)))
        assert same(come, local(tiles(1), PLAIN))
        assert type(lazy.hear()) is KeptFeatures


@pytest.mark.parametrize("says_goodbye", [True, False])
def test_a_client_that_dies_leaves_nothing_behind(says_goodbye, caplog):
    tower = FakeTower(PLAIN)
    tower.gate.clear()
    with server(tower, limits={"batch": 1, "timeout": 0.5}) as serving:
        with stranger(serving.address, SHAPE) as other:
            other.enter()
            names = [digest(tile_HWC) for tile_HWC in tiles(0, 1, 2)]
            other.say(EncodeTiles(1, tuple(map(Entry, [*names, b"x" * 16]))))
            assert type(other.hear()) is Need
            for name, tile_HWC in zip(names, tiles(0, 1, 2), strict=True):
                other.say(TilePixels(1, name, tile_HWC.tobytes()))
            asyncio.run(until(lambda: serving.state.queued == 2 and serving.state.credits == 4))
            if says_goodbye:
                other.say(Bye())
                asyncio.run(until(lambda: serving.state.clients == 0, 0.4))
        asyncio.run(until(lambda: serving.state.clients == serving.state.credits == serving.state.queued == 0))
        tower.gate.set()
        asyncio.run(until(lambda: serving.state.awaited == 0))
    assert tower.sizes == [1]
    assert says_goodbye or "silent for 0.5 s" in caplog.text


def test_a_client_that_does_not_read_is_put_out():
    """Or features would pile up here."""
    shown = tiles(*range(4))
    names = [digest(tile_HWC) for tile_HWC in shown]
    with server(FakeTower(PLAIN), limits={"credits": 4, "timeout": 60.0}) as serving:
        talk(client(PLAIN, serving.address), lambda asking: asking.features(shown))
        with stranger(serving.address, TileShape.of(PLAIN)) as other:
            other.enter()
            start = time.monotonic()
            for n in range(200_000):
                other.say(EncodeTiles(n + 1, tuple(map(Entry, names))))
                if n % 1000 == 0 and serving.state.clients == 0:
                    break
            assert serving.counters.sent_bytes < 1 << 28 and time.monotonic() - start < 30
        asyncio.run(until(lambda: serving.state.clients == serving.state.credits == 0))


def test_a_tower_that_fails_costs_its_batch_alone():
    class Broken(FakeTower):
        def __call__(self, tiles_GHWC) -> EncodedTiles:
            if (tiles_GHWC[:, 0, 0, 0] == tiles(13)[0, 0, 0, 0]).any():
                raise RuntimeError("out of memory")
            return super().__call__(tiles_GHWC)

    with server(Broken(PLAIN)) as serving:

        async def conversation(asking):
            with pytest.raises(VisionUnavailable, match="says: the tower failed: RuntimeError: out of memory"):
                await asking.features(tiles(0, 13))
            assert same(await asking.features(tiles(0)), local(tiles(0), PLAIN))
            await until(lambda: asking.state.credits == asking.state.reserved_bytes == 0)
            assert asking.counters.lost == 0

        talk(client(PLAIN, serving.address), conversation)
        assert serving.counters.failed == 1

        with server(FakeTower(PLAIN)) as sound:  # and another server may do better
            both = client(PLAIN, serving.address, sound.address)
            come = talk(both, lambda asking: asking.features(tiles(13)))
            assert same(come, local(tiles(13), PLAIN)) or both.counters.moved


def test_garbage_on_the_port_hurts_nobody(caplog):
    caplog.set_level(logging.ERROR)
    with server(FakeTower(PLAIN), secret=None) as serving:
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\0" * 1000, b"\xff" * 1000, raw_greeting()[:50]):
            with telephone(serving.address) as line:
                line.sendall(garbage)
        with telephone(serving.address) as line:  # a part of 2 to the power of 60 bytes: the line is cut
            line.sendall(raw_greeting() + b"\2" + (1 << 60).to_bytes(8, "big") + bytes(1000))
            while line.recv(1 << 12):
                pass
        come = talk(client(PLAIN, serving.address, secret=None), lambda asking: asking.features(tiles(0)))
        assert same(come, local(tiles(0), PLAIN))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_tower_that_breaks_ends_the_server_with_a_word():
    class Wrong(FakeTower):
        def __call__(self, tiles_GHWC) -> EncodedTiles:
            raise TypeError("no tower")

    with server(FakeTower(PLAIN)) as sound, pytest.raises(RuntimeError, match="a thread of the vision server has died"):
        broken = server(Wrong(PLAIN))
        broken.start()

        async def conversation(asking):
            each = await asyncio.gather(
                *(asking.features(tiles(number)) for number in range(6))
            )  # some for each server
            assert all(same(come, local(tiles(number), PLAIN)) for number, come in enumerate(each))
            assert asking.counters.moved > 0
            await until(lambda: asking.status == "degraded")

        talk(client(PLAIN, broken.address, sound.address), conversation)
        broken.wait()
