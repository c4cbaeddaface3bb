"""Groups of responses that were left unfinished, as data and as arrays of a file."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from internvl_jax.errors import InputError
from internvl_jax.inference import Rollout


@dataclasses.dataclass
class PartialGroup:
    """A prompt whose responses are under way, or wait for a rollout batch.

    Attributes:
      place: the prompt is the run's n-th, which its random streams depend on.
      number: the prompt's number in its data.
      begun: the rollout batch in which it came up.
      responses: as far as they are written; none where the prompt was not read yet. Experts are kept of those that have
        ended: the others are read again.
      stale: how many tokens of each response are older than the parameters of now; none stands for 0.
    """

    place: int
    number: int
    begun: int
    responses: list[Rollout] = dataclasses.field(default_factory=list)
    stale: list[int] = dataclasses.field(default_factory=list)

    def ended(self, longest: int) -> bool:
        """Whether all responses are complete, `longest` being the most tokens that one may have."""
        return bool(self.responses) and all(each.finished or len(each.tokens) >= longest for each in self.responses)

    def aged(self) -> "PartialGroup":
        """The same once there are newer parameters."""
        return dataclasses.replace(self, stale=[len(each.tokens) for each in self.responses])


# For `read_arrays`: Q groups of A responses.
ARRAYS = {
    "left_of": "i2",
    "left_lengths": "i2",
    "left_finished": "b2",
    "left_tokens": "i1",
    "left_sampled": "f1",
    "left_route_lengths": "i1",
    "left_routes": "i3",
}


def to_arrays(groups: Sequence[PartialGroup], size: int) -> dict[str, Any]:
    """What a file keeps of groups of `size` responses; nothing where there are none."""
    if not groups:
        return {}
    unread = Rollout(np.zeros(0, np.int32), np.zeros(0, np.float32), False, None)
    responses = [each for group in groups for each in group.responses or [unread] * size]
    lengths_R = np.array([len(each.tokens) for each in responses])
    made = {
        "left_of": np.array([(group.place, group.number, group.begun) for group in groups]),
        "left_lengths": lengths_R.reshape(-1, size),
        "left_finished": np.array([each.finished for each in responses]).reshape(-1, size),
        "left_tokens": np.concatenate([each.tokens for each in responses]),
        "left_sampled": np.concatenate([each.logprobs for each in responses]),
    }
    routes = [each.routes for each in responses if each.routes is not None]
    if routes:
        counts = [0 if each.routes is None else len(each.routes) for each in responses]
        made |= {"left_routes": np.concatenate(routes), "left_route_lengths": np.array(counts)}
    return made


def from_arrays(stored: Mapping[str, np.ndarray]) -> list[PartialGroup]:
    """The groups of a file, with newer parameters than theirs to come.

    Raises:
      InputError: arrays that don't fit one another.
    """
    if "left_of" not in stored:
        return []
    wanted = ARRAYS.keys() if "left_routes" in stored else ARRAYS.keys() - {"left_routes", "left_route_lengths"}
    if missing := sorted(wanted - stored.keys()):
        raise InputError(f"it has no array {missing[0]!r}")
    of, lengths_QA = stored["left_of"], stored["left_lengths"]
    tokens = int(lengths_QA.sum())
    sizes = {"left_of": (len(lengths_QA), 3), "left_finished": lengths_QA.shape}
    sizes |= {"left_tokens": (tokens,), "left_sampled": (tokens,)}
    wrong = [name for name, shape in sizes.items() if stored[name].shape != shape]
    if wrong or lengths_QA.size == 0 or lengths_QA.min() < 0:
        raise InputError(f"its arrays {wrong or ['left_lengths']} don't fit one another")
    routes: list[np.ndarray | None] = [None] * lengths_QA.size
    if "left_routes" in stored:
        counts = stored["left_route_lengths"]
        if counts.shape != (lengths_QA.size,) or counts.min() < 0 or counts.sum() != len(stored["left_routes"]):
            raise InputError("the experts of what it left don't fit the responses")
        routes = [part if len(part) else None for part in np.split(stored["left_routes"], np.cumsum(counts)[:-1])]
    ends = np.cumsum(lengths_QA.reshape(-1))[:-1]
    parts = zip(
        np.split(stored["left_tokens"], ends),
        np.split(stored["left_sampled"], ends),
        stored["left_finished"].reshape(-1).tolist(),
        routes,
        strict=True,
    )
    responses, size = [Rollout(*part) for part in parts], lengths_QA.shape[1]
    made = []
    for q, (place, number, begun) in enumerate(of.tolist()):
        own = responses[q * size : (q + 1) * size]
        made.append(PartialGroup(place, number, begun, own if len(own[0].tokens) else []).aged())
    return made
