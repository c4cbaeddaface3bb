"""A model beside a recorded reference: runs `inputs.npz` of a golden case, compares with its `outputs.npz`.

Cases are a vision tower alone, a GitHub-format model or an HF-format model; the arrays that `outputs.npz` holds say
which comparisons are made. Positions of padding are left out. Greedy tokens are the best ones after the recorded tokens
before them, so a single pass over prompt and answer shows whether all of them would have been chosen.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from internvl_jax.data.weights import WEIGHTINGS, token_weight
from internvl_jax.errors import InputError
from internvl_jax.models import InternViT, InternVL, Out, token_logprobs

Arrays = dict[str, np.ndarray]
Report = dict[str, float | bool]

_IGNORED_LABEL = -100  # of the released datasets: not supervised


def read_case(directory: str | pathlib.Path) -> tuple[Arrays, Arrays, dict[str, Any]]:
    """`inputs.npz`, `outputs.npz` and `meta.json` (empty where there is none) of a golden case.

    Raises:
      InputError: a file that is missing or unreadable.
    """
    directory = pathlib.Path(directory)
    arrays = []
    for name in ("inputs.npz", "outputs.npz"):
        try:
            with np.load(directory / name) as file:
                arrays.append(dict(file))
        except (OSError, ValueError) as error:
            raise InputError(f"can't read {directory / name} ({error}); give the folder of a golden case") from error
    meta = directory / "meta.json"
    return arrays[0], arrays[1], json.loads(meta.read_text()) if meta.exists() else {}


def image_token_id(meta: Mapping[str, Any]) -> int | None:
    """The id of <IMG_CONTEXT> that a case was made with."""
    return meta.get("img_context_token_id", meta.get("image_token_id"))


def compare(model: InternVL | InternViT, inputs: Arrays, outputs: Arrays) -> Report:
    """Largest absolute error of every recorded array, and whether recorded tokens are the model's own."""
    with jax.default_matmul_precision("highest"):
        return (
            compare_tower(model, inputs, outputs)
            if isinstance(model, InternViT)
            else compare_model(model, inputs, outputs)
        )


def compare_tower(tower: InternViT, inputs: Arrays, outputs: Arrays) -> Report:
    report: Report = {}
    for name in outputs:
        if name.endswith("last_hidden_state"):
            prefix = name.removesuffix("last_hidden_state")
            last, hidden = tower(_channels_last(inputs[f"{prefix}pixel_values"]), collect=True)
            report[name] = _error(last, outputs[name])
            if not prefix:
                report["pooler_output"] = _error(last[:, 0], outputs["pooler_output"])
                report |= {f"hidden_state_{i}": _error(x, outputs[f"hidden_state_{i}"]) for i, x in enumerate(hidden)}
    return report


def compare_model(model: InternVL, inputs: Arrays, outputs: Arrays) -> Report:
    tiles = _channels_last(inputs["pixel_values"])
    features = model.encode(jnp.asarray(tiles))
    report: Report = {
        name: _error(features, outputs[name]) for name in ("vit_embeds", "image_features") if name in outputs
    }
    tiles = tiles[inputs["image_flags"].astype(bool)] if "image_flags" in inputs else tiles

    mask_BT = inputs["attention_mask"].astype(bool)
    out = _run(model, inputs["input_ids"], mask_BT, tiles)
    report["logits"] = _error(model.logits(out.hidden_BTD)[mask_BT], outputs["logits"][mask_BT])
    if "llm_hidden_0" in outputs:
        hidden = [*out.aux["hidden"], out.hidden_BTD]
        report |= {
            f"llm_hidden_{i}": _error(x[mask_BT], outputs[f"llm_hidden_{i}"][mask_BT]) for i, x in enumerate(hidden)
        }
    if "labels" in inputs:
        losses = {f"loss_weighted_{weighting}": weighting for weighting in WEIGHTINGS} | {"loss": "square"}
        for name, weighting in losses.items():
            report[name] = abs(_loss(model, out, inputs["labels"], weighting) - float(outputs[name]))
    return report | _compare_greedy(model, inputs, outputs, tiles)


