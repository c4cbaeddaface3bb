"""The small model of the tests of inference answers here too."""

from tests.inference.conftest import config, params, processor, structure

__all__ = ["config", "params", "processor", "structure"]
