"""A trained adapter in PyTorch's hands: transformers with the merged export, and PEFT with the adapter alone, give our
logits.

Needs torch, transformers and peft, which the test extra does not bring.
"""

import dataclasses

import jax
import numpy as np
import pytest

import internvl_jax as ivl
from checkpoint_convert import convert, load_released
from internvl_jax.models.internvl import normalise
from internvl_jax.training import train
from tests.training import toy

torch = pytest.importorskip("torch", reason="PyTorch's side needs torch")
transformers = pytest.importorskip("transformers", reason="PyTorch's side needs transformers")
peft = pytest.importorskip("peft", reason="PEFT's own reading needs peft")


def theirs(model, tokens_BT, tiles_GHWC):
    pixels = np.asarray(normalise(tiles_GHWC, np.float32)).transpose(0, 3, 1, 2)
    given = {"input_ids": tokens_BT, "attention_mask": np.ones_like(tokens_BT), "pixel_values": pixels}
    with torch.no_grad():
        return model.eval()(**{name: torch.from_numpy(np.array(value)) for name, value in given.items()}).logits.numpy()


def ours(model, tokens_BT, tiles_GHWC):
    B, T = tokens_BT.shape
    positions_BT = np.broadcast_to(np.arange(T, dtype=np.int32), (B, T))
    mask_G = np.ones(len(tiles_GHWC), bool)
    out = model(tokens_BT, tiles_GHWC, mask_G, np.ones((B, T), np.int32), positions_BT)
    return np.asarray(model.logits(out.hidden_BTD))


@pytest.mark.filterwarnings("ignore")  # theirs, of each other
def test_exports_of_a_trained_adapter(start, tmp_path):
    config = toy.config(start, tmp_path / "run", mesh="data=8", steps=4, init_from=str(start / "start"))
    config.optim.learning_rate = 0.02
    config.lora = toy.LORA
    train(config)
    model, processor = ivl.load(tmp_path / "run", "float32")
    base, _ = ivl.load(start / "start", "float32")
    picture = next((start / "images").glob("1_*.png"))
    content = [{"type": "image", "image": str(picture)}, {"type": "text", "text": "what colours?"}]
    inputs = processor([{"role": "user", "content": content}])
    given = inputs.tokens_T[None], inputs.tiles_GHWC
    wanted = ours(model, *given)
    assert np.max(np.abs(ours(base, *given) - wanted)) > 1e-2

    load = lambda directory: transformers.InternVLForConditionalGeneration.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )
    convert(tmp_path / "run", tmp_path / "merged", "hf")
    np.testing.assert_allclose(theirs(load(tmp_path / "merged"), *given), wanted, atol=1e-4, rtol=0)
    convert(start / "start", tmp_path / "base", "hf")
    convert(tmp_path / "run", tmp_path / "adapter", "peft-hf")
    adapted = peft.PeftModel.from_pretrained(load(tmp_path / "base"), tmp_path / "adapter")
    np.testing.assert_allclose(theirs(adapted, *given), wanted, atol=1e-4, rtol=0)
    np.testing.assert_allclose(theirs(adapted.merge_and_unload(), *given), wanted, atol=1e-4, rtol=0)

    # transformers does not read the GitHub layout; ours does, and makes the same of it.
    convert(tmp_path / "run", tmp_path / "github", "github")
    released, _ = load_released(tmp_path / "github", "float32")
    np.testing.assert_allclose(ours(released, *given), wanted, atol=1e-4, rtol=0)
    convert(tmp_path / "github", tmp_path / "again", "hf")
    np.testing.assert_allclose(theirs(load(tmp_path / "again"), *given), wanted, atol=1e-4, rtol=0)
    assert dataclasses.replace(model.config, lora=None) == released.config and jax.device_count() == 8
