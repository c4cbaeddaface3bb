"""A model beside a recorded reference: runs `inputs.npz` of a golden case, compares with its `outputs.npz`.

Cases are a vision tower alone, a GitHub-format model (also Flash) or an HF-format model; the arrays that `outputs.npz`
holds say which comparisons are made. Positions of padding are left out. Answers come from the engine that chat uses.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

from internvl_jax import sharding
from internvl_jax.data import WEIGHTINGS, token_weight
from internvl_jax.errors import InputError
from internvl_jax.inference import Engine, Ladders, Request, SamplingParams, Thresholds, Vocabulary, kept, quantile
from internvl_jax.models import Encoded, InternViT, InternVL, InternVLConfig, Out, Slots
from internvl_jax.sharding import Params, bind, flatten
from internvl_jax.validation import read_all_arrays, read_json

Arrays = dict[str, np.ndarray]
Report = dict[str, float | bool]

_IGNORED_LABEL = -100  # of the released datasets: not supervised


def read_case(directory: str | pathlib.Path) -> tuple[Arrays, Arrays, dict[str, Any]]:
    """`inputs.npz`, `outputs.npz` and `meta.json` (empty where there is none) of a golden case.

    Raises:
      InputError: a file that is missing or unreadable.
    """
    directory = pathlib.Path(directory)
    inputs, outputs = (
        read_all_arrays(directory / name, "give the folder of a golden case") for name in ("inputs.npz", "outputs.npz")
    )
    meta = directory / "meta.json"
    return inputs, outputs, read_json(meta) if meta.exists() else {}


def image_token_id(meta: Mapping[str, Any]) -> int | None:
    """The id of <IMG_CONTEXT> that a case was made with."""
    return meta.get("img_context_token_id", meta.get("image_token_id"))


def compare(
    model: InternVL | InternViT,
    inputs: Arrays,
    outputs: Arrays,
    chunk: int | None = None,
    page: int | None = None,
    base: Arrays | None = None,
) -> Report:
    """Largest absolute error of every recorded array, and whether recorded tokens are the model's own.

    Args:
      chunk: tokens of a prompt that the engine reads at a time; None: all.
      page: tokens of a page, for an engine whose rows have pages; None: they have slots.
      base: recorded outputs of the model that this one was rounded from, for what that cost: `mean_kl` in nats a
        position, `same_argmax` and `same_greedy_tokens` as shares of positions and of tokens.
    """
    with jax.default_matmul_precision("highest"):
        if isinstance(model, InternViT):
            return compare_tower(model, inputs, outputs)
        vocabulary = Vocabulary(model.config.text.vocab, (), ())
        ladders = Ladders(chunk=chunk)
        if page is not None:
            with sharding.placed(model.runtime.placement):
                shards = sharding.spread("batch")
            prompts_BT = inputs.get("prompt_input_ids", inputs["input_ids"])
            rows, slots = -(-len(prompts_BT) // shards) * shards, prompts_BT.shape[1]
            slots += outputs["greedy_tokens"].shape[-1] if "greedy_tokens" in outputs else 0
            ladders = dataclasses.replace(ladders, classes=((rows, slots),), page=page)
        engine = Engine(model, vocabulary, ladders)
        if "gate_probs" in outputs:
            return compare_flash(model, engine, inputs, outputs)
        return compare_model(model, engine, inputs, outputs, base or {})


def compare_tower(tower: InternViT, inputs: Arrays, outputs: Arrays) -> Report:
    graphdef, _ = nnx.split(tower, nnx.Param)
    run = jax.jit(lambda params, tiles: bind(graphdef, params)(tiles, collect=True))
    report: Report = {}
    for name in outputs:
        if name.endswith("last_hidden_state"):
            prefix = name.removesuffix("last_hidden_state")
            tiles = _channels_last(inputs[f"{prefix}pixel_values"])
            last, hidden = jax.device_get(run(flatten(tower), tiles))
            report[name] = _error(last, outputs[name])
            if not prefix:
                report["pooler_output"] = _error(last[:, 0], outputs["pooler_output"])
                report |= {f"hidden_state_{i}": _error(x, outputs[f"hidden_state_{i}"]) for i, x in enumerate(hidden)}
    return report


def compare_model(model: InternVL, engine: Engine, inputs: Arrays, outputs: Arrays, base: Arrays) -> Report:
    tiles = _channels_last(inputs["pixel_values"])
    graphdef, _ = nnx.split(model, nnx.Param)
    features = jax.jit(lambda params, tiles: bind(graphdef, params).encode(tiles).features_GPD)(flatten(model), tiles)
    features = _whole(features)
    report: Report = {
        name: _error(features, outputs[name]) for name in ("vit_embeds", "image_features") if name in outputs
    }
    tiles = tiles[inputs["image_flags"].astype(bool)] if "image_flags" in inputs else tiles

    mask_BT = inputs["attention_mask"].astype(bool)
    out, logits_BTV = _run(model, inputs["input_ids"], mask_BT, tiles)
    if "logits" in outputs:
        report["logits"] = _error(logits_BTV[mask_BT], outputs["logits"][mask_BT])
    if "logits" in base:
        report |= _distances(logits_BTV[mask_BT], base["logits"][mask_BT])
    if "llm_hidden_0" in outputs:
        hidden = np.asarray([*out.aux["hidden"], out.hidden_BTD])
        report |= {
            f"llm_hidden_{i}": _error(x[mask_BT], outputs[f"llm_hidden_{i}"][mask_BT]) for i, x in enumerate(hidden)
        }
    if "router_logits_0" in outputs:
        routers = (np.asarray(x)[mask_BT] for x in out.aux["router"])
        report |= {
            f"router_logits_{i}": _error(x, outputs[f"router_logits_{i}"][mask_BT]) for i, x in enumerate(routers)
        }
    losses = {f"loss_weighted_{weighting}": weighting for weighting in WEIGHTINGS} | {"loss": "square"}
    for name in (name for name in losses if name in outputs):
        report[name] = abs(_loss(logits_BTV, inputs["labels"], losses[name]) - float(outputs[name]))
    if "greedy_tokens" not in outputs:
        return report
    return report | _compare_greedy(model, engine, inputs, outputs, tiles, base.get("greedy_tokens"))


def compare_flash(model: InternVL, engine: Engine, inputs: Arrays, outputs: Arrays) -> Report:
    """A Flash model's router, decisions and answer for the one conversation that was recorded."""
    config = model.config
    if config.flash is None:
        raise InputError(
            "the reference is of a Flash model and the checkpoint is none; give the checkpoint of its case"
        )
    tiles, tokens_T = _channels_last(inputs["pixel_values"]), inputs["input_ids"][0]
    graphdef, params = nnx.split(model, nnx.Param)[0], flatten(model)

    @jax.jit
    def run(params: Params, tiles: jax.Array) -> tuple[jax.Array, Encoded]:
        model = bind(graphdef, params)
        return model.router.pooling(model.patches(tiles)), model.encode(tiles)

    pooled_GD, encoded = jax.tree.map(_whole, run(params, tiles))
    probability_G2 = np.asarray(jax.nn.softmax(encoded.route_G2))
    probability_G = probability_G2[:, 0]
    pairs = [Thresholds(*pair) for pair in inputs["thresholds64"].tolist()]
    decisions = np.stack([pair.decide(probability_G, config.flash) for pair in pairs])
    masks = [kept(tokens_T, compress_G, config) for compress_G in decisions]
    short_T = tokens_T[masks[0]].astype(np.int32)
    report: Report = {
        "pooled": _error(pooled_GD, outputs["pooled"]),
        "gate_probs": _error(probability_G2, outputs["gate_probs"]),
        "vit_embeds_64": _error(encoded.compressed_GPD, outputs["vit_embeds_64"]),
        "vit_embeds_256": _error(encoded.features_GPD, outputs["vit_embeds_256"]),
        "quantiles": _error(np.stack([quantile(probability_G, p.relative) for p in pairs]), outputs["quantiles"]),
        "decisions_equal": np.array_equal(decisions, outputs["decisions"]),
        "compress_equal": np.array_equal(decisions[0], outputs["compress"]),
        "keep_mask_equal": np.array_equal(masks[0], outputs["keep_mask"]),
        **{f"keep_mask_{k}_equal": np.array_equal(mask, outputs[f"keep_mask_{k}"]) for k, mask in enumerate(masks)},
        "compressed_input_ids_equal": np.array_equal(short_T, outputs["compressed_input_ids"]),
    }

    # One pass over the recorded prompt and answer, and the engine's own answer from the whole prompt.
    wanted_T = outputs["greedy_tokens"][0]
    prompt, answer = len(outputs["compressed_input_ids"]), len(wanted_T)
    row_BT = np.concatenate([outputs["compressed_input_ids"], wanted_T])[None].astype(np.int32)

    @jax.jit
    def run_row(params: Params, tokens_BT: jax.Array, tiles: jax.Array, compress_G: jax.Array) -> jax.Array:
        model = bind(graphdef, params)
        positions_BT = np.arange(tokens_BT.shape[1], dtype=np.int32)[None]
        mask_G, segments_BT = np.ones(len(tiles), bool), np.ones_like(positions_BT)
        slots = Slots.in_order(mask_G, compress_G, 1)
        out = model(tokens_BT, tiles, mask_G, segments_BT, positions_BT, slots=slots)
        return model.logits(out.hidden_BTD)[0]

    logits_TV = _whole(run_row(params, row_BT, tiles, outputs["compress"]))
    report["logits"] = _error(logits_TV[outputs["logits_positions"]], outputs["logits"])
    report["greedy_scores"] = _error(logits_TV[prompt - 1 : prompt + answer - 1], outputs["greedy_scores"])
    request = Request(tokens_T, tiles, SamplingParams(max_new_tokens=answer), pairs[0])
    report["greedy_tokens_equal"] = engine.run([request])[0] == outputs["greedy_tokens"].tolist()
    return report


