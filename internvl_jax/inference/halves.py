"""What the two halves of a model must agree on when they live apart."""

import dataclasses
import hashlib
import json

import jax
import numpy as np

from internvl_jax import sharding
from internvl_jax.data import Processor
from internvl_jax.models import LanguageHalf, VisionHalf

_BYTES = 16
# To be raised when other features come of the same pixels or other tiles of the same picture.
_PREPROCESSING = 1


def fingerprint(model: VisionHalf | LanguageHalf, processor: Processor) -> str:
    """A digest, in hex, that both halves of a model have in common where one can read what the other makes: of the
    model's config and dtype and of how pictures become tiles. Parameters are not in it (`weights_digest`).
    """
    parts = {
        # How the language half stores its weights is its own business.
        "model": dataclasses.replace(model.config, quantised=None).to_dict(),
        "image": dataclasses.asdict(processor.image_config),
        "dtype": np.dtype(model.runtime.dtype).name,
        "preprocessing": _PREPROCESSING,
    }
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=_BYTES).hexdigest()


def weights_digest(model: VisionHalf) -> str:
    """A digest, in hex, of a vision half's parameters, wherever they lie: models of one digest make the same features,
    up to rounding. Processes of a mesh call it together.
    """
    found = hashlib.blake2b(digest_size=_BYTES)
    with sharding.placed(model.runtime.placement):
        together = jax.jit(lambda leaf: sharding.whole(leaf))  # a function of its own: what it does depends on the mesh
        for path, leaf in sorted(sharding.flatten(model).items()):
            if not path.startswith("lm."):
                found.update(f"{path} {leaf.dtype.name} {leaf.shape}".encode())
                found.update(np.asarray(together(leaf)).tobytes())
    return found.hexdigest()
