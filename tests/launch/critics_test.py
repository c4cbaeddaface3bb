"""The critic that --critic names."""

import pytest

from tests import forks

LOADED = """
import pathlib, sys
import jax
from absl import flags
from internvl_jax.sharding import flatten
from launch import critics
folder = flags.FLAGS(sys.argv)[1]
critics.Critic = lambda model, processor: model
critics.directory = lambda: pathlib.Path(folder)
critic = critics.load()
print(critic.runtime.cache, any(leaf.dtype == "int8" for leaf in jax.tree.leaves(flatten(critic))))
"""


@pytest.mark.parametrize("how", ["--quantise=int8", "--cache=float8"])
def test_a_critic_keeps_its_own_precision(golden, how):
    """--quantise and --cache are the answering model's."""
    given = ("--checkpoint=none", "--compilation_cache=", how)
    done = forks.python("-c", LOADED, str(golden / "visualprm_qwen2_github"), *given)
    assert done.stdout.strip() == "None False", done.stderr
