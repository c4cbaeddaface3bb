"""The sizes that programs are compiled for."""

import pytest

from internvl_jax.errors import InputError
from internvl_jax.inference import Ladders, fit


def test_the_least_size_that_holds_it():
    assert fit("rows", 3, (1, 4, 8)) == 4 and fit("rows", 8, (1, 4, 8)) == 8
    with pytest.raises(InputError, match="9 rows are more than the largest size compiled for, 8"):
        fit("rows", 9, (1, 4, 8))


@pytest.mark.parametrize("sizes", [(), (4, 2), (2, 2), (0, 1)])
def test_ladders_rise(sizes):
    with pytest.raises(InputError, match="the ladder of rows is"):
        Ladders(rows=sizes)


def test_an_engines_chunks():
    """The sampler reads prompts whole, whatever an engine does with the same ladders."""
    assert Ladders().prompts[-1] == Ladders(chunk=16).prompts[-1] == 1 << 15
    assert Ladders().spread(1, 1).chunk == 1 << 15 and Ladders(chunk=16).spread(1, 1).prompts == (16,)
    server = Ladders(classes=((4, 1024),)).spread(2, 2)
    assert server.chunk == server.prompts[-1] == 512 and server.tiles[0] == 2
    with pytest.raises(InputError, match="4 rows of 1024 slots can't be shared by 3 devices"):
        Ladders(classes=((4, 1024),)).spread(3, 1)
    with pytest.raises(InputError, match="16 slots are shorter than the least part of a prompt, 32 tokens"):
        Ladders(classes=((4, 16),)).spread(1, 1)