def blocks(tokens_BT: np.ndarray, tiles: np.ndarray, config: InternVLConfig) -> tuple[np.ndarray, np.ndarray]:
    """Tiles in the order of their tokens over all rows -> equal blocks per row, filled up with tiles that are masked.

    Returns:
      `tiles_GHWC, tile_mask_G`, G being B times the most tiles of a row.

    Raises:
      InputError: there are more or fewer tiles than the tokens need.
    """
    counts_B = _tiles_per_row(tokens_BT, config)
    if counts_B.sum() != len(tiles):
        raise InputError(
            f"the reference has {len(tiles)} tiles but tokens for {counts_B.sum()}; check its image token id"
        )
    mask_BG = np.arange(max(counts_B)) < counts_B[:, None]
    blocks_GHWC = np.zeros((mask_BG.size, *tiles.shape[1:]), tiles.dtype)
    blocks_GHWC[mask_BG.reshape(-1)] = tiles
    return blocks_GHWC, mask_BG.reshape(-1)


def _run(model: InternVL, tokens_BT: np.ndarray, mask_BT: np.ndarray, tiles: np.ndarray) -> tuple[Out, np.ndarray]:
    """A pass over rows that are padded left or right, and its logits."""
    positions_BT = np.maximum(np.cumsum(mask_BT, axis=1) - 1, 0)
    tiles_GHWC, tile_mask_G = blocks(tokens_BT, tiles, model.config)
    tokens_BT, segments_BT, positions_BT = (array.astype(np.int32) for array in (tokens_BT, mask_BT, positions_BT))
    graphdef, _ = nnx.split(model, nnx.Param)

    @jax.jit
    def run(params: Params, *arguments: jax.Array) -> tuple[Out, jax.Array]:
        model = bind(graphdef, params)
        out = model(*arguments, collect=("hidden", "router"))
        return out, model.logits(out.hidden_BTD)

    found = run(flatten(model), tokens_BT, tiles_GHWC, tile_mask_G, segments_BT, positions_BT)
    return jax.tree.map(_whole, found)


