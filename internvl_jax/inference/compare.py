"""A model beside a recorded reference: runs `inputs.npz` of a golden case, compares with its `outputs.npz`.

Cases are a vision tower alone, a GitHub-format model or an HF-format model; the arrays that `outputs.npz` holds say
which comparisons are made. Positions of padding are left out. Answers come from the engine that chat uses.
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
from internvl_jax.inference.generate import Generator, Request, Vocabulary
from internvl_jax.inference.sampling import SamplingParams
from internvl_jax.models import InternViT, InternVL, InternVLConfig, Out, token_logprobs

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
    """The engine's answers, and the logits of one pass over prompts and recorded answers."""
    prompts_BT, prompt_mask_BT = inputs["prompt_input_ids"], inputs["prompt_attention_mask"].astype(bool)
    wanted_BT = outputs["greedy_tokens"]
    prompt, answer = prompts_BT.shape[1], wanted_BT.shape[1]
    stop = int(inputs["eos_for_greedy_tokens_eos"])
    requests = (prompts_BT, prompt_mask_BT, tiles)
    report: Report = {
        "greedy_tokens_equal": bool(np.array_equal(_answers(model, *requests, answer, ()), wanted_BT)),
        "greedy_tokens_eos_equal": bool(
            np.array_equal(_answers(model, *requests, answer, (stop,)), outputs["greedy_tokens_eos"])
        ),
    }
    tokens_BT = np.concatenate([prompts_BT, wanted_BT], axis=1)
    mask_BT = np.concatenate([prompt_mask_BT, np.ones_like(wanted_BT, bool)], axis=1)
    logits_BTV = np.asarray(model.logits(_run(model, tokens_BT, mask_BT, tiles).hidden_BTD))
    scores_BTV = logits_BTV[:, prompt - 1 : prompt + answer - 1]
    report["greedy_scores"] = _error(scores_BTV.swapaxes(0, 1), outputs["greedy_scores"])
    if "prompt_logits_left_padded" in outputs:
        wanted_BTV = outputs["prompt_logits_left_padded"]
        found_BTV = logits_BTV[:, :prompt]
        report["prompt_logits_left_padded"] = _error(found_BTV[prompt_mask_BT], wanted_BTV[prompt_mask_BT])
    return report


def _answers(
    model: InternVL, prompts_BT: np.ndarray, mask_BT: np.ndarray, tiles: np.ndarray, length: int, stops: tuple[int, ...]
) -> np.ndarray:
    """Greedy answers, zeros after a stop token; as long as the longest."""
    sampling = SamplingParams(max_new_tokens=length, stop_token_ids=stops)
    row_tiles = np.split(tiles, np.cumsum(_tiles_per_row(prompts_BT, model.config))[:-1])
    prompts = [row[real] for row, real in zip(prompts_BT, mask_BT, strict=True)]
    requests = [Request(tokens, own, sampling) for tokens, own in zip(prompts, row_tiles, strict=True)]
    rows = Generator(model, Vocabulary(model.config.text.vocab, (), ())).generate(requests)
    longest = max(map(len, rows))
    return np.array([row + [0] * (longest - len(row)) for row in rows])


def _tiles_per_row(tokens_BT: np.ndarray, config: InternVLConfig) -> np.ndarray:
    return np.sum(tokens_BT == config.image_token_id, axis=1) // config.tokens_per_tile


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
