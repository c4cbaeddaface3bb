"""ViCO: answers that don't change where tiles are compressed, then a router that knows which tiles can be.

Both stages compare a policy with a frozen reference that sees every tile at full resolution: KL(reference || policy)
over the whole vocabulary, at the tokens of responses.

Source: InternVL3.5 paper (arXiv 2508.18265) section 2.3. Its training code is not published.
"""

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from msgspec import Meta

from internvl_jax.data import MIN_TEXT, Probe, Probes, Rate, Rates, Views
from internvl_jax.errors import InputError
from internvl_jax.losses import LossSum, segment_sums, vico
from internvl_jax.models import UNUSED_PARTS, InternVL, InternVLConfig, Slots, over_logits
from internvl_jax.training.config import DataConfig, RunConfig, StageConfig
from internvl_jax.training.stages.balance import Balance, NoBalance
from internvl_jax.training.stages.base import Stage, Start
from internvl_jax.training.stages.packed_rows import PackedRows
from internvl_jax.training.stages.terms import Carry, Objective, Sums
from internvl_jax.validation import Positive


@dataclasses.dataclass
class ConsistencyConfig(StageConfig):
    """ViCO's first stage: answers that don't change where pictures are compressed. `reference` is the frozen teacher.

    How the loss averages over samples is `data.weighting`; the paper's is 'sample', the mean over the tokens of a
    response, then over responses.

    Attributes:
      rates: what is compressed or not by itself: every 'tile', as a reply in OpenGVLab/InternVL#1155 says, or every
        'picture', as the paper has it. A router decides tile by tile: models that had only seen pictures of one kind
        lost most of their accuracy on pictures of both (WORKSPACE_NOTES.md has the experiment).
    """

    rates: Rate = "tile"


@dataclasses.dataclass
class RouterConfig(StageConfig):
    """ViCO's second stage: the router learns which tiles can do with fewer tokens. The paper gives no values.

    `reference` has to be given: the frozen teacher that the first stage had.

    Attributes:
      probe: 'one' measures a tile by compressing it alone; 'all' compresses all probed tiles of a sample together and
        gives them one ratio.
      probes: how many tiles of a sample are probed at a visit, drawn anew each time; 0 probes every one.
      window: the number of ratios, the last ones of the run, that the threshold is taken from.
      share: the part of the window that lies below the threshold, and so is to be compressed; 0.5 balances the targets.
      epsilon: the divergence, in nats a token, below which differences don't matter.
    """

    probe: Probe = "one"
    probes: Annotated[int, Meta(ge=0, le=10**6)] = 4
    window: Annotated[int, Meta(ge=1, le=2**28)] = 65536
    share: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    epsilon: Positive = 1e-3


def check_flash(objective: str, model: InternVLConfig) -> None:
    """Raises InputError for a model that is no Flash model."""
    if model.flash is None:
        raise InputError(f"objective {objective!r} trains a Flash model; give a model config with `flash`")


def check_consistency(settings: ConsistencyConfig, model: InternVLConfig, data: DataConfig, run: RunConfig) -> None:
    """Raises InputError for settings that no run can have."""
    check_flash("consistency", model)


def check_router(settings: RouterConfig, model: InternVLConfig, data: DataConfig, run: RunConfig) -> None:
    """Raises InputError for settings that no run can have."""
    check_flash("router", model)
    if not settings.reference:
        raise InputError(
            "objective 'router' measures against the model that the consistency stage began with; give it with "
            "--config.stage.reference=DIR"
        )
    if data.weighting != "sample":
        raise InputError(
            f"data.weighting is {data.weighting!r}; the router's losses are means over a response: 'sample'"
        )
    if run.balance:
        raise InputError(f"run.balance is {run.balance} but objective 'router' trains no experts; set it to 0")


def divergence(reference: InternVL, policy: InternVL, batch: Views, hidden_BTD: jax.Array, chunk: int) -> jax.Array:
    """float32 `[B, T]`: KL(reference || policy) of the next token, at every token of the student's texts.

    Args:
      reference: the frozen model, which sees the teacher's texts.
      policy: the model that is trained; its output matrix makes logits of `hidden_BTD`.
      hidden_BTD: the policy's hidden states of the student's texts.
      chunk: how many positions' logits are held at once.
    """
    rows = batch.rows
    out = reference(rows.tokens_BT, rows.tiles_GHWC, rows.tile_mask_G, rows.segments_BT, rows.positions_BT)
    teacher_BTD = jnp.take_along_axis(out.hidden_BTD, batch.teacher_BT[:, :, None], axis=1)
    states = [(teacher_BTD, reference.lm.head_VD), (hidden_BTD, policy.lm.head_VD)]
    return over_logits(vico.forward_kl, states, [], chunk)