def blocks(tokens_BT: np.ndarray, tiles: np.ndarray, config) -> tuple[np.ndarray, np.ndarray]:
    """Tiles in the order of their tokens over all rows -> equal blocks per row, filled up with tiles that are masked.

    Returns:
      `tiles_GHWC, tile_mask_G`, G being B times the most tiles of a row.

    Raises:
      InputError: there are more or fewer tiles than the tokens need.
    """
    counts_B = np.sum(tokens_BT == config.image_token_id, axis=1) // config.tokens_per_tile
    if counts_B.sum() != len(tiles):
        raise InputError(
            f"the reference has {len(tiles)} tiles but tokens for {counts_B.sum()}; check its image token id"
        )
    mask_BG = np.arange(max(counts_B)) < counts_B[:, None]
    blocks_GHWC = np.zeros((mask_BG.size, *tiles.shape[1:]), tiles.dtype)
    blocks_GHWC[mask_BG.reshape(-1)] = tiles
    return blocks_GHWC, mask_BG.reshape(-1)


def _run(model: InternVL, tokens_BT: np.ndarray, mask_BT: np.ndarray, tiles: np.ndarray) -> Out:
    """A pass over rows that are padded left or right."""
    positions_BT = np.maximum(np.cumsum(mask_BT, axis=1) - 1, 0)
    tiles_GHWC, tile_mask_G = blocks(tokens_BT, tiles, model.config)
    as_int = lambda array: jnp.asarray(array, jnp.int32)
    return model(
        as_int(tokens_BT),
        jnp.asarray(tiles_GHWC),
        jnp.asarray(tile_mask_G),
        as_int(mask_BT),
        as_int(positions_BT),
        collect=("hidden",),
    )


def _compare_greedy(model: InternVL, inputs: Arrays, outputs: Arrays, tiles: np.ndarray) -> Report:
    wanted_BT = outputs["greedy_tokens"]
    prompt, answer = inputs["prompt_input_ids"].shape[1], wanted_BT.shape[1]
    tokens_BT = np.concatenate([inputs["prompt_input_ids"], wanted_BT], axis=1)
    mask_BT = np.concatenate([inputs["prompt_attention_mask"], np.ones_like(wanted_BT)], axis=1).astype(bool)
    logits_BTV = np.asarray(model.logits(_run(model, tokens_BT, mask_BT, tiles).hidden_BTD))
    scores_BTV = logits_BTV[:, prompt - 1 : prompt + answer - 1]
    found_BT = np.argmax(scores_BTV, axis=-1)
    stop = int(inputs["eos_for_greedy_tokens_eos"])
    report: Report = {
        "greedy_scores": _error(scores_BTV.swapaxes(0, 1), outputs["greedy_scores"]),
        "greedy_tokens_equal": bool(np.array_equal(found_BT, wanted_BT)),
        "greedy_tokens_eos_equal": bool(np.array_equal(_cut(found_BT, stop), outputs["greedy_tokens_eos"])),
    }
    if "prompt_logits_left_padded" in outputs:
        real_BT = mask_BT[:, :prompt]
        report["prompt_logits_left_padded"] = _error(
            logits_BTV[:, :prompt][real_BT], outputs["prompt_logits_left_padded"][real_BT]
        )
    return report


def _cut(tokens_BT: np.ndarray, stop: int) -> np.ndarray:
    """Answers up to and with their first stop token, then zeros; as long as the longest."""
    after_BT = np.cumsum(tokens_BT == stop, axis=1) - (tokens_BT == stop) > 0
    return np.where(after_BT, 0, tokens_BT)[:, : int(np.max(np.sum(~after_BT, axis=1)))]


def _loss(model: InternVL, out: Out, labels_BT: np.ndarray, weighting: str) -> float:
    """The released loss: sum(weight * cross-entropy) / sum(weight), the weights counted before the shift by one."""
    supervised_BT = labels_BT != _IGNORED_LABEL
    weight_B1 = np.array([[token_weight(int(row.sum()), weighting)] for row in supervised_BT])
    weights_BT = (weight_B1 * supervised_BT)[:, 1:]
    targets_BT = np.where(supervised_BT, labels_BT, 0)[:, 1:]
    logprobs_BT = token_logprobs(
        out.hidden_BTD[:, :-1], model.lm.head_VD, jnp.asarray(targets_BT, jnp.int32), chunk=1024
    )
    return float(-np.sum(weights_BT * np.asarray(logprobs_BT)) / np.sum(weights_BT))


def _channels_last(pixels_GCHW: np.ndarray) -> np.ndarray:
    return pixels_GCHW.transpose(0, 2, 3, 1)


def _error(found: jax.Array | np.ndarray, wanted: np.ndarray) -> float:
    if found.shape != wanted.shape:
        raise InputError(
            f"the model gives an array of shape {found.shape} where {wanted.shape} is recorded; use its case"
        )
    return float(np.max(np.abs(np.asarray(found, np.float64) - wanted)))
