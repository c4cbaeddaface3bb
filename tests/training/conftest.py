import pytest

from internvl_jax.training import train
from tests.training import toy


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """The toy data, written once."""
    folder = tmp_path_factory.mktemp("toy") / "data"
    toy.write_data(folder)
    return folder


@pytest.fixture(scope="session")
def start(data):
    """The folder of the toy data, with pairs and prompts, and a model to start from."""
    toy.write_pairs(data)
    toy.write_prompts(data)
    train(toy.config(data, data / "start", steps=1))
    return data