def _slots(batch: Views) -> Slots:
    return Slots(batch.student.slots_BJ, batch.compress_BJ)


class Consistency(Objective):
    """The policy sees every picture at a rate drawn for it; its answers are to be the reference's.

    Everything is trained but the router, which has no part in it.

    Args:
      balance: the load-balancing term of experts.
      logprob_chunk: how many positions' logits are held at once.
    """

    idle = r"^router\."

    def __init__(self, balance: Balance | NoBalance, logprob_chunk: int):
        self.coefficients = {"consistency": 1.0, **balance.coefficients}
        self.balance, self.logprob_chunk = balance, logprob_chunk

    def weights(self, batch: Views) -> dict[str, jax.Array]:
        return {"consistency": jnp.sum(batch.student.weights_BT), **self.balance.weights(batch.student)}

    def forward(self, model: InternVL, batch: Views, key: jax.Array | None, reference: InternVL | None) -> Any:
        rows, student = batch.rows, batch.student
        inputs = student.tokens_BT, rows.tiles_GHWC, rows.tile_mask_G, student.segments_BT, student.positions_BT
        out = model(*inputs, key=key, collect=self.balance.collect, slots=_slots(batch))
        return divergence(reference, model, batch, out.hidden_BTD, self.logprob_chunk), out.aux

    def terms(self, outs: Any, batch: Views, carry: Carry) -> tuple[dict[str, LossSum], Sums]:
        kl_BT, aux = outs
        rows, student = batch.rows, batch.student
        terms, sums = self.balance.terms(aux, student)
        terms["consistency"] = LossSum.of(kl_BT, student.weights_BT)
        # Where a tile before a token was compressed, the token stands further left than the teacher's.
        shown_BT = jnp.take_along_axis(rows.positions_BT, batch.teacher_BT, axis=1) == student.positions_BT
        for name, here_BT in (("full", shown_BT), ("compressed", ~shown_BT)):
            part = LossSum.of(kl_BT, jnp.where(here_BT, student.weights_BT, 0))
            sums |= {f"kl_{name}": part.total, f"weight_{name}": part.weight}
        sums |= {
            "compressed": jnp.sum(batch.compress_BJ),
            "slots": jnp.sum(student.slots_BJ >= 0),
            "tokens": jnp.sum(student.segments_BT > 0),
            "teacher_tokens": jnp.sum(rows.segments_BT > 0),
        }
        return terms, jax.lax.stop_gradient(sums)

    def metrics(self, sums: Sums, carry: Carry) -> dict[str, jax.Array]:
        """The divergence of response tokens before which nothing, and something, was compressed (0 where there are
        none); the shares of compressed tiles, and of tokens that compressing saved.
        """
        kl = {f"kl_{name}": sums[f"kl_{name}"] / jnp.maximum(sums[f"weight_{name}"], 1e-9) for name in _RATES}
        shares = {
            "compressed": sums["compressed"] / jnp.maximum(sums["slots"], 1),
            "saved": 1 - sums["tokens"] / jnp.maximum(sums["teacher_tokens"], 1),
        }
        return {**kl, **shares, **self.balance.metrics(sums)}


_RATES = ("full", "compressed")


