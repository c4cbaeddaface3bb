"""GSPO as a stage."""

from internvl_jax.training.stages.base import Stage, Start
from internvl_jax.training.stages.gspo.objective import Gspo, empty_responses
from internvl_jax.training.stages.gspo.rollouts import Rollouts
from internvl_jax.training.stages.gspo.settings import GspoConfig, check


def _summary(settings: GspoConfig, steps: int) -> list[str]:
    responses, share = settings.prompts * settings.group, settings.prompts // settings.mini_batch
    lines = [f"rollouts: {responses:,} responses a batch, used up in {share} steps of {responses // share:,}"]
    if settings.ahead:
        lines.append(f"partial rollouts: {settings.ahead:,} prompts ahead, up to {settings.staleness} batches old")
    return lines


GSPO = Stage(
    name="gspo",
    settings=GspoConfig,
    check=check,
    free=frozenset({"sample_prompts", "grader_seconds", "grader_workers"}),
    start=Start.MODEL,
    objective=Gspo,
    source=Rollouts,
    empty_row=empty_responses,
    samples=True,
    columns=(
        "kl",
        "reward",
        "accuracy",
        "format",
        "response_tokens",
        "truncated",
        "zero_advantage",
        "clip_fraction",
        "logprob_difference",
        "max_logprob_difference",
        "sampler_difference",
        "max_sampler_difference",
        "stale_tokens",
        "importance_weight",
        "importance_capped",
        "entropy",
        "router_agreement",
    ),
    summary=_summary,
)
