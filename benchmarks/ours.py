"""The JAX process: the same engine and train step that `launch.chat` and `launch.train` run."""

import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks import workload
from benchmarks.answering import Actions, seconds, serve
from checkpoint_convert import load_model
from internvl_jax.data import Batch
from internvl_jax.inference import Engine, Ladders, Part, Request, Sampler, SamplingParams, Token, Vocabulary, fit
from internvl_jax.models import InternVL
from internvl_jax.sharding import flatten
from internvl_jax.training import DataConfig, OptimConfig, RunConfig, TrainConfig, build


def load(arguments: dict[str, Any]) -> Actions:
    """The actions of a task; see `inference`, `rollout` and `train` for their arguments."""
    tasks: dict[str, Callable[..., Actions]] = {
        "inference": _inference,
        "batch": _batch,
        "rollout": _rollout,
        "train": _train,
    }
    return tasks[arguments.pop("task")](**arguments)


def _inference(directory: str, config: dict, dtype: str, prompt: int, tiles: int, new: int) -> Actions:
    model = load_model(directory, dtype)
    engine = _engine(model, None)
    del model
    programs, params = engine.tiles.programs, engine.params
    tokens_T, tiles_GHWC = workload.prompt(config, prompt, tiles)
    T = fit("prompt tokens", prompt, engine.ladders.prompts)
    tokens_BT = np.zeros((1, T), np.int32)
    tokens_BT[0, :prompt] = tokens_T
    zero_B, features_BPD = np.zeros(1, np.int32), np.zeros((1, T, engine.config.text.width), np.float32)
    features_BPD = jax.device_put(features_BPD.astype(dtype))
    request = Request(tokens_T, tiles_GHWC, SamplingParams(max_new_tokens=new, temperature=0.0))
    state = programs.empty(classes=((1, T),), beside=params["lm.norm.scale"])

    def prefill() -> None:
        nonlocal state
        counts_B = np.array([prompt], np.int32)
        part = Part(zero_B, tokens_BT, zero_B, counts_B, features_BPD)
        state, logits_BV, _ = programs.chunk(params, state, part, number=0, reach=0)
        jax.block_until_ready((state, logits_BV))

    def generate() -> dict[str, Any]:
        tokens, times = [], []
        engine.add(request)
        while engine.busy:
            for token in engine.step(most=1):
                tokens.append(token.token)
                times.append(time.perf_counter())
        return {"seconds": (times[-1] - times[0]) / (new - 1), "tokens": tokens}

    return {
        "vision": lambda: seconds(lambda: jax.block_until_ready(programs.encode(params, tiles_GHWC))),
        "prefill": lambda: seconds(prefill),
        "decode": generate,
    }


