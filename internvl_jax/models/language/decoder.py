"""The language model: embeddings, layers, final norm and head, over whole rows or with a cache."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from internvl_jax.models.attention.attention import Mask, Window
from internvl_jax.models.attention.caches import Cache
from internvl_jax.models.bricks.moe import Load, expert_load
from internvl_jax.models.bricks.nn import RmsNorm, normal
from internvl_jax.models.bricks.rope import make_rope
from internvl_jax.models.bricks.weight import make_weight
from internvl_jax.models.config import TextConfig
from internvl_jax.models.language.families import family_of
from internvl_jax.models.language.layer import Layer
from internvl_jax.models.stack import Runtime, make_layers, run_layers
from internvl_jax.sharding import platform, shard


class DecoderOut(NamedTuple):
    """What a pass over tokens returns.

    Attributes:
      hidden_BTD: hidden states after the final norm.
      cache: the given cache with the keys and values of this call; None where none was given.
      kv_LBMTH: keys and values of this call. This and the following are None unless collected.
      hidden_LBTD: the input of every layer.
      router_LBTE: logits of the routers.
      experts_LBTK: the experts that the routers choose.
      load: how the experts were used, fields `[L, B, E]`.
    """

    hidden_BTD: jax.Array
    cache: Cache | None
    kv_LBMTH: tuple[jax.Array, jax.Array] | None
    hidden_LBTD: jax.Array | None
    router_LBTE: jax.Array | None
    experts_LBTK: jax.Array | None
    load: Load | None


class Embedding(nnx.Module):
    """A table with a row for every token id: as `embed` looked up, as `head` multiplied to a logit for every id."""

    def __init__(self, config: TextConfig, rngs: nnx.Rngs):
        axes, init = (("vocab",), ("embed",)), normal(config.init_std)
        self.weight = make_weight(rngs, (config.vocab,), (config.width,), axes, init)


class Decoder(nnx.Module):
    def __init__(self, config: TextConfig, rngs: nnx.Rngs, runtime: Runtime):
        self.config, self.runtime = config, runtime
        self.embed = Embedding(config, rngs)
        family = family_of(config)
        halves = family.attention, family.kind(config).feed_forward
        self.layers = make_layers(lambda rngs: Layer(config, rngs, *halves), config.layers, rngs)
        self.norm = RmsNorm(rngs, (config.width,), ("embed",), config.norm_eps)
        self.rope = make_rope(config)
        self.windowed = family.windowed(config)
        self.head = None if config.tie_embeddings else Embedding(config, rngs)

    def lookup(self, tokens_BT: jax.Array) -> jax.Array:
        return shard(self.embed.weight.take(tokens_BT, self.runtime.dtype), "batch", "time", None)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """`[..., D] -> [..., V]`, float32; by the embedding table where the two are tied."""
        return self._output.weight.product(hidden)

    @property
    def head_VD(self) -> jax.Array:
        """The output matrix, for logits that are computed in chunks (`logprobs.over_logits`)."""
        return self._output.weight.dense()

    @property
    def _output(self) -> Embedding:
        return self.embed if self.head is None else self.head

    def __call__(
        self,
        x_BTD: jax.Array,
        segments_BT: jax.Array,
        positions_BT: jax.Array,
        cache: Cache | None = None,
        slots_BT: jax.Array | None = None,
        collect: tuple[str, ...] = (),
        replay_LBTK: jax.Array | None = None,
    ) -> DecoderOut:
        """Embeddings through all layers.

        Args:
          x_BTD: input embeddings.
          segments_BT: 1.. per packed sample, 0 for padding; attention stays inside a segment.
          positions_BT: restart in every segment.
          cache: keys to attend to besides this call's own.
          slots_BT: with a cache, the slot that each token takes.
          collect: 'kv', 'hidden', 'router', 'experts' and 'load' add those fields to the result.
          replay_LBTK: experts to take instead of the routers' own, see `Moe`.
        """
        if cache is None:
            # Rows whose keys are kept have one sample each. There is nothing to leave out then, and below 4,096 tokens
            # loops over blocks take up to 1.4 times as long on a CPU.
            alone = "kv" in collect and platform() == "cpu"
            mask = Mask.within(segments_BT, positions_BT, self.runtime.skip_blocks and not alone)
        else:
            cache = cache.place(slots_BT, segments_BT, positions_BT)
            mask = cache.mask(segments_BT, positions_BT)
        table = self.rope(positions_BT, segments_BT)
        windowed_L = None if self.windowed is None else jnp.asarray(self.windowed)

        def body(layer: Layer, carry: tuple, index: jax.Array | int, extra: tuple) -> tuple[tuple, dict[str, Any]]:
            x_BTD, cache = carry
            windowed, replay_BTK = extra
            window = None if windowed is None else Window(self.config.window, windowed)
            before = x_BTD
            x_BTD, cache, kv, routing = layer(x_BTD, table, mask, window, cache, index, slots_BT, replay_BTK)
            return (x_BTD, cache), {
                "kv": kv if "kv" in collect else None,
                "hidden": before if "hidden" in collect else None,
                "router": None if routing is None or "router" not in collect else routing.logits_BTE,
                "experts": None if routing is None or "experts" not in collect else routing.own_BTK,
                # Summed here: the logits of 94 layers and 128 experts are 1.6 GB for a row of 32,768 tokens.
                "load": None if routing is None or "load" not in collect else expert_load(routing, segments_BT > 0),
            }

        # Keys and values are for generation. Nobody takes its gradient, which would be made for all layers in each.
        whole = _of_experts if cache is not None or "kv" in collect else None
        per_layer = windowed_L, replay_LBTK
        (x_BTD, cache), outs = run_layers(self.layers, (x_BTD, cache), per_layer, body, self.runtime, whole)
        return DecoderOut(
            self.norm(x_BTD), cache, outs["kv"], outs["hidden"], outs["router"], outs["experts"], outs["load"]
        )


def _of_experts(path: tuple, parameter: nnx.Param) -> bool:
    return "expert" in parameter.get_metadata("axes")
