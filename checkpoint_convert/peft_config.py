"""adapter_config.json of a PEFT adapter: what is read, what says nothing about the numbers, and what is refused."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from internvl_jax.errors import InputError
from internvl_jax.validation import Fields, NotNegative, Positive, read_json, shown

FILE, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_READ = {
    "peft_type",
    "r",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "lora_dropout",
    "init_lora_weights",
}
# Which modules have adapters the tensors say; the rest is about how a training began or who did it.
_NOTHING_SAID = {
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"),
    *("base_model_name_or_path", "revision", "task_type", "inference_mode", "auto_mapping", "peft_version"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "megatron_config", "megatron_core"),
    *("qalora_group_size", "runtime_config", "ensure_weight_tying"),
}
# Initial values for which PEFT changes the weights of the base as well.
_OTHER_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclasses.dataclass(frozen=True)
class PeftConfig:
    """Attributes:
    rank, alpha: of modules that no pattern matches.
    ranks, alphas: by pattern of a module's name or of its end; the first that matches counts.
    rslora, dropout: see `LoraConfig`.
    """

    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    rslora: bool
    dropout: float

    def of(self, module: str) -> tuple[int, float]:
        """Rank and alpha of a module."""
        return _matched(self.ranks, module, self.rank), float(_matched(self.alphas, module, self.alpha))


def _matched(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def read_peft_config(directory: pathlib.Path) -> PeftConfig:
    """The adapter_config.json of a folder.

    Raises:
      InputError: it is not there or broken; it is of another kind of adapter, or asks for something that is not read.
    """
    file = directory / FILE
    values = read_json(file, "give the folder of a PEFT adapter")
    fields = Fields(file, "", values)
    if (kind := fields.get("peft_type", str)) != "LORA":
        raise InputError(f"{file}: peft_type is {shown(kind)}, but only LORA is read; merge the adapter with PEFT")
    for name, value in values.items():
        if name not in _READ | _NOTHING_SAID and value not in (None, False, "", "none", [], {}):
            raise InputError(
                f"{file}: {name} is {shown(value)}, which is not read; merge the adapter with PEFT "
                "(merge_and_unload, save_pretrained), or train one without it"
            )
    began = values.get("init_lora_weights")
    if isinstance(began, str) and began.lower().startswith(_OTHER_BASE):  # PEFT takes them in any case
        raise InputError(
            f"{file}: init_lora_weights is {began!r}, which changed the weights of the base too; save the adapter with "
            "path_initial_model_for_weight_conversion, or merge it with PEFT"
        )
    patterns: dict[str, dict[str, Any]] = {}
    for name, bounds in (("rank_pattern", int), ("alpha_pattern", Positive)):
        part = fields.part(name) if values.get(name) else Fields(file, name, {})
        patterns[name] = {key: part.get(key, bounds) for key in part.values}
        for key in part.values:
            _check_pattern(key, f"{file}: {name}")
    return PeftConfig(
        fields.get("r", int),
        fields.get("lora_alpha", Positive),
        patterns["rank_pattern"],
        patterns["alpha_pattern"],
        fields.optional("use_rslora", bool, False),
        fields.optional("lora_dropout", NotNegative, 0.0),
    )


def _check_pattern(pattern: str, where: str) -> None:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(f"{where}: {shown(pattern)} is no regular expression ({error}); correct it") from None
