"""Accuracy on question files, parity with recorded outputs, pictures of what a router decides."""

from internvl_jax.evaluation.adapter_parity import compare_adapter
from internvl_jax.evaluation.overlay import router_overlay
from internvl_jax.evaluation.parity import compare, image_token_id, read_case
from internvl_jax.evaluation.tasks import Evaluation, evaluate, open_graders, read_questions

__all__ = [
    "Evaluation",
    "compare",
    "compare_adapter",
    "evaluate",
    "image_token_id",
    "open_graders",
    "read_case",
    "read_questions",
    "router_overlay",
]
