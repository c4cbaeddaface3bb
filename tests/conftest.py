"""One test session: eight CPU devices, exact products, no network, no silent broadcasting."""

import importlib.metadata
import os
import pathlib
import socket
import tempfile

# In the environment, so that the processes that tests start run the same way. The cache serves one session and all its
# workers: the same small programs are compiled again and again, and compiling is most of the time of this suite.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="internvl_jax_tests_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
# Least effort in the compiler: a training step compiles in 4 s instead of 27 (11 s with JAX 0.12, which has only the
# newer emitters), and these programs are too small to gain from more.
_FLAGS = ["--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ |= {
    "XLA_FLAGS": " ".join(_FLAGS),
    "JAX_PLATFORMS": "cpu",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
}

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anything but a loopback address is refused."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"a test tried to reach {address}; tests run without network")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture
def golden() -> pathlib.Path:
    """The folder of recorded references."""
    return GOLDEN
