"""The PyTorch process: transformers' InternVLForConditionalGeneration. Imports nothing of JAX."""

import json
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from benchmarks import workload
from benchmarks.answering import Actions, seconds, serve

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load(arguments: dict[str, Any]) -> Actions:
    """The actions of a task; see `inference`, `rollout` and `train` for their arguments."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ImportError(
            f"the comparison needs PyTorch and transformers ({error}); install them with "
            "`pip install '.[bench]'`, or give an interpreter that has them with --torch_python"
        ) from None
    task = arguments.pop("task")
    tasks: dict[str, Callable[..., Actions]] = {
        "inference": _inference,
        "batch": _batch,
        "rollout": _rollout,
        "train": _train,
    }
    return {"make": _make, **tasks}[task](torch, transformers, **arguments)


def _make(torch: ModuleType, transformers: ModuleType, directory: str, config: dict) -> Actions:
    """Writes a random checkpoint."""
    torch.manual_seed(0)
    model = transformers.InternVLForConditionalGeneration(transformers.InternVLConfig(**config))
    with torch.no_grad():  # transformers starts these at 0, which would leave them untested
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "cls_token", "position_embeddings")):
                parameter.normal_(0, 0.02)
    model.save_pretrained(directory)
    return {}


def _read(torch: ModuleType, transformers: ModuleType, directory: str, dtype: str) -> Any:
    return transformers.InternVLForConditionalGeneration.from_pretrained(
        directory, dtype=getattr(torch, dtype), attn_implementation="sdpa"
    )


def _pixels(torch: ModuleType, tiles_GHWC: np.ndarray, dtype: Any) -> Any:
    pixels = (tiles_GHWC.astype(np.float32) / 255 - np.array(_MEAN, np.float32)) / np.array(_STD, np.float32)
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()).to(dtype)


def _inference(
    torch: ModuleType,
    transformers: ModuleType,
    directory: str,
    config: dict,
    dtype: str,
    prompt: int,
    tiles: int,
    new: int,
) -> Actions:
    model = _read(torch, transformers, directory, dtype).eval()
    tokens_T, tiles_GHWC = workload.prompt(config, prompt, tiles)
    pixels = _pixels(torch, tiles_GHWC, model.dtype)
    tokens = torch.from_numpy(tokens_T.astype(np.int64))[None]
    embeddings = model.get_input_embeddings()(tokens).detach()

    class Clock:
        """A streamer of `generate` that notes when every token came."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def put(self, value: Any) -> None:
            self.times.append(time.perf_counter())

        def end(self) -> None:
            pass

    @torch.inference_mode()
    def prefill() -> Any:
        out = model.model.language_model(inputs_embeds=embeddings, use_cache=True)
        return model.lm_head(out.last_hidden_state[:, -1:])

    @torch.inference_mode()
    def generate() -> dict[str, Any]:
        clock = Clock()
        out = model.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            pixel_values=pixels,
            do_sample=False,
            max_new_tokens=new,
            min_new_tokens=new,
            pad_token_id=0,
            streamer=clock,
        )
        first, last = clock.times[-new], clock.times[-1]
        return {"seconds": (last - first) / (new - 1), "tokens": out[0, -new:].tolist()}

    @torch.inference_mode()
    def vision() -> Any:
        return model.get_image_features(pixel_values=pixels)

    return {"vision": lambda: seconds(vision), "prefill": lambda: seconds(prefill), "decode": generate}


def _batch(
    torch: ModuleType,
    transformers: ModuleType,
    directory: str,
    config: dict,
    requests: int,
    prompts: tuple[int, int],
    answers: tuple[int, int],
    rows: int,
) -> Actions:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = _read(torch, transformers, directory, "float32").eval().to(device)
    asked = workload.mixed(config, requests, prompts, answers, 2)

    @torch.inference_mode()
    def answered(few: list, new: int) -> list[list[int]]:
        longest = max(len(tokens_T) for tokens_T, _, _ in few)
        tokens = torch.zeros((len(few), longest), dtype=torch.int64)
        mask = torch.zeros_like(tokens)
        for row, (tokens_T, _, _) in enumerate(few):
            tokens[row, longest - len(tokens_T) :] = torch.from_numpy(tokens_T.astype(np.int64))
            mask[row, longest - len(tokens_T) :] = 1
        pixels = _pixels(torch, np.concatenate([tiles_GHWC for _, tiles_GHWC, _ in few]), model.dtype)
        out = model.generate(
            input_ids=tokens.to(device),
            attention_mask=mask.to(device),
            pixel_values=pixels.to(device),
            do_sample=False,
            max_new_tokens=new,
            eos_token_id=None,
            pad_token_id=0,
        ).cpu()
        return [row[longest : longest + own].tolist() for row, (_, _, own) in zip(out, few, strict=True)]

    def batch() -> dict[str, Any]:
        start, found = time.perf_counter(), []
        for first in range(0, len(asked), rows):
            few = asked[first : first + rows]
            found += answered(few, max(new for _, _, new in few))
        return {"seconds": time.perf_counter() - start, "tokens": found}

    return {"batch": batch, "warm": lambda: {"tokens": answered(asked[:1], 2)}}


def _rollout(
    torch: ModuleType,
    transformers: ModuleType,
    directory: str,
    config: dict,
    prompt: int,
    tiles: int,
    group: int,
    new: int,
) -> Actions:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = _read(torch, transformers, directory, "float32").eval().to(device)
    tokens_T, tiles_GHWC = workload.prompt(config, prompt, tiles)
    pixels = _pixels(torch, tiles_GHWC, torch.float32).to(device)
    tokens = torch.from_numpy(tokens_T.astype(np.int64))[None].to(device)

    @torch.inference_mode()
    def sample(new: int, **how: Any) -> dict[str, Any]:
        torch.manual_seed(0)
        start = time.perf_counter()
        out = model.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            pixel_values=pixels,
            max_new_tokens=new,
            eos_token_id=None,
            pad_token_id=0,
            **how,
        ).cpu()
        wall = time.perf_counter() - start
        assert out.shape[1] == prompt + new
        return {"seconds": wall, "tokens": out[0, -new:].tolist()}

    drawn = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "num_return_sequences": group}
    return {
        "rollout": lambda: sample(new, **drawn),
        "first": lambda: sample(1, **drawn),
        "greedy": lambda: sample(new, do_sample=False),
    }


def _train(
    torch: ModuleType, transformers: ModuleType, directory: str, config: dict, tokens: int, tiles: int, optim: dict
) -> Actions:
    model = _read(torch, transformers, directory, "float32").train()
    tokens_T, tiles_GHWC = workload.prompt(config, tokens, tiles)
    pixels = _pixels(torch, tiles_GHWC, torch.float32)
    ids = torch.from_numpy(tokens_T.astype(np.int64))[None]
    labels = ids.masked_fill(ids == config["image_token_id"], -100)
    adam = torch.optim.AdamW(
        model.parameters(),
        lr=optim["learning_rate"],
        betas=(optim["beta1"], optim["beta2"]),
        eps=optim["eps"],
        weight_decay=optim["weight_decay"],
    )

    def step() -> dict[str, Any]:
        start = time.perf_counter()
        loss = model(input_ids=ids, pixel_values=pixels, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), optim["clip_norm"])
        adam.step()
        adam.zero_grad()
        return {"seconds": time.perf_counter() - start, "loss": loss.item()}

    return {"step": step}


if __name__ == "__main__":
    serve(lambda: load(json.loads(sys.argv[1])))
