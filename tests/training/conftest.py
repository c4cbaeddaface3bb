import pytest

from tests.training import toy


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """The toy data, written once."""
    folder = tmp_path_factory.mktemp("toy") / "data"
    toy.write_data(folder)
    return folder
