"""Options of the compiler: what it doesn't know is left out, and said."""

import logging

import jax
import pytest

from internvl_jax.training.run import compiler


def test_an_option_that_nobody_knows_is_a_line_and_no_error(caplog):
    device = jax.devices("cpu")[0]
    wanted = {"xla_backend_optimization_level": "0", "xla_no_such_option": "1", "xla_nor_such_a_one": "2"}
    with caplog.at_level(logging.WARNING, logger="internvl_jax"):
        assert compiler.known(wanted, device) == {"xla_backend_optimization_level": "0"}
    assert [message.split(" does not know ")[1] for message in caplog.messages] == [
        "xla_no_such_option, which is left out",
        "xla_nor_such_a_one, which is left out",
    ]


def test_a_value_that_an_option_can_not_have_is_an_error():
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_backend_optimization_level"):
        compiler.known({"xla_backend_optimization_level": "much"}, jax.devices("cpu")[0])


def test_options_are_for_tpus():
    assert compiler.options(jax.devices("cpu")[0], experts=False) == {}
