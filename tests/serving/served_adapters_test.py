"""Adapters of a server: each request its own; a folder that is looked at again; what comes and goes under load."""

import asyncio
import concurrent.futures
import dataclasses
import logging
import os
import shutil

import pytest

import internvl_jax as ivl
from checkpoint_convert import read_adapter
from checkpoint_convert.adapters import Adapter
from checkpoint_convert.peft_writer import write_adapter
from internvl_jax.errors import InputError
from internvl_jax.models import AdapterPlaces, with_places
from internvl_jax.serving import AdapterSources
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
        self.engine, self.done, self.full = self, [], False

    async def call(self, function):
        return function()

    def put_adapter(self, name, lora, params):
        if self.full:
            raise InputError("all places are taken")
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
            engine.full = True
            os.utime(given / "adapter_config.json", ns=(2, 2))
            await adapters.refresh()
            assert set(adapters.names) == {"mine", "second"} and "all places are taken" in caplog.text

    asyncio.run(lives())


@pytest.mark.parametrize("name", ["", "a/b", "..", "-a", "a" * 101, "a\nb"])
def test_names_that_no_adapter_has(name, tmp_path):
    with pytest.raises(InputError, match="no name of an adapter"):
        AdapterSources({name: tmp_path})


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="no folder"):
        AdapterSources({}, tmp_path / "nothing")


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
