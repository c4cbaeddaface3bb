"""Adapters of a server: each request its own; a folder that is looked at again; what comes and goes under load."""

import asyncio
import concurrent.futures
import dataclasses
import json
import logging
import os
import shutil
import signal
import types

import jax
import pytest

import internvl_jax as ivl
from checkpoint_convert import read_adapter
from checkpoint_convert.adapters import Adapter
from checkpoint_convert.peft_writer import write_adapter
from internvl_jax.errors import InputError
from internvl_jax.models import AdapterPlaces, with_places
from internvl_jax.serving import AdapterSources, Limits, endpoints, served_adapters
from internvl_jax.serving.refusals import Refusal
from internvl_jax.serving.schema import ChatRequest, CompletionRequest
from internvl_jax.serving.served_adapters import ServedAdapters
from internvl_jax.sharding import bind
from tests.adapters import drawn_adapter, with_merged
from tests.serving.conftest import LIMITS, Running

CHAT = "/v1/chat/completions"


def write(directory, config, seed):
    directory.mkdir(parents=True, exist_ok=True)
    write_adapter(directory, Adapter(*drawn_adapter(config, seed)), config, "hf", "base")
    return directory


class Noted:
    """An engine's thread, that notes what is done to the engine."""

    def __init__(self):
        self.engine, self.done, self.problem = self, [], None

    async def call(self, function):
        return function()

    def put_adapter(self, name, lora, params):
        if self.problem is not None:
            raise self.problem
        self.done.append(f"put {name}")

    def drop_adapter(self, name):
        self.done.append(f"drop {name}")


def test_a_folder_is_looked_at_again(config, tmp_path, caplog):
    given, folder, engine = write(tmp_path / "given", config, 1), tmp_path / "all", Noted()
    write(folder / "first", config, 2)
    (folder / "no adapter").mkdir()
    adapters = ServedAdapters(engine, config, AdapterSources({"mine": given}, folder), ("base",))
    caplog.set_level(logging.WARNING, "internvl_jax.serving")

    async def lives():
        async with adapters:
            assert adapters.names == ("first", "mine")
            await adapters.refresh()
            assert engine.done == ["put first", "put mine"]
            write(folder / "second", config, 3)
            shutil.rmtree(folder / "first")
            os.utime(given / "adapter_config.json", ns=(1, 1))  # changed
            write(folder / "base", config, 4)
            await adapters.refresh()
            assert sorted(engine.done[2:]) == ["drop first", "put mine", "put second"]
            assert set(adapters.names) == {"mine", "second"} and "name of the base" in caplog.text
            (folder / "second" / "adapter_config.json").write_text("{")
            for time, problem in enumerate((InputError("all places"), jax.errors.JaxRuntimeError("no memory\nat")), 2):
                engine.problem = problem
                os.utime(given / "adapter_config.json", ns=(time, time))
                await adapters.refresh()
                assert set(adapters.names) == {"mine", "second"}
            assert "adapter mine is not loaded: all places" in caplog.text
            assert "adapter mine is not loaded: the device has no room for it now (no memory)" in caplog.text
            folder.rename(tmp_path / "gone")
            await adapters.refresh()
            assert set(adapters.names) == {"mine", "second"} and "their folder can't be read" in caplog.text

    asyncio.run(lives())


def test_a_hangup_while_adapters_are_loaded_is_heard_afterwards(config, tmp_path, monkeypatch):
    write(tmp_path / "all" / "early", config, 1)
    adapters = ServedAdapters(Noted(), config, AdapterSources({}, tmp_path / "all"), ("base",))

    def read(directory, config):
        if directory.name == "early":
            write(tmp_path / "all" / "late", config, 2)
            os.kill(os.getpid(), signal.SIGHUP)
        return read_adapter(directory, config)

    async def lives():
        async with adapters:
            assert adapters.names == ("early",)
            while "late" not in adapters.names:
                await asyncio.sleep(0.01)

    monkeypatch.setattr(served_adapters, "read_adapter", read)
    ours = lambda *_: None
    before = signal.signal(signal.SIGHUP, ours)
    try:
        asyncio.run(asyncio.wait_for(lives(), 60))
        assert signal.getsignal(signal.SIGHUP) is ours
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_of_a_folder_cannot_be_loaded_holds_up_no_start(config, tmp_path, caplog):
    write(tmp_path / "all" / "base", config, 1)
    write(tmp_path / "all" / "good", config, 2)
    taken = ServedAdapters(Noted(), config, AdapterSources({}, tmp_path / "all"), ("base",))
    given = ServedAdapters(Noted(), config, AdapterSources({"base": tmp_path / "all" / "base"}), ("base",))
    caplog.set_level(logging.WARNING, "internvl_jax.serving")

    async def entered(adapters):
        async with adapters:
            return adapters.names

    assert asyncio.run(entered(taken)) == ("good",) and "adapter base is not loaded: " in caplog.text
    with pytest.raises(InputError, match="has the name of the base"):
        asyncio.run(entered(given))


@pytest.mark.parametrize("name", ["", "a/b", "..", "-a", "a" * 101, "a\nb"])
def test_names_that_no_adapter_has(name, tmp_path):
    with pytest.raises(InputError, match="no name of an adapter"):
        AdapterSources({name: tmp_path})