class Route(Objective):
    """Binary cross-entropy of the router; its target is whether compressing a tile costs more than it does elsewhere.

    What compressing costs is the ratio of two divergences from the reference: of the text where the tile is compressed
    and of the text where nothing is. The ratios of the last tiles, those of this batch included, are the carry; a tile
    whose ratio lies below their percentile is to be compressed.

    Only the router is trained. The rest is run as at inference (no dropout, no drop path) and without a backward pass.
    """

    measures = True
    dropout = False
    idle = rf"^(?!router\.)|{UNUSED_PARTS}"

    def __init__(self, settings: RouterConfig, logprob_chunk: int):
        self.coefficients = {"router": 1.0}
        self.settings, self.logprob_chunk = settings, logprob_chunk

    def start(self) -> Carry:
        return vico.RatioWindow.start(self.settings.window)._asdict()

    def weights(self, batch: Views) -> dict[str, jax.Array]:
        return {"router": jnp.sum(_measured(batch)).astype(jnp.float32)}

    def forward(self, model: InternVL, batch: Views, key: jax.Array | None, reference: InternVL | None) -> Any:
        rows, student = batch.rows, batch.student
        x_GPD = model.patches(rows.tiles_GHWC)
        inputs = student.tokens_BT, rows.tile_mask_G, student.segments_BT, student.positions_BT
        out = model.read(model.branches(x_GPD), *inputs, slots=_slots(batch))
        kl_BT = divergence(reference, model, batch, out.hidden_BTD, self.logprob_chunk)
        return jax.lax.stop_gradient(self._ratios(kl_BT, batch)), model.router(x_GPD, key)

    def measure(self, outs: Any, batch: Views) -> Sums:
        """By rows, so that `advance` can put those of micro-batches into their order."""
        B = len(batch.rows.tokens_BT)
        return {"ratio_BG": outs[0].reshape(B, -1), "mask_BG": _measured(batch).reshape(B, -1)}

    def advance(self, carry: Carry, measured: Sums) -> Carry:
        # Row r of the batch is row r // M of micro-batch r % M (`step.split_rows`).
        ratio_G, mask_G = (measured[name].swapaxes(0, 1).reshape(-1) for name in ("ratio_BG", "mask_BG"))
        return vico.RatioWindow(**carry).push(ratio_G, mask_G)._asdict()

    def terms(self, outs: Any, batch: Views, carry: Carry) -> tuple[dict[str, LossSum], Sums]:
        ratio_G, route_G2 = outs
        mask_G = _measured(batch)
        keep_G = vico.router_targets(ratio_G, self._threshold(carry))
        total = lambda values_G: jnp.sum(jnp.where(mask_G, values_G, 0))
        sums = {
            "tiles": total(1.0),
            "accuracy": total((route_G2[:, 1] > route_G2[:, 0]) == (keep_G > 0)),
            "compress": total(jax.nn.softmax(route_G2)[:, 0]),
            "compress_target": total(1 - keep_G),
            "ratio": total(ratio_G),
        }
        return {"router": vico.route_cross_entropy(route_G2, keep_G, mask_G)}, jax.lax.stop_gradient(sums)

    def metrics(self, sums: Sums, carry: Carry) -> dict[str, jax.Array]:
        """Means over measured tiles: how often the router is right, its probability of "compress", the share that is
        to be compressed, the ratio; and of the window the threshold and the deciles beside it.
        """
        names = ("accuracy", "compress", "compress_target", "ratio")
        means = {name: sums[name] / jnp.maximum(sums["tiles"], 1) for name in names}
        window = vico.RatioWindow(**carry)
        deciles = {f"ratio_{percent}": window.percentile(percent / 100) for percent in (10, 90)}
        return {**means, "threshold": self._threshold(carry), **deciles}

    def _threshold(self, carry: Carry) -> jax.Array:
        return vico.RatioWindow(**carry).percentile(self.settings.share)

    def _ratios(self, kl_BT: jax.Array, batch: Views) -> jax.Array:
        """float32 `[G]`: what compressing a tile multiplies its text's divergence by; anything where not measured."""
        student = batch.student
        B, T = student.tokens_BT.shape
        weighted_BT = jnp.where(student.weights_BT > 0, kl_BT * student.weights_BT, 0)
        means_BX = segment_sums(weighted_BT, student.segments_BT, T // MIN_TEXT)
        texts_BG2 = jnp.maximum(batch.measured_G2, 0).reshape(B, -1, 2)
        means_BG2 = jnp.take_along_axis(means_BX[:, :, None], texts_BG2, axis=1)
        return vico.loss_ratio(means_BG2[..., 0], means_BG2[..., 1], self.settings.epsilon).reshape(-1)


def _measured(batch: Views) -> jax.Array:
    """bool [G]."""
    return batch.measured_G2[:, 0] >= 0


def _rated(settings: ConsistencyConfig, model: InternVLConfig) -> Rates:
    return Rates(model.tokens_per_compressed_tile, settings.rates)


def _probed(settings: RouterConfig, model: InternVLConfig) -> Probes:
    return Probes(model.tokens_per_compressed_tile, settings.probe, settings.probes)


CONSISTENCY = Stage(
    name="consistency",
    settings=ConsistencyConfig,
    check=check_consistency,
    start=Start.BASE,
    objective=lambda _, balance, logprob_chunk: Consistency(balance, logprob_chunk),
    source=lambda settings, parts: PackedRows(parts, _rated(settings, parts.program.model)),
    empty_row=lambda settings, model, sizes: _rated(settings, model).assemble([], [], sizes),
    refers=True,
)
ROUTER = Stage(
    name="router",
    settings=RouterConfig,
    check=check_router,
    start=Start.MODEL,
    objective=lambda settings, _, logprob_chunk: Route(settings, logprob_chunk),
    # The window of ratios lets go of those that came first.
    source=lambda settings, parts: PackedRows(parts, _probed(settings, parts.program.model), arranged=False),
    empty_row=lambda settings, model, sizes: _probed(settings, model).assemble([], [], sizes),
    refers=True,
)
