"""The sizes that programs are compiled for: whatever comes is padded up to one of them, so nothing compiles later."""

import dataclasses

from internvl_jax.errors import InputError

_CHUNK = 512  # tokens of a prompt that others wait for


def rising_sizes(smallest: int, largest: int, per_octave: int) -> tuple[int, ...]:
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
      classes: (rows, slots) of every class of rows, for a server: all memory is taken at once. None: rows become more
        and fewer, longer and shorter, with what is asked.
      page: tokens of a page. Rows of one class then share the memory that there is, and take pages as they grow; their
        slots are how many tokens one may have at most. None: rows have their slots for themselves.
      chunk: tokens of prompts that are read at a time while rows are answering; None: 512 where rows have classes, else
        whole prompts, which takes least time in all.
      piece: tokens of an answer that are written at a time, at most.
      reserve: a row must have room for so many tokens of an answer to get it, which moves or waits when it has more;
        None: for all that it may have. Where rows have no classes, an answer that has more must find room for as many
        again as it has, and None is 4,096: so memory is taken as answers grow, not for the longest that they may be.
      long: so many tokens must be left of an answer, or have been written before by more rows than were needed, or no
        program is compiled for fewer rows.
      kept_bytes: how much the features of tiles may take that are kept, on all devices together.
      kept_tiles: how many tiles they are of, at most; None: as many as there is room for.
      least_tiles: so many are kept whatever they take.
    """

    rows: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    prompts: tuple[int, ...] = rising_sizes(32, 1 << 15, 8)
    together: tuple[int, ...] = (1, 4, 16, 64)
    tiles: tuple[int, ...] = (1, 2, 3, 5, 7, 9, 13, 16, 20, 26, 32, 40, 52, 64, 96, 128, 192, 256)
    slots: tuple[int, ...] = rising_sizes(64, 1 << 17, 8)
    classes: tuple[tuple[int, int], ...] | None = None
    page: int | None = None
    chunk: int | None = None
    piece: int = 16
    reserve: int | None = None
    long: int = 32
    kept_bytes: int = 1 << 30
    kept_tiles: int | None = None
    least_tiles: int = 1

    def __post_init__(self) -> None:
        for name in ("rows", "prompts", "together", "tiles", "slots"):
            sizes = getattr(self, name)
            if not sizes or list(sizes) != sorted(set(sizes)) or sizes[0] < 1:
                raise InputError(f"the ladder of {name} is {sizes}; give rising sizes from 1 on")
        if min(size for size in (self.page, self.chunk, self.piece, self.long, self.reserve) if size is not None) < 1:
            raise InputError("an engine's page, chunk, piece, reserve and long must each be 1 token or more")
        if min(self.kept_bytes, self.least_tiles, 1 if self.kept_tiles is None else self.kept_tiles) < 1:
            raise InputError("an engine's kept_bytes, kept_tiles and least_tiles must each be 1 or more")
        if self.classes is not None and not all(rows > 0 and slots > 0 for rows, slots in self.classes):
            raise InputError(f"the classes of rows are {self.classes}; give (rows, slots), all of them positive")
        if self.page is not None and (self.classes is None or len(self.classes) > 1):
            raise InputError(f"the classes of rows are {self.classes}; rows that share pages need exactly one")

    @property
    def columns(self) -> int:
        """The most pages of a row, the padding of a part of its prompt included."""
        ((_, slots),) = self.classes
        return -(-(slots + self.prompts[-1]) // self.page)

    def divisible(self, shards: int, tiles: int) -> "Ladders":
        """For rows that `shards` devices share, and tiles that `tiles` do."""
        up = lambda sizes, unit: tuple(sorted({-(-size // unit) * unit for size in sizes}))
        rows, together = up(self.rows, shards), up(self.together, shards)
        return dataclasses.replace(self, rows=rows, together=together, tiles=up(self.tiles, tiles))

    def spread(self, shards: int, tiles: int) -> "Ladders":
        """`divisible`, for an engine that reads prompts in chunks.

        Raises:
          InputError: rows of a class that can't be shared, or that are shorter than the least part of a prompt.
        """
        chunk = self.chunk or (self.prompts[-1] if self.classes is None else _CHUNK)
        shortest = min([self.slots[0], *(slots for _, slots in self.classes or ())])
        if shortest < min(self.prompts[0], chunk):
            raise InputError(
                f"rows of {shortest} slots are shorter than the least part of a prompt, "
                f"{min(self.prompts[0], chunk)} tokens; give longer rows"
            )
        for rows, slots in self.classes or ():
            if rows % shards:
                raise InputError(f"{rows} rows of {slots} slots can't be shared by {shards} devices; take a multiple")
        # A whole chunk is a size as well, and no part of a prompt is larger.
        prompts = (*(size for size in self.prompts if size < chunk), chunk)
        return dataclasses.replace(self.divisible(shards, tiles), prompts=prompts, chunk=chunk)


def fit(what: str, size: int, ladder: tuple[int, ...]) -> int:
    """The smallest size of the ladder that holds `size`.

    Raises:
      InputError: none does.
    """
    for candidate in ladder:
        if candidate >= size:
            return candidate
    raise InputError(f"{size} {what} are more than the largest size compiled for, {ladder[-1]}; shorten the request")
