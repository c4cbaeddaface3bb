"""Package data, dependencies and extras; tool settings stand in pyproject.toml."""

from setuptools import find_packages, setup

COMMANDS = ["chat", "check_data", "compare", "convert", "evaluate", "inspect", "make_pairs", "plan", "serve", "train"]
SCRIPTS = [f"internvl-{name.replace('_', '-')} = launch.commands:{name}" for name in COMMANDS]
# FastAPI and uvicorn speak HTTP, httpcore2 with anyio fetches pictures, llguidance holds answers to a grammar.
SERVE = [
    "anyio>=4.16",
    "fastapi>=0.165",
    "httpcore2>=2.16",
    "llguidance>=1.9",
    "prometheus-client>=0.26",
    "pyzmq>=27.3",
    "uvicorn>=0.54",
]

setup(
    name="internvl_jax",
    version="0.1.0",
    description="InternVL3.5 in JAX: convert, train, reinforce and serve on TPU, GPU and CPU",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["internvl_jax*", "checkpoint_convert*", "configs*", "launch*"]),
    package_data={
        "internvl_jax": ["py.typed"],
        "internvl_jax.evaluation.suites": ["paper.json"],
        "internvl_jax.serving": ["page/index.html"],
        "checkpoint_convert": ["py.typed"],
    },
    entry_points={
        "console_scripts": [f"internvl-{name.replace('_', '-')}=launch.commands:{name}" for name in COMMANDS]
    },
    install_requires=[
        "absl-py>=2.1",
        "einops>=0.8",
        "flax>=0.12.8",
        "grain>=0.2.18",
        "jax>=0.10.2",
        "matplotlib>=3.9",
        "msgspec>=0.20",
        "numpy>=2.1",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "pillow>=11.3",
        "safetensors>=0.6",
        "sentencepiece>=0.2",
        "tensorboardX>=2.6.5",
        "tensorstore>=0.1.80",
        "tokenizers>=0.22",
        "tqdm>=4.67",
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10.2"],
        "cuda": ["jax[cuda13]>=0.10.2"],
        "rl": ["math-verify>=0.9", "pebble>=5.2", "pyarrow>=21"],
        "cascade": ["scikit-learn>=1.5"],
        "demo": ["easy-vqa>=1.0"],
        "evaluate": ["math-verify>=0.9", "openpyxl>=3.1"],
        "hub": ["huggingface_hub>=0.34"],
        "serve": SERVE,
        "svg": ["resvg_py>=0.5"],
        "video": ["av>=18.1"],
        "test": [
            *SERVE,
            "av>=18.1",
            "easy-vqa>=1.0",
            "httpx>=0.28",
            "jinja2>=3.1",
            "math-verify>=0.9",
            "mypy>=2.1,<3",
            "openpyxl>=3.1",
            "pebble>=5.2",
            "pyarrow>=21",
            "pytest>=8.4",
            "pytest-xdist>=3.8",
            "resvg_py>=0.5",
            "ruff>=0.17.6,<0.18",
            "scikit-learn>=1.5",
        ],
        "bench": ["torch>=2.8", "transformers>=4.56"],
    },
)
