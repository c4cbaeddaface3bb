"""Best-of-N on boards: the steps of a chain, and all of it on a handful of boards (`soak`)."""

import json

import pytest

from cascade import best_of, run
from tests.cascade.run_test import PARITY, SMALL, _small, brief

__all__ = ["_small"]


def test_steps_of_a_chain():
    text = r"<think>357:3+5=8+7=15</think>\boxed{15}"
    assert best_of.steps(text) == ["<think>357:", "3+5=8", "+7=15", r"</think>\boxed{15}"]
    assert best_of.steps(r"<think>3528:28</think>\boxed{2}") == ["<think>3528:", r"28</think>\boxed{2}"]
    for odd in ("", "=", "a=b:", "::", r"\boxed{=3"):
        assert "".join(best_of.steps(odd)) == odd and best_of.steps(odd)


@pytest.mark.soak
def test_from_boards_to_choices(tmp_path, capsys):
    import dataclasses

    recipe = dataclasses.replace(
        SMALL,
        labelled=4,
        labels=dataclasses.replace(SMALL.labels, samples=3, completions=2, batch_size=32, reward=PARITY),
        critic=brief(SMALL.critic, token_budget=1024),
        candidates=3,
    )
    run.run(str(tmp_path), ("data", "cpt", "sft"), recipe)
    found = best_of.run(tmp_path, "sft", recipe)
    assert list(found) == ["greedy", "vote", "critic, mean", "critic, min", "critic, last", "any"]
    assert "| vote |" in capsys.readouterr().out
    groups = best_of.candidates(tmp_path, "sft", recipe)
    assert len(groups) == 6 and all(len({one.asked for one in group}) == 1 and len(group) == 3 for group in groups)
    config = json.loads((tmp_path / "critic_sft" / "config.json").read_text())
    assert config["processor"]["system"] == best_of.SYSTEM
    assert best_of.run(tmp_path, "sft", recipe) == found
