"""The optimizer: groups by pattern, AdamW, warm-up and cosine."""

import math
import re
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from internvl_jax.errors import InputError
from internvl_jax.sharding import Params
from internvl_jax.training.config import Group, OptimConfig
from internvl_jax.validation import check_fields, shown


def assign(paths: Iterable[str], groups: tuple[Group, ...]) -> dict[str, Group]:
    """The group of every parameter.

    Raises:
      InputError: a pattern that is no regular expression, a parameter that no group covers, a group that covers none (a
        typo would train or freeze the wrong part without a word), or nothing that is left to train.
    """
    assigned, used = {}, set()
    patterns = [_compile(group.pattern) for group in groups]
    for path in paths:
        for index, group in enumerate(groups):
            if patterns[index].search(path):
                assigned[path] = group
                used.add(index)
                break
        else:
            raise InputError(f"optim.groups: no pattern covers {path}; add one (frozen=True to leave it as it is)")
    if idle := [groups[index].pattern for index in range(len(groups)) if index not in used]:
        raise InputError(f"optim.groups: the patterns {idle} cover no parameter; correct or remove them")
    if all(group.frozen for group in assigned.values()):
        raise InputError("optim.groups: every parameter is frozen, nothing is left to train; thaw some")
    return assigned


def check_idle(assigned: dict[str, Group], pattern: str, objective: str) -> None:
    """Raises InputError where a parameter that the objective gives no gradient is not frozen: it would only decay."""
    idle = [path for path, group in assigned.items() if re.search(pattern, path) and not group.frozen]
    if idle:
        raise InputError(
            f"optim.groups: objective {objective!r} gives {idle[0]} no gradient ({len(idle)} such parameters); freeze "
            f"them with a first group of pattern {pattern!r} and frozen=True"
        )


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(f"optim.groups: {shown(pattern)} is no regular expression ({error}); correct it") from None


def schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """Linear from 0 over the warm-up, then half a cosine to 0 at `steps` (transformers' cosine schedule)."""
    warmup = math.ceil(config.warmup_ratio * steps)

    def rate(step: Any) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        progress = jnp.clip((step - warmup) / max(1, steps - warmup), 0, 1)
        after = 1.0 if config.schedule == "constant" else 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return config.learning_rate * jnp.where(step < warmup, step / max(1, warmup), after)

    return rate


def optimizer(config: OptimConfig, steps: int, assigned: dict[str, Group]) -> optax.GradientTransformationExtraArgs:
    """AdamW over the trainable parameters: clipping by their joint norm, then each group's rate and decay.

    `update` takes that norm as `norm`, which a step has already worked out.

    Raises:
      InputError: a value that no optimizer can have.
    """
    check_fields(config, "optim")  # for those too who make one without a run
    trainable = {path: group for path, group in assigned.items() if not group.frozen}
    decay = {path: group.weight_decay for path, group in trainable.items()}
    rate = {path: group.learning_rate for path, group in trainable.items()}

    def clipped(
        updates: Params, state: optax.EmptyState, params: Params, *, norm: jax.Array
    ) -> tuple[Params, optax.EmptyState]:
        factor = config.clip_norm / jnp.maximum(norm, config.clip_norm)
        return {path: u * factor for path, u in updates.items()}, state

    def decayed(updates: Params, state: optax.EmptyState, params: Params) -> tuple[Params, optax.EmptyState]:
        return {path: u + config.weight_decay * decay[path] * params[path] for path, u in updates.items()}, state

    def scaled(updates: Params, state: optax.EmptyState, params: Params) -> tuple[Params, optax.EmptyState]:
        return {path: u * rate[path] for path, u in updates.items()}, state

    stateless = lambda params: optax.EmptyState()
    return optax.chain(
        optax.GradientTransformationExtraArgs(stateless, clipped),
        optax.scale_by_adam(config.beta1, config.beta2, config.eps),
        optax.GradientTransformation(stateless, decayed),
        optax.GradientTransformation(stateless, scaled),
        optax.scale_by_learning_rate(schedule(config, steps)),
    )
