"""Format and architecture -> its table of rows, and the spellings of names that are accepted besides the table's.

Rows of a language model are made of its family's record, those of the tower, the projector and the router stand here.
"""

import dataclasses
import re
from collections.abc import Mapping

from checkpoint_convert import table_flash, table_intern_vit
from checkpoint_convert.mxfp4 import Mxfp4Row
from checkpoint_convert.rows import Row, Shaped, SharedRow
from internvl_jax.models import FAMILIES, ModelKind, Released


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

    def rows_of(self, specs: Mapping[str, Shaped]) -> list[Row]:
        """The rows of a model that has these parameters."""
        return [row.fitted(specs) for row in self.rows if row.target in specs]


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

_GITHUB_VISION = (
    *table_intern_vit.github_tower("vision_model.", "vit."),
    *table_intern_vit.projector("mlp1.0", "mlp1.1", "mlp1.3"),
    *table_flash.rows(),
)
_HF_VISION = (
    *table_intern_vit.hf_tower(),
    *table_intern_vit.projector(*(f"multi_modal_projector.{part}" for part in ("layer_norm", "linear_1", "linear_2"))),
)
_SURROUNDINGS = {"github": (_GITHUB_VISION, _GITHUB_ALIASES), "hf": (_HF_VISION, _HF_ALIASES)}
_PACKED = {"mxfp4": Mxfp4Row}


def _row(released: Released) -> Row:
    where = released.source, released.target, released.pattern
    if released.packed is not None:
        return _PACKED[released.packed](*where)
    return SharedRow(*where, released.shared) if released.shared else Row(*where)


def _language_models(kind: ModelKind) -> dict[str, tuple[Row, ...]]:
    """Name -> rows: the architecture's, and for every way of packing a table that only reads."""
    plain = [released for released in kind.tensors if released.packed is None]
    tables = {kind.model_type: tuple(map(_row, plain))}
    for packing in sorted({released.packed for released in kind.tensors} - {None}):
        packed = [released for released in kind.tensors if released.packed == packing]
        targets = {released.target for released in packed}
        rest = [released for released in plain if released.target not in targets]
        tables[f"{kind.model_type}_{packing}"] = tuple(map(_row, [*rest, *packed]))
    return tables


TABLES = {
    **{
        (form, name): Table((*_SURROUNDINGS[form][0], *rows), _SURROUNDINGS[form][1])
        for family in FAMILIES.values()
        for kind in family.kinds
        for form in kind.formats
        for name, rows in _language_models(kind).items()
    },
    ("github", "vit"): Table(tuple(table_intern_vit.github_tower("", "")), ()),
}