def _distances(logits_NV: np.ndarray, base_NV: np.ndarray) -> Report:
    """How far the distributions of tokens are from those of the model that this one was rounded from."""
    ours_NV, theirs_NV = (jax.nn.log_softmax(jnp.asarray(x, jnp.float32)) for x in (logits_NV, base_NV))
    return {
        "mean_kl": float(jnp.mean(jnp.sum(jnp.exp(theirs_NV) * (theirs_NV - ours_NV), axis=-1))),
        "same_argmax": float(np.mean(np.argmax(logits_NV, axis=-1) == np.argmax(base_NV, axis=-1))),
    }


def _compare_greedy(
    model: InternVL, engine: Engine, inputs: Arrays, outputs: Arrays, tiles: np.ndarray, base_BT: np.ndarray | None
) -> Report:
    """The engine's answers, and the logits of one pass over prompts and recorded answers."""
    prompts_BT, prompt_mask_BT = inputs["prompt_input_ids"], inputs["prompt_attention_mask"].astype(bool)
    wanted_BT = outputs["greedy_tokens"]
    prompt, answer = prompts_BT.shape[1], wanted_BT.shape[1]
    prompts = [row[real] for row, real in zip(prompts_BT, prompt_mask_BT, strict=True)]
    row_tiles = np.split(tiles, np.cumsum(_tiles_per_row(prompts_BT, model.config))[:-1])

    def answers(*stops: int) -> np.ndarray:
        """Zeros after a stop token; as long as the longest answer."""
        sampling = SamplingParams(max_new_tokens=answer, stop_token_ids=stops)
        rows = [row for (row,) in engine.run([Request(*row, sampling) for row in zip(prompts, row_tiles, strict=True)])]
        longest = max(map(len, rows))
        return np.array([row + [0] * (longest - len(row)) for row in rows])

    found_BT = answers()
    report: Report = {"greedy_tokens_equal": np.array_equal(found_BT, wanted_BT)}
    if base_BT is not None:
        report["same_greedy_tokens"] = float(np.mean(found_BT == base_BT))
    if "greedy_tokens_eos" in outputs:
        report["greedy_tokens_eos_equal"] = np.array_equal(
            answers(int(inputs["eos_for_greedy_tokens_eos"])), outputs["greedy_tokens_eos"]
        )
    if "greedy_scores" not in outputs:
        return report
    tokens_BT = np.concatenate([prompts_BT, wanted_BT], axis=1)
    mask_BT = np.concatenate([prompt_mask_BT, np.ones_like(wanted_BT, bool)], axis=1)
    _, logits_BTV = _run(model, tokens_BT, mask_BT, tiles)
    scores_BTV = logits_BTV[:, prompt - 1 : prompt + answer - 1]
    report["greedy_scores"] = _error(scores_BTV.swapaxes(0, 1), outputs["greedy_scores"])
    if "prompt_logits_left_padded" in outputs:
        wanted_BTV = outputs["prompt_logits_left_padded"]
        found_BTV = logits_BTV[:, :prompt]
        report["prompt_logits_left_padded"] = _error(found_BTV[prompt_mask_BT], wanted_BTV[prompt_mask_BT])
    return report


