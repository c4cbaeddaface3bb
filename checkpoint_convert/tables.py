"""Format and family -> its table of rows, and the spellings of names that are accepted besides those of the table."""

import dataclasses
import re

from checkpoint_convert import table_flash, table_intern_vit, table_language
from checkpoint_convert.rows import Row


@dataclasses.dataclass(frozen=True)
class Table:
    """Attributes:
    rows: every row of the format and family.
    aliases: (regular expression, replacement), applied in order, that turn other spellings into those of the rows.
    """

    rows: tuple[Row, ...]
    aliases: tuple[tuple[str, str], ...]

    def canonical(self, name: str) -> str:
        for pattern, replacement in self.aliases:
            name = re.sub(pattern, replacement, name)
        return name


# hf2custom of the public repository (2410d1d) leaves the 6B tower's q/k norms under HF's name.
_GITHUB_ALIASES = ((r"^(vision_model\.encoder\.layers\.\d+)\.attention\.([qk]_norm\.)", r"\1.attn.\2"),)

_HF_ALIASES = (
    # transformers >= 4.56 in memory and custom2hf of the public repository put everything but the head under `model.`.
    (r"^model\.(language_model|vision_tower|multi_modal_projector)\.", r"\1."),
    (r"^language_model\.(?!model\.|lm_head\.)", r"language_model.model."),
    (r"^lm_head\.", r"language_model.lm_head."),
    # custom2hf leaves the 6B tower's q/k norms under the GitHub name.
    (r"^(vision_tower\.encoder\.layer\.\d+)\.attn\.([qk]_norm\.)", r"\1.attention.\2"),
)

_LANGUAGE_MODELS = {
    "qwen3": table_language.qwen3,
    "qwen3_moe": table_language.qwen3_moe,
    "gpt_oss": table_language.gpt_oss,
    "gpt_oss_mxfp4": table_language.gpt_oss_mxfp4,  # for reading only
}

_GITHUB_VISION = (
    *table_intern_vit.github_tower("vision_model.", "vit."),
    *table_intern_vit.projector("mlp1.0", "mlp1.1", "mlp1.3"),
    *table_flash.rows(),
)
_HF_VISION = (
    *table_intern_vit.hf_tower(),
    *table_intern_vit.projector(*(f"multi_modal_projector.{part}" for part in ("layer_norm", "linear_1", "linear_2"))),
)
TABLES = {
    **{("github", name): Table((*_GITHUB_VISION, *rows()), _GITHUB_ALIASES) for name, rows in _LANGUAGE_MODELS.items()},
    **{("hf", name): Table((*_HF_VISION, *rows()), _HF_ALIASES) for name, rows in _LANGUAGE_MODELS.items()},
    ("github", "vit"): Table(tuple(table_intern_vit.github_tower("", "")), ()),
}
