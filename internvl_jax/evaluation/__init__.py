"""Accuracy on question files, parity with recorded outputs, pictures of what a router decides."""

from internvl_jax.evaluation.drawing import draw_answer
from internvl_jax.evaluation.overlay import router_overlay
from internvl_jax.evaluation.parity import compare, image_token_id, read_case
from internvl_jax.evaluation.svg import draw_svg, find_svg, psnr, ssim
from internvl_jax.evaluation.tasks import Evaluation, evaluate, open_graders, read_questions

__all__ = [
    "Evaluation",
    "compare",
    "draw_answer",
    "draw_svg",
    "evaluate",
    "find_svg",
    "image_token_id",
    "open_graders",
    "psnr",
    "read_case",
    "read_questions",
    "router_overlay",
    "ssim",
]
