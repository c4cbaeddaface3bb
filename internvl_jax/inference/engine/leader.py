"""Engines in step: process 0 is asked, and the processes of all other hosts of its mesh do as it does.

Programs on a mesh run in all of its processes, which must call the same ones with the same values. An engine does the
same wherever it is told the same, so it is enough to pass on what process 0's engine is told: requests, ends of
requests, steps. Messages are msgpack of fixed types; nothing in them is run.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import msgspec
import numpy as np

from internvl_jax import interrupts
from internvl_jax.errors import InputError
from internvl_jax.inference.compression import MODEL_THRESHOLDS, Decided, Thresholds
from internvl_jax.inference.engine.engine import Engine
from internvl_jax.inference.engine.requests import RemoteFeatures, Request
from internvl_jax.inference.engine.sampling_params import SamplingParams
from internvl_jax.models import LoraConfig
from internvl_jax.pod import Channel
from internvl_jax.sharding import Params


class WireArray(msgspec.Struct):
    """A numpy array, of numpy's own types or bfloat16."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def of(cls, values: Sequence[int] | np.ndarray) -> "WireArray":
        array = np.asarray(values)
        native = array.astype(array.dtype.newbyteorder("="), copy=False)  # names of types say no order of bytes
        return cls(native.dtype.name, native.shape, native.tobytes())

    @property
    def array(self) -> np.ndarray:
        return np.frombuffer(self.data, jnp.dtype(self.dtype)).reshape(self.shape)


class WireTile(msgspec.Struct, tag=True):
    """A tile, or its features, of what is told next: all in one message would be more than the store takes in time."""

    value: WireArray


class WireTiles:
    """Tiles as they come one by one."""

    def __init__(self) -> None:
        self._come = list[np.ndarray]()

    @staticmethod
    def of(given: Sequence[np.ndarray] | np.ndarray) -> list[WireTile]:
        """What is told of some."""
        return [WireTile(WireArray.of(each)) for each in given]

    def take(self, tile: WireTile) -> None:
        """One more has come."""
        self._come.append(tile.value.array)

    def all(self) -> list[np.ndarray]:
        """Those that have come since."""
        come, self._come = self._come, []
        return come

    def stacked(self, none: WireArray) -> np.ndarray:
        """The same as one array; `none` is what it is without any."""
        come = self.all()
        return np.stack(come) if come else none.array


class _WireFeatures(msgspec.Struct):
    """`RemoteFeatures`, whose arrays come before."""

    names: tuple[bytes, ...]
    compress: WireArray

    @classmethod
    def of(cls, given: RemoteFeatures) -> "_WireFeatures":
        return cls(given.names, WireArray.of(given.compress_G))


class _Add(msgspec.Struct, tag=True):
    """`Engine.add`. Tiles or features come before.

    Attributes:
      tiles: none of them, as an array.
      masked: whether `Request.allow` says which tokens may follow: then process 0 asks it, and tells.
    """

    tokens: WireArray
    tiles: WireArray
    sampling: SamplingParams
    thresholds: Thresholds | None
    decided: Decided | None
    seeds: tuple[int | None, ...]
    priority: int
    masked: bool
    features: _WireFeatures | None
    adapter: str | None


class _AdapterArray(msgspec.Struct, tag=True):
    """A parameter of the adapter that is put next: all in one message would be more than the store takes in time."""

    path: str
    value: WireArray


class _PutAdapter(msgspec.Struct, tag=True):
    """`Engine.put_adapter`."""

    name: str
    lora: dict[str, Any]


class _DropAdapter(msgspec.Struct, tag=True):
    """`Engine.drop_adapter`."""

    name: str


class _Drop(msgspec.Struct, tag=True):
    """`Engine.drop`."""

    id: int
    answer: int | None


class _Step(msgspec.Struct, tag=True):
    """`Engine.step`."""

    most: int


class _Route(msgspec.Struct, tag=True):
    """`Engine.route`, of the tiles that came before."""

    tiles: WireArray


class _WarmUp(msgspec.Struct, tag=True):
    """`Engine.warm_up`."""


class _Mask(msgspec.Struct, tag=True):
    """What `Request.allow` returned."""

    bits: WireArray


class _End(msgspec.Struct, tag=True):
    """Nothing more is told; `problem` says why, where it was a fault."""

    problem: str


_Command = (
    _Add | WireTile | _AdapterArray | _PutAdapter | _DropAdapter | _Drop | _Step | _Route | _WarmUp | _Mask | _End
)
_DECODER = msgspec.msgpack.Decoder(list[_Command])


