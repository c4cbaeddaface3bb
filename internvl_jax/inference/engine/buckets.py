"""The sizes that programs are compiled for: whatever comes is padded up to one of them, so nothing compiles later."""

import dataclasses

from internvl_jax.errors import InputError


def _steps(smallest: int, largest: int, per_octave: int) -> tuple[int, ...]:
    """Multiples of `smallest`, at most `per_octave` from a power of two to the next: padding stays a small share."""
    sizes, size = [], smallest
    while size <= largest:
        sizes.append(size)
        size += max(smallest, (1 << (size.bit_length() - 1)) // per_octave)
    return tuple(sizes)


@dataclasses.dataclass(frozen=True)
class Ladders:
    """Rising sizes of every dimension that requests vary.

    Attributes:
      rows: how many answers are written at a time.
      prompts: how many tokens of a prompt are read at a time.
      together: of how many prompts at a time.
      tiles: how many tiles are encoded at a time.
      slots: how many cache slots a row has for prompt and answer.
    """

    rows: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    prompts: tuple[int, ...] = _steps(32, 1 << 15, 8)
    together: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    tiles: tuple[int, ...] = (1, 2, 3, 5, 7, 9, 13, 16, 20, 26, 32, 40, 52, 64, 96, 128, 192, 256)
    slots: tuple[int, ...] = _steps(64, 1 << 15, 8)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            sizes = getattr(self, field.name)
            if not sizes or list(sizes) != sorted(set(sizes)) or sizes[0] < 1:
                raise InputError(f"the ladder of {field.name} is {sizes}; give rising sizes from 1 on")


def fit(what: str, size: int, ladder: tuple[int, ...]) -> int:
    """The smallest size of the ladder that holds `size`.

    Raises:
      InputError: none does.
    """
    for candidate in ladder:
        if candidate >= size:
            return candidate
    raise InputError(f"{size} {what} are more than the largest size compiled for, {ladder[-1]}; shorten the request")
