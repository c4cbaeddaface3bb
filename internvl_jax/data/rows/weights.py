"""The loss weight of a token, from the number of supervised tokens of its sample.

`token` averages over tokens (long answers dominate), `sample` over samples (short answers dominate), `square` lies
between the two and is what pre-training and SFT use: InternVL3.5 paper, section 2.2; released `len2weight`.
"""

from typing import Literal, get_args

Weighting = Literal["token", "sample", "square"]
WEIGHTINGS: tuple[Weighting, ...] = get_args(Weighting)

_EXPONENTS = {"token": 0.0, "sample": -1.0, "square": -0.5}


def token_weight(supervised: int, weighting: str) -> float:
    """Weight of each supervised token of a sample that has `supervised` of them; 0 where there is none.

    Raises:
        ValueError: if `weighting` is none of `WEIGHTINGS`.
    """
    if weighting not in _EXPONENTS:
        raise ValueError(f"loss weighting {weighting!r} is unknown; use one of {', '.join(WEIGHTINGS)}")
    return float(supervised) ** _EXPONENTS[weighting] if supervised else 0.0