class Leader(Engine):
    """The engine of process 0, which the others follow (`follow`) until it is closed.

    Ctrl-C waits until what was told is done here too: the others do it in any case.

    Its parameters stay as they are: new ones would have to come from every process, and are refused.

    Args:
      given, options: those of `Engine`.
    """

    def __init__(self, *given: Any, **options: Any):
        super().__init__(*given, **options)
        self._channel, self._untold = Channel(), list[_Command]()

    @interrupts.held()
    def add(self, request: Request) -> int:
        """See `Engine.add`."""
        allow = request.allow
        told = None if allow is None else lambda tokens: self._told_mask(allow(tokens))
        id = super().add(dataclasses.replace(request, allow=told))
        thresholds, features = request.thresholds, request.features
        for tile in WireTiles.of(request.tiles_GHWC if features is None else features.features):
            self._pass_on(tile)
        self._untold.append(
            _Add(
                WireArray.of(request.tokens_T),
                WireArray.of(request.tiles_GHWC[:0]),
                request.sampling,
                thresholds if isinstance(thresholds, Thresholds) else None,
                thresholds if isinstance(thresholds, Decided) else None,
                request.seeds,
                request.priority,
                allow is not None,
                None if features is None else _WireFeatures.of(features),
                request.adapter,
            )
        )
        return id

    @interrupts.held()
    def put_adapter(self, name: str, lora: LoraConfig, params: Mapping[str, np.ndarray]) -> None:
        """See `Engine.put_adapter`."""
        super().put_adapter(name, lora, params)
        for path, value in params.items():
            self._pass_on(_AdapterArray(path, WireArray.of(value)))
        self._untold.append(_PutAdapter(name, lora.to_dict()))

    @interrupts.held()
    def drop_adapter(self, name: str) -> None:
        """See `Engine.drop_adapter`."""
        super().drop_adapter(name)
        self._untold.append(_DropAdapter(name))

    @interrupts.held()
    def drop(self, id: int, answer: int | None = None) -> None:
        """See `Engine.drop`."""
        self._untold.append(_Drop(id, answer))
        super().drop(id, answer)

    def _renew(self, params: Params) -> None:
        raise InputError(
            "the model lies in several processes and its parameters were changed in one of them; change them in all, "
            "and begin to answer with it anew"
        )

    def _step(self, most: int) -> None:
        self._pass_on(_Step(most))
        super()._step(most)

    @interrupts.held()
    def route(self, tiles_GHWC: np.ndarray) -> np.ndarray:
        """See `Engine.route`."""
        for tile in WireTiles.of(tiles_GHWC):
            self._pass_on(tile)
        self._pass_on(_Route(WireArray.of(tiles_GHWC[:0])))
        return super().route(tiles_GHWC)

    @interrupts.held()
    def warm_up(self) -> int:
        """See `Engine.warm_up`."""
        self._pass_on(_WarmUp())
        return super().warm_up()

    @interrupts.held()
    def close(self, problem: str = "") -> None:
        """Lets the others go; with a problem, as an InputError."""
        self._pass_on(_End(problem))

    def _told_mask(self, bits: np.ndarray) -> np.ndarray:
        self._pass_on(_Mask(WireArray.of(bits)))
        return bits

    def _pass_on(self, command: _Command) -> None:
        commands, self._untold = [*self._untold, command], []
        self._channel.tell(msgspec.msgpack.encode(commands))


def follow(engine: Engine) -> None:
    """Does as the leader does, until it is closed.

    Args:
      engine: made as the leader was, by the other processes.

    Raises:
      InputError: what process 0 raised.
    """
    channel, arrays, tiles = Channel(), dict[str, np.ndarray](), WireTiles()

    def mask(tokens: Sequence[int]) -> np.ndarray:
        (command,) = _heard(channel)
        return command.bits.array

    while True:
        for command in _heard(channel):
            match command:
                case _Add():
                    engine.add(_request(command, tiles, mask if command.masked else None))
                case WireTile():
                    tiles.take(command)
                case _AdapterArray():
                    arrays[command.path] = command.value.array
                case _PutAdapter():
                    engine.put_adapter(command.name, LoraConfig.from_dict(command.lora, "adapter"), arrays)
                    arrays = {}
                case _DropAdapter():
                    engine.drop_adapter(command.name)
                case _Drop():
                    engine.drop(command.id, command.answer)
                case _Step():
                    engine.step(command.most)
                case _Route():
                    engine.route(tiles.stacked(command.tiles))
                case _WarmUp():
                    engine.warm_up()
                case _End():
                    return


def _heard(channel: Channel) -> list[Any]:
    commands = _DECODER.decode(channel.hear())
    if isinstance(commands[-1], _End) and commands[-1].problem:
        raise InputError(commands[-1].problem)
    return commands


def _request(added: _Add, tiles: WireTiles, allow: Callable[[Sequence[int]], np.ndarray] | None) -> Request:
    thresholds = added.decided or added.thresholds or MODEL_THRESHOLDS
    features: RemoteFeatures | None = None
    if added.features is not None:
        features = RemoteFeatures(added.features.names, added.features.compress.array, tuple(tiles.all()))
    arrays = added.tokens.array, tiles.stacked(added.tiles)
    return Request(*arrays, added.sampling, thresholds, added.seeds, allow, added.priority, features, added.adapter)
