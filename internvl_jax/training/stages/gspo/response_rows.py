"""Sampled responses as packed rows: those to one prompt stand side by side and share its tiles."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from internvl_jax.data import Batch, ChatInputs, RowConfig, Sample, assemble_row, row_order, stack_rows
from internvl_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class ResponseLayout:
    """Rows, and which response each of their segments is.

    Attributes:
      rows: rows of several texts; loss weights are 1 on the tokens of responses.
      responses_BX: int32, the number of segment s's response, at s - 1; -1 where there is none.
    """

    rows: Batch
    responses_BX: np.ndarray

    def place(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """float32 [B, T]: values of every response's tokens, where its targets stand; 0 elsewhere."""
        placed_BT = np.zeros(self.rows.tokens_BT.shape, np.float32)
        for b, numbers in self._filled():
            placed_BT[b, self.rows.weights_BT[b] > 0] = np.concatenate([values[number] for number in numbers])
        return placed_BT

    def place_routes(self, routes: Sequence[np.ndarray]) -> np.ndarray:
        """int16 [B, T, L, K]: the experts of every prompt's and response's tokens (`Rollout.routes`); -1 elsewhere."""
        rows = self.rows
        placed_BTLK = np.full((*rows.tokens_BT.shape, *routes[0].shape[1:]), -1, np.int16)
        for b, numbers in self._filled():
            for segment, number in enumerate(numbers, start=1):
                start = int(np.argmax(rows.segments_BT[b] == segment))
                placed_BTLK[b, start : start + len(routes[number])] = routes[number]
        return placed_BTLK

    def pick(self, values_BT: np.ndarray) -> list[np.ndarray]:
        """The reverse of `place`: values of every response's tokens, by the number of the response."""
        found: dict[int, np.ndarray] = {}
        for b, numbers in self._filled():
            asked_T = self.rows.weights_BT[b] > 0
            segments = self.rows.segments_BT[b, asked_T]
            parts = np.split(values_BT[b, asked_T], np.flatnonzero(np.diff(segments)) + 1)
            found |= dict(zip(numbers, parts, strict=True))
        return [found[number] for number in range(len(found))]

    def spread(self, values: np.ndarray) -> np.ndarray:
        """`[B, X]`: a value of every response at its segment; 0 (False) where there is none."""
        return np.where(self.responses_BX >= 0, values[self.responses_BX], np.zeros((), values.dtype))

    def _filled(self) -> Iterator[tuple[int, list[int]]]:
        for b, responses_X in enumerate(self.responses_BX):
            if numbers := [int(number) for number in responses_X if number >= 0]:
                yield b, numbers


def most_rows(prompts: int, group: int, longest: int, tiles: int, token_budget: int, tile_budget: int) -> int:
    """The most rows that groups of responses to a number of prompts can fill, however long they turn out.

    A row that ends where tokens do holds `fit` responses or more; one that ends where tiles do has begun `shown`
    prompts, and all but the first of these are there with their whole group.

    Args:
      longest: the most tokens that a prompt has with its response.
      tiles: the most tiles that a prompt has.
    """
    fit = token_budget // longest
    shown = tile_budget // tiles if tiles else prompts
    least = fit if shown >= prompts else min(fit, 1 + (shown - 1) * group)
    return min(-(-prompts * group // least), prompts * -(-group // fit))


def lay_out(
    prompts: Sequence[ChatInputs],
    responses: Sequence[Sequence[np.ndarray]],
    config: RowConfig,
    rows: int,
    micro_batches: int,
) -> ResponseLayout:
    """Rows of all responses, filled one after the other, in the order of `row_order`.

    Args:
      prompts: each prompt's tokens and tiles.
      responses: the int32 tokens of the responses to each prompt; they are numbered through.

    Raises:
      InputError: they need more rows.
    """
    packed = _pack(prompts, responses, config)
    if len(packed) > rows:
        raise InputError(
            f"{sum(map(len, responses))} responses fill {len(packed)} rows of {config.token_budget} tokens and "
            f"{config.tile_budget} tiles, but run.rows is {rows}; raise data.tile_budget or run.rows"
        )
    firsts = np.cumsum([0, *map(len, responses)])
    contents = [[_sample(prompts[p], [responses[p][g] for g in members], p) for p, members in row] for row in packed]
    made, numbers_BX = [], np.full((rows, config.token_budget), -1, np.int32)
    for row, place in enumerate(row_order(contents, rows, micro_batches)):
        filled = place < len(packed)
        made.append(assemble_row(contents[place] if filled else [], config))
        numbers = [firsts[p] + g for p, members in packed[place] for g in members] if filled else []
        numbers_BX[row, : len(numbers)] = numbers
    batch = stack_rows(made)
    return ResponseLayout(batch, numbers_BX[:, : batch.samples_BX.shape[1]])


def _pack(
    prompts: Sequence[ChatInputs], responses: Sequence[Sequence[np.ndarray]], config: RowConfig
) -> list[list[tuple[int, list[int]]]]:
    """For every row, its prompts with the numbers of their responses."""
    rows: list[list[tuple[int, list[int]]]] = []
    tokens = tiles = 0
    for p, (prompt, group) in enumerate(zip(prompts, responses, strict=True)):
        for g, response in enumerate(group):
            length = len(prompt.tokens_T) + len(response)
            known = bool(rows) and bool(rows[-1]) and rows[-1][-1][0] == p
            more = 0 if known else len(prompt.tiles_GHWC)
            if not rows or tokens + length > config.token_budget or tiles + more > config.tile_budget:
                rows.append([])
                tokens, tiles, known = 0, 0, False
                more = len(prompt.tiles_GHWC)
            if not known:
                rows[-1].append((p, []))
            rows[-1][-1][1].append(g)
            tokens, tiles = tokens + length, tiles + more
    return rows


def _sample(prompt: ChatInputs, responses: Sequence[np.ndarray], number: int) -> Sample:
    texts = [np.concatenate([prompt.tokens_T, response]).astype(np.int32) for response in responses]
    asked = [np.arange(len(text)) >= len(prompt.tokens_T) for text in texts]
    starts = tuple(np.cumsum([0, *map(len, texts[:-1])]).tolist())
    name = f"prompt {number} of the batch"
    return Sample(name, np.concatenate(texts), np.concatenate(asked), prompt.tiles_GHWC, starts, number)
