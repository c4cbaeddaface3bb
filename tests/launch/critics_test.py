"""The critic that --critic names."""

import jax
import pytest
from absl import flags
from absl.testing import flagsaver

from internvl_jax.sharding import flatten
from launch import critics


@pytest.mark.parametrize("how", [{"quantise": "int8"}, {"cache": "float8"}])
def test_a_critic_keeps_its_own_precision(monkeypatch, golden, how):
    """--quantise and --cache are the answering model's."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    monkeypatch.setattr(critics, "Critic", lambda model, processor: model)
    monkeypatch.setattr(critics, "directory", lambda: golden / "visualprm_qwen2_github")
    with flagsaver.flagsaver(compilation_cache="", **how):
        critic = critics.load()
        assert critic.runtime.cache is None
        assert not any(leaf.dtype == "int8" for leaf in jax.tree.leaves(flatten(critic)))
