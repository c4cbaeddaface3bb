"""Adapters beside one base: every answer is that of its own model alone, whoever writes beside it, comes or goes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvl_jax.errors import InputError
from internvl_jax.inference import Engine, Ladders, Request, SamplingParams, Vocabulary
from internvl_jax.models import AdaptedWeight, AdapterPlaces, InternVL, LoraConfig, Runtime, place, with_places
from internvl_jax.sharding import abstract, bind, make_mesh, places
from tests.adapters import PATHS, drawn_adapter, with_merged

CLASSES = Ladders((4,), prompts=(32,), together=(4,), tiles=(5,), slots=(64,), classes=((4, 64),), chunk=32)
PLACES = AdapterPlaces(count=3, rank=4)


def asked(processor, number, adapter):
    rng = np.random.default_rng(number // 3)
    tiles = number // 3 % 3
    tokens = [*[processor.tokenizer.image_context] * (4 * tiles), *rng.integers(0, 250, 5 + number // 3 % 12)]
    drawn = SamplingParams(9, 1.0, seed=number, top_p=0.95) if number % 2 else SamplingParams(max_new_tokens=7)
    pictures = rng.integers(0, 255, (tiles, 28, 28, 3), dtype=np.uint8)
    return Request(np.array(tokens, np.int32), pictures, drawn, adapter=adapter)


@pytest.fixture(scope="module")
def adapters(config):
    drawn = functools.partial(drawn_adapter, config)
    return {"one": drawn(1), "two": drawn(2, PATHS[2:], most=2), "three": drawn(3, PATHS[:3])}


@pytest.fixture(scope="module")
def engine(structure, params, processor):
    engine = Engine(with_places(bind(structure[0], params), PLACES), Vocabulary.of(processor), CLASSES)
    engine.warm_up()
    return engine


@pytest.fixture(scope="module")
def alone(structure, params, config, adapters, processor):
    """Answers of the base and of each merged model, as a function of requests for it alone."""
    own = {name: with_merged(params, config, *adapter) for name, adapter in adapters.items()} | {None: params}
    single = Engine(bind(structure[0], params), Vocabulary.of(processor), dataclasses.replace(CLASSES, chunk=16))

    def answer(name, requests):
        single.params = own[name]
        return [tokens for (tokens,) in single.run([dataclasses.replace(each, adapter=None) for each in requests])]

    return answer


def test_mixed_rows_answer_as_each_model_alone_and_adapters_come_and_go(engine, alone, adapters, processor):
    compiled = engine.num_compiled
    names = (None, "one", "two")  # prompts are the same for all three: nothing of what was read is another's
    for name in names[1:]:
        engine.put_adapter(name, *adapters[name])
    requests = [asked(processor, number, names[number % 3]) for number in range(64)]
    wanted = {
        name: iter(alone(name, [each for each in requests if each.adapter == name])) for name in (*names, "three")
    }
    expected = [next(wanted[each.adapter]) for each in requests]
    assert [tokens for (tokens,) in engine.run(requests)] == expected
    assert len({tuple(tokens) for tokens in expected[:3]}) == 3

    # Under load: a name is given away while its answers are being written, and a new adapter waits for their place.
    found, ids = {}, {}
    for number, each in enumerate(requests[:24]):
        ids[engine.add(each)] = number
    note = lambda: [found.setdefault(ids[token.id], []).append(token.token) for token in engine.step(most=1)]
    note()
    engine.drop_adapter("two")
    with pytest.raises(InputError, match="no adapter 'two'"):
        engine.add(requests[2])
    engine.put_adapter("three", *adapters["three"])
    with pytest.raises(InputError, match="all 3 places"):
        engine.put_adapter("two", *adapters["one"])
    later = [dataclasses.replace(each, adapter="three") for each in requests[:9:3]]
    for number, each in enumerate(later):
        ids[engine.add(each)] = 24 + number
    while engine.busy:
        note()
    assert [found[number] for number in range(24)] == expected[:24]
    assert [found[24 + number] for number in range(3)] == alone("three", later)
    engine.put_adapter("two", *adapters["one"])  # the same name, another adapter
    again = [dataclasses.replace(each, adapter="two") for each in requests[1::3]]
    assert [tokens for (tokens,) in engine.run(again)] == expected[1::3]

    # A name that nobody is being answered with has its own place to give; one that somebody is has not.
    engine.put_adapter("two", *adapters["two"])
    ids[engine.add(requests[2])] = 27
    with pytest.raises(InputError, match="all 3 places"):
        engine.put_adapter("two", *adapters["one"])
    while engine.busy:
        note()
    assert found[27] == expected[2]

    # What overflows for one is nothing to rows beside it; programs that are compiled later leave adapters alone.
    lora, own = adapters["two"]
    huge = {path: value if path.endswith("scale") else np.full_like(value, 3e38) for path, value in own.items()}
    engine.put_adapter("two", lora, huge)
    engine._runner._warm_up_places()
    assert [tokens for (tokens,) in engine.run(requests[:6])][::3] == expected[:6:3]
    assert [tokens for (tokens,) in engine.run(later)] == [found[24 + number] for number in range(3)]
    assert engine.num_compiled == compiled


@pytest.mark.parametrize("kind", ["pages", "mesh", "stacked"])
@pytest.mark.soak
def test_rows_of_every_kind_answer_as_each_model_alone(kind, structure, params, config, alone, adapters, processor):
    model, ladders = bind(structure[0], params), CLASSES
    if kind == "pages":
        ladders = dataclasses.replace(CLASSES, classes=((4, 96),), page=8)
    if kind == "mesh":
        where = place(config.text, make_mesh({"data": 2}, jax.devices()[:2]), "serve_tp")
        graphdef, specs = abstract(lambda rngs: InternVL(config, rngs, Runtime(jnp.float32, placement=where)))
        model = bind(
            graphdef, {path: jax.device_put(params[path], place) for path, place in places(specs, where).items()}
        )
        ladders = dataclasses.replace(CLASSES, together=(4,), classes=((4, 96),))
    engine = Engine(with_places(model, PLACES), Vocabulary.of(processor), ladders, apart=False)
    engine.warm_up()
    compiled = engine.num_compiled
    for name in ("one", "two"):
        engine.put_adapter(name, *adapters[name])
    requests = [asked(processor, number, (None, "one", "two")[number % 3]) for number in range(24)]
    for name in (None, "one", "two"):
        own = [each for each in requests if each.adapter == name]
        expected = alone(name, own)
        assert [tokens for (tokens,) in engine.run(own)] == expected
    found = [tokens for (tokens,) in engine.run(requests)]
    assert found[1::3] == alone("one", requests[1::3]) and engine.num_compiled == compiled


@pytest.mark.parametrize(
    ("path", "rank", "message"),
    [("vit.layers.mlp.fc2", 2, "changes vit.layers.mlp.fc2"), ("lm.layers.attn.q", 5, "rank 5")],
)
def test_what_has_no_place_is_refused(engine, config, path, rank, message):
    layers = config.vision.layers if path.startswith("vit") else config.text.layers
    lora = LoraConfig((AdaptedWeight(path, ((rank,),) * layers, ((1.0,),) * layers),))
    with pytest.raises(InputError, match=message):
        engine.put_adapter("other", lora, {})
    with pytest.raises(InputError, match=r"changes projector\.norm\.scale"):
        engine.put_adapter("other", dataclasses.replace(lora, weights=(), whole=("projector.norm.scale",)), {})


def test_a_model_without_places_has_no_adapters(structure, params, processor, adapters):
    engine = Engine(bind(structure[0], params), Vocabulary.of(processor), CLASSES)
    with pytest.raises(InputError, match="no places"):
        engine.put_adapter("one", *adapters["one"])
