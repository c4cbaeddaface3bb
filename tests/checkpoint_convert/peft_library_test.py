"""PEFT itself reads what is written here: transformers' model with such an adapter gives the recorded logits.

Needs torch, transformers and peft, which the test extra does not bring.
"""

import numpy as np
import pytest

from checkpoint_convert import read_adapter, read_model_config
from checkpoint_convert.peft_writer import write_adapter

torch = pytest.importorskip("torch", reason="PEFT's own reading needs torch")
transformers = pytest.importorskip("transformers", reason="PEFT's own reading needs transformers")
peft = pytest.importorskip("peft", reason="PEFT's own reading needs peft")


@pytest.mark.filterwarnings("ignore")  # theirs, of each other
@pytest.mark.parametrize("name", ["lm", "all_rslora", "projector_whole"])
def test_peft_gives_the_recorded_logits(golden, tmp_path, name):
    base, recorded = golden / "hf_qwen3", golden / "lora_hf_qwen3" / name
    config = read_model_config(base)
    write_adapter(tmp_path, read_adapter(recorded, config), config, "hf", str(base))
    model = transformers.InternVLForConditionalGeneration.from_pretrained(
        base, dtype=torch.float32, attn_implementation="eager"
    )
    model = peft.PeftModel.from_pretrained(model, tmp_path).eval()
    inputs, outputs = (np.load(folder / file) for folder, file in ((base, "inputs.npz"), (recorded, "outputs.npz")))
    given = {key: torch.from_numpy(inputs[key]) for key in ("input_ids", "attention_mask", "pixel_values")}
    with torch.no_grad():
        found = model(**given).logits.numpy()
    mask = inputs["attention_mask"].astype(bool)
    np.testing.assert_allclose(found[mask], outputs["logits"][mask], atol=1e-4, rtol=0)