def test_a_given_adapter_goes_before_one_of_the_folder(config, tmp_path):
    write(tmp_path / "all" / "mine", config, 1)
    assert AdapterSources({"mine": tmp_path / "given"}, tmp_path / "all").find() == {"mine": tmp_path / "given"}


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="no folder"):
        AdapterSources({}, tmp_path / "nothing")


class Sought(Exception):
    """Which adapters answers were asked of."""


class NoWritings:
    """In place of `Writings`."""

    @staticmethod
    async def begin(service, asked):
        raise Sought([order.adapter for order, _ in asked])


def test_a_request_is_for_the_adapter_that_it_names(monkeypatch):
    monkeypatch.setattr(endpoints, "Writings", NoWritings)
    service = types.SimpleNamespace(limits=Limits(), context=96)
    there, names = ["one", "two"], ("base", "alias")
    nobody = types.SimpleNamespace(receive=lambda: asyncio.sleep(60), tokenizer=None, text=str)
    made = endpoints.Endpoints(service, nobody, names, "", None, lambda: tuple(there))

    def sought(name, count):
        with pytest.raises(Sought) as found:
            if count:
                asyncio.run(made.complete(CompletionRequest(prompt=["a"] * count, model=name), nobody))
            else:
                messages = [{"role": "user", "content": "a"}]
                asyncio.run(made.chat(ChatRequest(messages=messages, model=name), nobody))
        return found.value.args[0]

    for name in (None, *names, "two", "one"):
        assert sought(name, 2) == sought(name, 0) * 2 == [name if name in there else None] * 2
    told = lambda: [model["id"] for model in json.loads(asyncio.run(made.models()).body)["data"]]
    assert told() == ["base", "alias", "one", "two"]
    assert json.loads(asyncio.run(made.model("two")).body)["parent"] == "base"
    there.remove("one")
    with pytest.raises(Refusal, match="there is no model 'one' here"):
        sought("one", 0)
    assert told() == ["base", "alias", "two"]


@pytest.mark.soak
def test_64_mixed_requests_answer_as_each_model_alone_while_adapters_come_and_go(
    structure, params, config, processor, tmp_path, monkeypatch
):
    folder, found, loops, entered = tmp_path / "all", {}, [], ServedAdapters.__aenter__

    async def enter(self):
        loops.append(asyncio.get_running_loop())
        await entered(self)

    monkeypatch.setattr(ServedAdapters, "__aenter__", enter)
    for seed, name in enumerate(("one", "two"), 1):
        write(folder / name, config, seed)
    server = Running(
        with_places(bind(structure[0], params), AdapterPlaces(3, 4)),
        processor,
        limits=dataclasses.replace(LIMITS, waiting_requests=80, waiting_tokens=40_000),
        adapters=AdapterSources({}, folder),
    )
    try:
        compiled = server.num_compiled
        names = ("small", "one", "two", "alias")
        listed = server.client.get("/v1/models").json()["data"]
        assert [(model["id"], model.get("parent")) for model in listed] == [
            ("small", None),
            ("alias", None),
            ("one", "small"),
            ("two", "small"),
        ]

        def body(number, name):
            messages = [{"role": "user", "content": f"what is it? {number // 4}"}]
            drawn = {"temperature": 1, "seed": number} if number % 2 else {"temperature": 0}
            return {"model": name, "messages": messages, "max_tokens": 8, **drawn}

        def ask(number, name):
            response = server.client.post(CHAT, json=body(number, name))
            assert response.status_code == 200, response.text
            assert response.json()["model"] == name
            return response.json()["choices"][0]["message"]["content"] or ""  # null where all of it is thinking

        own = {name: read_adapter(folder / name, config) for name in ("one", "two")}
        models = {None: bind(structure[0], params)}
        for name, adapter in own.items():
            models[name] = bind(structure[0], with_merged(params, config, adapter.lora, adapter.params))

        def alone(number, name):
            given = body(number, name)
            options = {"seed": given["seed"]} if number % 2 else {}
            return ivl.chat(
                models.get(name, models[None]), processor, given["messages"], 8, given["temperature"], **options
            )

        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            asked = [(number, names[number % 4]) for number in range(64)]
            for (number, name), answer in zip(asked, pool.map(lambda pair: ask(*pair), asked), strict=True):
                found[number] = answer
                assert answer == alone(number, name), (number, name)
            assert len({found[number] for number in (0, 4, 8, 12)} | {found[1], found[2]}) > 3

            # Under load: one is dropped, another comes, and the first comes back under another name.
            running = [pool.submit(ask, number, "two") for number in range(2, 64, 4)]
            (folder / "one").rename(folder / "three")
            write(folder / "four", config, 9)
            asyncio.run_coroutine_threadsafe(server.server.adapters.refresh(), loops[0]).result(60)
            assert server.client.post(CHAT, json=body(0, "one")).status_code == 404
            later = [pool.submit(ask, number, "three") for number in range(1, 64, 4)]
            assert [each.result() for each in running] == [found[number] for number in range(2, 64, 4)]
            assert [each.result() for each in later] == [found[number] for number in range(1, 64, 4)]
        listed = server.client.get("/v1/models").json()["data"]
        assert {model["id"] for model in listed} == {"small", "alias", "two", "three", "four"}
        assert server.num_compiled == compiled
    finally:
        server.close()
