"""The settings that decide the demo's result."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Stage:
    """One training stage: rows of packed samples, and how many of them."""

    steps: int
    rows: int
    token_budget: int
    tile_budget: int
    learning_rate: float


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides the demo's result.

    `variants` repaintings of each training picture are captioned in CPT; the first `sft_variants` of them are talked
    about in SFT, `turns` questions a conversation.
    """

    variants: int
    sft_variants: int
    turns: int
    vocab: int
    seed: int
    cpt: Stage
    sft: Stage


# Found on a tenth of the training pictures held back; the test split was not looked at.
RECIPE = Recipe(
    variants=10,
    sft_variants=3,
    turns=4,
    vocab=512,
    seed=0,
    cpt=Stage(steps=2500, rows=1, token_budget=360, tile_budget=16, learning_rate=1.5e-3),
    sft=Stage(steps=700, rows=4, token_budget=432, tile_budget=4, learning_rate=1e-3),
)
