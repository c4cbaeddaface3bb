"""Where the features of tiles come from: requests bring them, or bring tiles that pass the engine's vision tower."""

import numpy as np

from internvl_jax.errors import InputError
from internvl_jax.inference.engine import requests as asked
from internvl_jax.inference.engine.buckets import Ladders
from internvl_jax.inference.engine.drafts import Job
from internvl_jax.inference.engine.requests import Request
from internvl_jax.inference.engine.scheduler import Scheduler
from internvl_jax.inference.engine.tile_features import TileFeatures
from internvl_jax.models import InternVLConfig
from internvl_jax.sharding import Params


class TileIntake:
    """Has the features of requests that wait in the pool, as long as they are needed there.

    Args:
      config: the model's config.
      ladders: the engine's.
      tiles: the features that are kept.
      scheduler: who waits.

    Attributes:
      pixels_alone: whether tiles must be uint8, because programs for others would have to be compiled.
    """

    def __init__(self, config: InternVLConfig, ladders: Ladders, tiles: TileFeatures, scheduler: Scheduler):
        self._config, self._ladders, self._tiles, self._scheduler = config, ladders, tiles, scheduler
        self.pixels_alone = False

    def names(self, request: Request) -> list[bytes]:
        """What the features of a request's tiles are kept by.

        Raises:
          InputError: tiles that this engine can't encode, or more than are kept at a time.
        """
        if request.features is not None:
            return self._tiles.check(request.features.kept_names)
        return self._own_names(request.tiles_GHWC)

    def look(self, params: Params) -> None:
        """Gets features for requests that wait, in their order. Where rows have classes, those that lack nothing don't
        wait for the features of others: text doesn't for a video's.
        """
        scheduler, kept = self._scheduler, self._tiles
        # Where somebody waits for each token, a picture must not hold up the others.
        budget = self._ladders.tiles[0 if scheduler.writing and self._ladders.classes is not None else -1]
        looked: list[Job] = []
        tiles: dict[bytes, np.ndarray] = {}
        brought: dict[bytes, np.ndarray] = {}
        room = turn = True  # whether no earlier one waits for room, or for the tower
        for place, job in enumerate(scheduler.waiting):
            room = room and place < scheduler.most_rows
            if not (room and turn) and self._ladders.classes is None:
                break
            # Where an earlier one waits for room, what is pinned for others would keep it waiting.
            if job.ready or (job.names and (not room or (not turn and kept.missing(job.names)))):
                continue
            if not self._claim(job.id, job.names, scheduler.waiting[place + 1 :]):
                room = False
                continue
            looked.append(job)
            if job.request.features is not None:
                there = dict(zip(job.names, job.request.features.features, strict=True))
                brought |= {name: there[name] for name in kept.missing(job.names)}
                continue
            missing = [name for name in kept.missing(job.names) if name not in tiles]
            images = dict(zip(job.names, job.request.tiles_GHWC, strict=True))
            tiles |= {name: images[name] for name in missing[: budget - len(tiles)]}
            turn = turn and len(tiles) < budget
        if tiles:
            kept.encode(params, tiles)
        if brought:
            kept.put(brought)
        for job in looked:
            job.ready = not kept.missing(job.names)
            if job.ready and job.seen is None:
                decides = self._config.flash is not None and job.request.features is None
                probability_G = kept.probabilities(job.names) if decides else None
                job.seen = asked.shown(job.request, job.names, probability_G, self._config, job.adapter.number)

    def route(self, params: Params, owner: int, tiles_GHWC: np.ndarray) -> np.ndarray:
        """See `Engine.route`.

        Args:
          owner: a number that no request has.
        """
        names = self._own_names(tiles_GHWC)
        if not self._claim(owner, names, self._scheduler.waiting):
            raise InputError("prompts that are being read leave no room for these tiles; ask again when they are read")
        missing = set(self._tiles.missing(names))
        tiles = {name: tile for name, tile in zip(names, tiles_GHWC, strict=True) if name in missing}
        self._tiles.encode(params, tiles)
        self._tiles.unpin(owner)
        return self._tiles.probabilities(names)

    def _own_names(self, tiles_GHWC: np.ndarray) -> list[bytes]:
        if self.pixels_alone and len(tiles_GHWC) and tiles_GHWC.dtype != np.uint8:
            raise InputError(
                f"the tiles are {tiles_GHWC.dtype}; an engine that was warmed up has programs for pixels alone, give "
                "them as uint8"
            )
        return self._tiles.names(tiles_GHWC)

    def _claim(self, owner: int, names: list[bytes], later: list[Job]) -> bool:
        """Pins tiles, for which those of later requests give way that no row reads; says whether there was room."""
        givers = reversed(later)
        while not (fits := self._tiles.fits(names)) and (job := next(givers, None)) is not None:
            if not any(draft.reading and draft.row for draft in job.drafts):
                self._tiles.unpin(job.id)
                job.ready = False
        if fits:
            self._tiles.pin(owner, names)
        return fits