def _tiles_per_row(tokens_BT: np.ndarray, config: InternVLConfig) -> np.ndarray:
    return np.sum(tokens_BT == config.image_token_id, axis=1) // config.tokens_per_tile


def _loss(logits_BTV: np.ndarray, labels_BT: np.ndarray, weighting: str) -> float:
    """The released loss: sum(weight * cross-entropy) / sum(weight), the weights counted before the shift by one."""
    supervised_BT = labels_BT != _IGNORED_LABEL
    weight_B1 = np.array([[token_weight(int(row.sum()), weighting)] for row in supervised_BT])
    weights_BT = (weight_B1 * supervised_BT)[:, 1:]
    targets_BT1 = np.where(supervised_BT, labels_BT, 0)[:, 1:, None]
    logits_BTV = logits_BTV[:, :-1].astype(np.float64)
    losses_BT = np.log(np.exp(logits_BTV).sum(-1)) - np.take_along_axis(logits_BTV, targets_BT1, -1)[..., 0]
    return float(np.sum(weights_BT * losses_BT) / np.sum(weights_BT))


def _channels_last(pixels_GCHW: np.ndarray) -> np.ndarray:
    return pixels_GCHW.transpose(0, 2, 3, 1)


def _whole(x: jax.Array) -> np.ndarray:
    """On the host, also what lies in several processes; all of them call it."""
    return np.asarray(x if x.is_fully_addressable else multihost_utils.process_allgather(x, tiled=True))


def _error(found: jax.Array | np.ndarray, wanted: np.ndarray) -> float:
    if found.shape != wanted.shape:
        raise InputError(
            f"the model gives an array of shape {found.shape} where {wanted.shape} is recorded; use its case"
        )
    return float(np.max(np.abs(np.asarray(found, np.float64) - wanted)))
