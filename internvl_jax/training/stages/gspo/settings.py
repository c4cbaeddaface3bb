"""The settings of GSPO, and which of them no run can have."""

import dataclasses
from typing import Annotated, Literal

from msgspec import Meta

from internvl_jax.errors import InputError
from internvl_jax.models import InternVLConfig
from internvl_jax.training.config import DataConfig, RunConfig, StageConfig
from internvl_jax.validation import Fraction, NotNegative

Number = Annotated[int, Meta(ge=1, le=10**7)]
TokenCount = Annotated[int, Meta(ge=1, le=2**24)]


@dataclasses.dataclass
class GspoConfig(StageConfig):
    """Online reinforcement learning by GSPO; defaults as released, but for what the release leaves to verl's.

    `data.meta` names prompts: a meta file, a JSONL file or the parquet file of MMPR-Tiny. A rollout batch is sampled
    with the policy as it is, at temperature 1, and used up by prompts / mini_batch optimizer steps. With `ahead` its
    longest answers may be left to later batches, so that sampling need not wait for them.

    Attributes:
      prompts: the prompts of a rollout batch.
      group: the number of responses to a prompt.
      mini_batch: the prompts of an optimizer step.
      sample_prompts: how many prompts are sampled at a time.
      ahead: so many prompts more are being answered, and sampling stops as soon as all responses to `prompts` of them
        have ended. What the others have written stays, with the log-probabilities of that time, and goes on in the next
        rollout batch with newer parameters; which prompts these are depends on sample_prompts too. 0: all responses
        end in their batch.
      staleness: with `ahead`, how many rollout batches old a token may be: what a prompt got this long ago is ended and
        learned from, however long sampling takes.
      importance_cap: each response's part in the loss is weighed by the sequence-level ratio of the policy before the
        batch's first step to those that drew its tokens, truncated here (`losses.gspo.importance_weights`); usually 2.
        0: not weighed.
      max_prompt_tokens: longer prompts are left out.
      max_new_tokens: the longest response, its stop token included.
      clip_low, clip_high: the sequence's ratio is clipped to 1 - low and 1 + high. The GSPO paper has 3e-4 and 4e-4.
      zero_variance: what becomes of a group whose rewards are all equal: 'keep' (advantage 0, as released), 'drop' (it
        takes no rows, and no part in the loss's denominator) or 'resample' (other prompts take its place).
      max_resamples: how often other prompts are drawn for a rollout batch before such groups stay.
      mask_overlong: a response that was cut is left out of the loss, numerator and denominator.
      routes: what becomes of the experts that the sampler took in a mixture: 'ignore' them, 'note' them (the metric
        router_agreement), or 'replay' them in training too, with the weights that the router gives them now.
      kl: the coefficient of the KL to the reference; 0 for none.
      reward: the name of a reward, or 'package.module:function' (`grading.rewards`). A response that it fails to grade
        is left out of its group: of mean and deviation, and of the loss.
      grader_seconds: the time limit of an answer.
      grader_workers: the number of processes that grade; 0 grades in this process, without a time limit.
      accuracies: a file of known accuracies of prompts (`launch.make_pairs` writes it); empty keeps all prompts.
      lowest_accuracy, highest_accuracy: prompts with a known accuracy outside of these are left out.
    """

    prompts: Number = 512
    group: Number = 16
    mini_batch: Number = 32
    sample_prompts: Number = 64
    ahead: Annotated[int, Meta(ge=0, le=10**7)] = 0
    staleness: Annotated[int, Meta(ge=1, le=1000)] = 1
    importance_cap: NotNegative = 0.0
    max_prompt_tokens: TokenCount = 8192
    max_new_tokens: TokenCount = 32768
    clip_low: Fraction = 0.2
    clip_high: NotNegative = 0.2
    zero_variance: Literal["keep", "drop", "resample"] = "keep"
    max_resamples: Annotated[int, Meta(ge=0, le=10**6)] = 3
    mask_overlong: bool = False
    routes: Literal["ignore", "note", "replay"] = "ignore"
    kl: NotNegative = 0.0
    reward: str = "mmpr"
    grader_seconds: Annotated[float, Meta(gt=0, le=10**5)] = 10.0
    grader_workers: Annotated[int, Meta(ge=0, le=1024)] = 4
    accuracies: str = ""
    lowest_accuracy: Fraction = 0.2
    highest_accuracy: Fraction = 0.8


def check(settings: GspoConfig, model: InternVLConfig, data: DataConfig, run: RunConfig) -> None:
    """Raises InputError for settings that no run can have."""
    if settings.lowest_accuracy > settings.highest_accuracy:
        raise InputError(
            f"stage.lowest_accuracy is {settings.lowest_accuracy}, above stage.highest_accuracy "
            f"{settings.highest_accuracy}; no prompt with a known accuracy would be left"
        )
    if settings.prompts % settings.mini_batch:
        raise InputError(
            f"stage.mini_batch {settings.mini_batch} does not divide stage.prompts {settings.prompts}: a rollout batch "
            "is used up by whole steps"
        )
    if settings.ahead > settings.prompts:
        raise InputError(
            f"stage.ahead is {settings.ahead}, above stage.prompts {settings.prompts}: a rollout batch must have room "
            "for all prompts that were left by the one before"
        )
    if 0 < settings.importance_cap < 1:
        raise InputError(f"stage.importance_cap is {settings.importance_cap}; it must be 0 (none), or 1 or more")
    if settings.routes != "ignore" and model.text.moe is None:
        raise InputError(f"stage.routes is {settings.routes!r} but the model has no experts; set it to 'ignore'")
    longest = settings.max_prompt_tokens + settings.max_new_tokens
    if longest > data.token_budget:
        raise InputError(
            f"stage.max_prompt_tokens + max_new_tokens is {longest}, more than data.token_budget {data.token_budget}; "
            "a row must hold a prompt and its longest response"
        )
    # Rows are filled one after the other, so each but the last holds as many of the longest responses as fit. How far
    # tiles limit that is known with the prompts (`Rollouts`).
    needed = -(-settings.mini_batch * settings.group // (data.token_budget // longest))
    if run.rows < needed:
        raise InputError(
            f"run.rows is {run.rows}, but {settings.mini_batch} x {settings.group} responses of the longest kind "
            f"fill {needed} rows of {data.token_budget} tokens; raise run.rows (rows that stay empty cost next to "
            "nothing where run.micro_batches keeps them apart), or lower the mini-batch or the limits of tokens"
        )
