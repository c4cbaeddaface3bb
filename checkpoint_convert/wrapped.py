"""Checkpoints that hold a whole model with its adapters, under PEFT's names within: what the release's own code saves.

Its `wrap_backbone_lora` and `wrap_llm_lora` wrap tower and language model each on its own, and `save_pretrained` of the
whole then writes `language_model.base_model.model.model.layers.0.mlp.up_proj.base_layer.weight` and, beside it,
`lora_A.default.weight` and `lora_B.default.weight`. alpha is twice the rank by convention; it is stored nowhere.

Source: the public InternVL repository, internvl_chat (modeling_internvl_chat.py, tools/merge_lora.py).
"""

import re
from collections.abc import Mapping

from checkpoint_convert.source import Tensor

_FACTOR = re.compile(r"\.lora_[AB]\.default\.weight$")


def split(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(tensors of the model, tensors of its adapters) under the names that they have apart from each other; all
    tensors, and none, of a checkpoint without adapters.
    """
    if not any(_FACTOR.search(name) for name in tensors):
        return dict(tensors), {}
    base: dict[str, Tensor] = {}
    adapters: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = name.replace(".base_model.model.", ".")
        if _FACTOR.search(name):
            adapters[plain.replace(".default.", ".")] = tensor
        else:
            base[plain.replace(".base_layer.", ".")] = tensor
    return base, adapters