def _batch(
    directory: str, config: dict, requests: int, prompts: tuple[int, int], answers: tuple[int, int], rows: int
) -> Actions:
    model = load_model(directory, "float32")
    engine, turns = _engine(model, None), itertools.count()

    def asked() -> list[Request]:
        """Other words and pictures each time: what the engine keeps is of no use for them."""
        return [
            Request(tokens_T, tiles_GHWC, SamplingParams(max_new_tokens=new))
            for tokens_T, tiles_GHWC, new in workload.mixed(config, requests, prompts, answers, next(turns))
        ]

    def batch() -> dict[str, Any]:
        few = asked()
        start = time.perf_counter()
        found = engine.run(few)
        return {"seconds": time.perf_counter() - start, "tokens": [tokens for (tokens,) in found]}

    def arrival() -> dict[str, Any]:
        nonlocal engine
        chunk, slots = min(256, prompts[0]), -(-sum((prompts[1], answers[1])) // 64) * 64
        ladders = Ladders(prompts=(chunk,), together=(1,), tiles=(1,), slots=(slots,), classes=((rows + 1, slots),))
        engine = _engine(model, dataclasses.replace(ladders, chunk=chunk))
        engine.warm_up()
        few = sorted(asked(), key=lambda request: len(request.tokens_T))
        ids, writing = [engine.add(_for(few[number], answers[1])) for number in range(rows)], set[int]()
        while len(writing) < rows:
            writing |= {token.id for token in engine.step(most=1)}
        alone = [_step(engine)[0] for _ in range(16)]
        late, beside = engine.add(few[-1]), []
        while True:
            seconds, told = _step(engine)
            beside.append(seconds)
            if any(token.id == late for token in told):
                break
        for id in (*ids, late):
            engine.drop(id)
        found = {"decode_s": float(np.median(alone)), "longest_step_s": max(beside), "first_token_s": sum(beside)}
        found = {key: round(value, 4) for key, value in found.items()}
        return found | {"prompt": len(few[-1].tokens_T), "chunk": chunk}

    return {"batch": batch, "arrival": arrival}


def _engine(model: InternVL, ladders: Ladders | None) -> Engine:
    return Engine(model, Vocabulary(size=model.config.text.vocab, banned=(), stops=()), ladders)


def _for(request: Request, tokens: int) -> Request:
    return dataclasses.replace(request, sampling=SamplingParams(max_new_tokens=tokens))


def _step(engine: Engine) -> tuple[float, list[Token]]:
    start = time.perf_counter()
    told = engine.step(most=1)
    return time.perf_counter() - start, told


def _rollout(directory: str, config: dict, prompt: int, tiles: int, group: int, new: int) -> Actions:
    model = load_model(directory, "float32")
    vocab, params = model.config.text.vocab, flatten(model)
    sampler = Sampler(model.config, np.dtype("float32"), Vocabulary(size=vocab, banned=(), stops=()))
    del model
    pair = workload.prompt(config, prompt, tiles)

    def sample(group: int, new: int, temperature: float) -> dict[str, Any]:
        request = Request(*pair, SamplingParams(max_new_tokens=new, temperature=temperature))
        start = time.perf_counter()
        (responses,) = sampler.sample(params, [request], group, 0)
        wall = time.perf_counter() - start
        assert all(len(response.tokens) == new for response in responses)
        return {"seconds": wall, "tokens": responses[0].tokens.tolist()}

    return {
        "rollout": lambda: sample(group, new, 1.0),
        "first": lambda: sample(group, 1, 1.0),
        "greedy": lambda: sample(1, new, 0.0),
    }


def _train(directory: str, config: dict, tokens: int, tiles: int, optim: dict) -> Actions:
    model = load_model(directory, "float32")
    program = build(
        TrainConfig(
            model=model.config,
            objective="ntp",
            data=DataConfig("", "", 1, tiles, False, tokens, tiles, "token"),
            optim=OptimConfig(**optim, warmup_ratio=0.0),
            run=RunConfig(workdir="", steps=1_000_000, rows=1, dtype="float32", remat="none"),
        )
    )
    state = program.from_params(flatten(model))
    del model
    tokens_T, tiles_GHWC = workload.prompt(config, tokens, tiles)
    targets_T = np.append(tokens_T[1:], 0).astype(np.int32)
    weights_T = (targets_T != config["image_token_id"]).astype(np.float32)
    weights_T[-1] = 0
    batch = program.place(
        Batch(
            tokens_BT=tokens_T[None],
            targets_BT=targets_T[None],
            weights_BT=weights_T[None],
            segments_BT=np.ones((1, tokens), np.int32),
            positions_BT=np.arange(tokens, dtype=np.int32)[None],
            tiles_GHWC=tiles_GHWC,
            tile_mask_G=np.ones(tiles, bool),
        )
    )

    def step() -> dict[str, Any]:
        nonlocal state
        start = time.perf_counter()
        state, metrics = program.step(state, batch)
        loss = float(metrics["loss"])
        jax.block_until_ready(state)
        return {"seconds": time.perf_counter() - start, "loss": loss}

    return {"step": step}


if __name__ == "__main__":
    serve(lambda: load(json.loads(sys.argv[1])))
