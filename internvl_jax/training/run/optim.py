"""The optimizer: groups by pattern, AdamW, warm-up and cosine."""

import dataclasses
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


@dataclasses.dataclass(frozen=True)
class AdamW:
    """AdamW over the trainable parameters: clipping by their joint norm, then each group's rate and decay.

    The formulas and the state are those of optax's chain of clipping, Adam, decay, factors and schedule; checkpoints
    hold that state. What differs is what a step needs besides: the chain's gradients lie there clipped and as they
    came, and its old moments beside the new ones, since the parameters are updated from what the state then only
    sometimes takes. Here every array has one successor, which the compiler puts in its place.

    Attributes:
      config: its constants.
      rate: the learning rate by step.
      groups: by path, of the trainable parameters.
    """

    config: OptimConfig
    rate: optax.Schedule
    groups: dict[str, Group]

    def init(self, params: Params) -> tuple:
        adam = optax.scale_by_adam().init(params)
        empty = optax.EmptyState()
        return empty, adam, empty, empty, optax.ScaleByScheduleState(jnp.zeros([], jnp.int32))

    def update(self, grads: Params, norm: jax.Array, state: tuple, params: Params) -> tuple[Params, tuple]:
        """Parameters and state after a step; where `norm`, that of the gradients, is not finite, as they were."""
        config, (empty, adam, *_, by_step) = self.config, state
        finite = jnp.isfinite(norm)
        kept = lambda new, old: jax.tree.map(lambda new, old: jax.lax.select(finite, new, old), new, old)
        # Divided and multiplied by 1 a small gradient stays as it is, to the bit.
        divisor, factor = (jnp.where(norm < config.clip_norm, 1.0, value) for value in (norm, config.clip_norm))
        grads = {path: grad / divisor * factor for path, grad in grads.items()}
        count = optax.safe_increment(adam.count)
        mu = kept(optax.tree.update_moment(grads, adam.mu, config.beta1, 1), adam.mu)
        nu = kept(optax.tree.update_moment_per_elem_norm(grads, adam.nu, config.beta2, 2), adam.nu)
        rate = -self.rate(by_step.count)

        def updated(path: str, value: jax.Array, mu: jax.Array, nu: jax.Array) -> jax.Array:
            group = self.groups[path]
            update = mu / (jnp.sqrt(nu) + config.eps) + config.weight_decay * group.weight_decay * value
            return value + rate.astype(value.dtype) * (update * group.learning_rate)

        first, second = (
            optax.tree.bias_correction(moment, decay, count)
            for moment, decay in ((mu, config.beta1), (nu, config.beta2))
        )
        params = kept({path: updated(path, params[path], first[path], second[path]) for path in params}, params)
        adam = optax.ScaleByAdamState(kept(count, adam.count), mu, nu)
        steps = optax.ScaleByScheduleState(kept(optax.safe_increment(by_step.count), by_step.count))
        return params, (empty, adam, empty, empty, steps)


def optimizer(config: OptimConfig, steps: int, assigned: dict[str, Group]) -> AdamW:
    """The optimizer of a run.

    Raises:
      InputError: a value that no optimizer can have.
    """
    check_fields(config, "optim")  # for those too who make one without a run
    trainable = {path: group for path, group in assigned.items() if not group.frozen}
    return AdamW(config, schedule(config, steps), trainable)
