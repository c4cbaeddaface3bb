import pytest

from tests.programs import save_start
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
    save_start(toy.config(data, data / "unused"), data / "start")
    return data


@pytest.fixture(scope="module")
def boards(tmp_path_factory):
    """A folder with what ViCO starts from, of random weights: a base model, and a Flash model."""
    folder = tmp_path_factory.mktemp("boards")
    toy.write_boards(folder)
    save_start(toy.vico_config(folder, folder / "unused", "ntp", ""), folder / "base")
    save_start(toy.consistency_config(folder, folder / "unused"), folder / "flash")
    return folder
