"""Labels of steps, for a critic to learn from, by the outcomes of a policy's own rollouts (VisualPRM400K).

A step of a response is worth the share of completions from there that end at the right answer; the last one what the
response itself is. It is right if that is more than `PairConfig.right_share`. What follows the first wrong step isn't
asked about. Source: VisualPRM (arXiv 2503.10291) 3, and the released data pipeline.
"""

import json
from collections.abc import Mapping
from typing import Any

from internvl_jax.data import CRITIC_SYSTEM, RIGHT, WRONG, Prompts, critic_record
from internvl_jax.making.annotations import Annotations, shown_by
from internvl_jax.making.responses import PairConfig

_IMAGE, _VIDEO = "<image>", "<video>"


class StepLabels(Annotations):
    """Conversations with a critic, one for each response of different steps, as lines that SFT reads."""

    unit = "labelled response"
    files: Mapping[str, str] = {"system.txt": CRITIC_SYSTEM}

    def __init__(self, prompts: Prompts, config: PairConfig):
        super().__init__(prompts, config)
        self._lines: dict[str, list[str]] = {}
        self._signs = {RIGHT: 0, WRONG: 0}

    def add(self, entry: dict[str, Any]) -> None:
        """Takes in one question."""
        self.read(entry, "responses")
        prompt = self.prompts[entry["number"]]
        question = prompt.question
        for mark, is_shown in ((_VIDEO, prompt.footage is not None), (_IMAGE, bool(prompt.pictures))):
            if is_shown and mark not in question:  # or it would stand before the critic's own words
                question = f"{mark}\n{question}"
        for parts, shares in entry.get("steps", ()):
            signs = signs_of(shares, self.config.right_share)
            conversations = critic_record(question, [part.removesuffix("\n\n") for part in parts], signs)
            line = json.dumps(shown_by(prompt) | {"conversations": conversations}, ensure_ascii=False)
            self._lines.setdefault(prompt.dataset.name, []).append(line)
            for sign in signs:
                self._signs[sign] += 1

    def finish(self) -> tuple[dict[str, list[str]], dict[str, Any]]:
        """Lines by data set, and how many there are, with the signs in them."""
        lines = sum(map(len, self._lines.values()))
        return self._lines, {"lines": lines, "right_steps": self._signs[RIGHT], "wrong_steps": self._signs[WRONG]}


def signs_of(shares: list[float], right_share: float) -> list[str]:
    """The signs of a response's first steps, up to the first wrong one.

    Args:
      shares: of every step, of right completions from there.
    """
    signs = [RIGHT if share > right_share else WRONG for share in shares]
    return signs[: signs.index(WRONG) + 1] if WRONG in signs else signs
