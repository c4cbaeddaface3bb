"""One test session: eight CPU devices, exact products, no network, no silent broadcasting."""

import gc
import importlib.metadata
import json
import os
import pathlib
import signal
import socket
import tempfile

# In the environment, so that the processes that tests start run the same way. The cache serves one session and all its
# workers: the same small programs are compiled again and again, and compiling is most of the time of this suite.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="internvl_jax_tests_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
# Least effort in the compiler: a training step compiles in 4 s instead of 27 (11 s with JAX 0.12, which has only the
# newer emitters), and these programs are too small to gain from more. Nor from being cut up to be compiled side by
# side: both cores have work, and in one piece compiling takes a fifth less of their time (2026-11, jax 0.10.2).
_FLAGS = ["--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    _FLAGS += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
os.environ |= {
    "XLA_FLAGS": " ".join(_FLAGS),
    "JAX_PLATFORMS": "cpu",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "NPROC": "32",  # as launch.cpu_threads does, and says why
}

import jax
import pytest
import tokenizers

from internvl_jax import compilation_cache
from tests import forks, programs

compilation_cache.write_whole()
forks.collect_rarely()
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")

# The longest files, longest first: each worker takes one file after the other, and none should be left with a long one.
_LONG = (
    *("stages/vico", "gspo/objective", "training/train", "stages/mpo", "cascade/run", "run/step", "training/multihost"),
    *("benchmarks/benchmarks", "engine/sampler", "models/parity", "engine/engine", "engine/paged_engine", "demo/run"),
    *("gspo/partial_rollouts", "planning/plan", "making/pairs", "checkpoint_convert/convert"),
    *("checkpoint_convert/export", "launch/chat", "configs/sizes"),
)
MOST_MAPPINGS = 20_000
GOLDEN = pathlib.Path(__file__).parent / "golden"
# What may not merge across in o200k_harmony, GPT-OSS's vocabulary: words by case, three digits at most.
_O200K_SPLIT = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ]
)
_HARMONY = ("endoftext", "return", "constrain", "channel", "start", "end", "message", "call")
_PICTURES = ("<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {f"{name}_test.py": rank for rank, name in enumerate(_LONG)}
    items.sort(key=lambda item: ranks.get(f"{item.path.parent.name}/{item.path.name}", len(ranks)))


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anything but a loopback address is refused."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"a test tried to reach {address}; tests run without network")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True, scope="session")
def _shared_programs():
    with programs.shared():
        yield


@pytest.fixture(autouse=True, scope="module")
def _few_mappings():
    """Linux grants a process 65,530 memory mappings, every compiled program takes some, and with none left LLVM aborts:
    long before, all programs are let go."""
    yield
    mappings = pathlib.Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > MOST_MAPPINGS:
        programs.forget()
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def ctrl_c():
    """Ctrl-C raises, as it does in a terminal; workers of a test session may ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def golden() -> pathlib.Path:
    """The folder of recorded references."""
    return GOLDEN


@pytest.fixture(scope="session")
def gpt_oss_files(tmp_path_factory) -> pathlib.Path:
    """Tokenizer files as a GPT-OSS checkpoint has them: its pipeline and special tokens around a tiny vocabulary."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=True))
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(_O200K_SPLIT), behavior="isolated")
    as_bytes = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, as_bytes])
    tokenizer.decoder, tokenizer.post_processor = tokenizers.decoders.ByteLevel(), tokenizers.processors.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["You are InternVL, system user assistant analysis final", "1234 猫"] * 3, trainer)
    tokenizer.add_special_tokens([*(f"<|{name}|>" for name in _HARMONY), *_PICTURES])
    folder = tmp_path_factory.mktemp("gpt_oss")
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<|startoftext|>", "eos_token": "<|return|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder
