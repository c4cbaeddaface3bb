"""Step time of a compiled program: a roofline, loop by loop.

1. The TPU compiler notes how many cycles it expects every fused operation to take. Products take that long. It is
   pessimistic about operations that only move memory (a copy at a third of the bandwidth, a sum at a tenth): these take
   the time of their bytes at `STREAM` of the bandwidth where that is less. It notes none for gathering and scattering
   rows: these take that time as well. Each loop counts as often as it runs.
2. Kernels (attention, grouped products of experts) are opaque to it. Their operations are known from their shapes; they
   are taken to run at `KERNEL` of the matrix units' peak, less where a head is narrower than these, and no faster than
   their bytes at `STREAM` of the bandwidth. Experts are taken to have equal shares of the tokens.
3. A transfer takes the bytes that a device sends over the bandwidth of one dimension of its torus. One that starts and
   ends apart hides behind the other work of its loop, the rest is added.

This is an estimate: nothing has run. Known to lean: the kernels' share is an assumption, and rings over several
dimensions of the torus may be faster than one.
"""

import collections
import dataclasses
import math
import re

from internvl_jax.models import scopes
from internvl_jax.planning.chips import Chip
from internvl_jax.planning.hlo import HloProgram, Instruction, collectives, cycles

KERNEL = 0.6  # share of the peak that kernels are taken to reach where a head fills the matrix unit
STREAM = 0.8  # share of the memory's bandwidth that copies and sums are taken to reach
_GROUPED = re.compile(r"jit\(t?gmm\)+/pallas_call")
_FLOATS = re.compile(r"(?:bf16|f32)\[([\d,]+)\]")
# Operations a query, key and head width: of the forward kernel, and of the backward ones, two or one.
_FORWARD, _BACKWARD_KV, _BACKWARD_Q, _BACKWARD = 4, 8, 6, 10


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Of one device and one call.

    Attributes:
      flops: operations of products and kernels, recomputed ones too.
      compiled_s, kernels_s, transfers_s: as above; transfers_s is what nothing hides.
      cycles_s: compiled_s if every operation took the compiler's cycles.
      sent: bytes that a device sends, by kind of collective.
    """

    flops: float
    compiled_s: float
    kernels_s: float
    transfers_s: float
    cycles_s: float
    sent: dict[str, float]

    @property
    def seconds(self) -> float:
        return self.compiled_s + self.kernels_s + self.transfers_s


def estimate(program: HloProgram, chip: Chip, devices: int) -> Estimate:
    """The estimate for a program compiled for one of `devices` chips."""
    flops = compiled = counted = kernels = transfers = 0.0
    sent: collections.Counter[str] = collections.Counter()
    for body, times in program.bodies():
        names = {one.name: one for one in body}
        work = sum(_seconds(program, one, names, chip) for one in body)
        inside, inside_s = 0.0, 0.0
        for one in body:
            operations, width = kernel_flops(one)
            inside += operations
            if operations:
                moved_s = program.moved_bytes(one, names) / (chip.hbm_bandwidth * STREAM)
                inside_s += max(moved_s, operations / (chip.peak * KERNEL * min(1.0, width / chip.matrix)))
        shown = hidden = 0.0
        for transfer in collectives(body, devices):
            sent[transfer.kind] += times * transfer.bytes
            seconds = transfer.bytes / chip.link_bandwidth
            hidden, shown = (hidden + seconds, shown) if transfer.hidden else (hidden, shown + seconds)
        flops += times * (program.product_flops(body) + inside)
        compiled += times * work
        counted += times * sum(cycles(one) / chip.clock or _seconds(program, one, names, chip) for one in body)
        kernels += times * inside_s
        transfers += times * (shown + max(0.0, hidden - work - inside_s))
    return Estimate(flops, compiled, kernels, transfers, counted, dict(sent))


def _seconds(program: HloProgram, one: Instruction, names: dict[str, Instruction], chip: Chip) -> float:
    counted = cycles(one) / chip.clock
    if not counted:
        return program.row_bytes(one, names) / (chip.hbm_bandwidth * STREAM)
    if program.product_flops([one]):
        return counted
    return min(counted, program.moved_bytes(one, names) / (chip.hbm_bandwidth * STREAM))


def kernel_flops(one: Instruction) -> tuple[float, int]:
    """Operations of a kernel and the width of its products (attention: of a head); (0, 1) for anything else."""
    keys, grouped = scopes.read_keys(one.rest), _GROUPED.search(one.rest)
    if one.opcode != "custom-call" or "tpu_custom_call" not in one.rest or not (keys or grouped):
        return 0.0, 1
    operands = one.rest.split("operand_layout_constraints=", 1)[1]
    # Of queries [B, N, T, H] or [N, T, H]; of rows, in whichever order.
    shape = [int(size) for size in _FLOATS.search(operands).group(1).split(",")]
    if grouped:  # [rows, in] to [rows, out], or [rows, out] to [groups, out, in]
        width = int(_FLOATS.search(one.shape).group(1).split(",")[-1])
        return 2.0 * math.prod(shape) * width, width
    elements = math.prod(shape)
    if "splash_mha_fwd" in one.name:
        factor = _FORWARD
    elif "splash_mha_dq" in one.name:
        factor = _BACKWARD_Q
    else:  # with dq's parts as a further result where it is fused
        kind = _FLOATS.search(operands).group(0).split("[")[0]
        parts = [part for part in re.findall(rf"{kind}\[([\d,]+)\]", one.shape) if len(part.split(",")) > len(shape)]
        factor = _BACKWARD if parts else _BACKWARD_KV
    return float(factor * elements * keys), shape[-1]
