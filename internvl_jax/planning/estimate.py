"""Step time of a compiled program: a roofline, loop by loop.

1. The TPU compiler notes how many cycles it expects a fused operation to take. Products are taken to need these. About
   operations that only move memory it is pessimistic (a copy at a third of the bandwidth, a sum at a tenth): they are
   taken to need the time of their bytes at `STREAM` of the bandwidth, if that is less. For gathered and scattered rows
   it notes no cycles: they need the time of their bytes. Every loop counts as often as it runs.
2. Kernels (attention, grouped products of experts) are opaque to the compiler. How many operations they are follows
   from their shapes. They are taken to run at a share of the matrix units' peak, less where a head is narrower than
   these, and to need at least the time of their bytes at `STREAM` of the bandwidth (of experts' weights, those of one
   layer; of pages of keys and values, those of one layer of all rows). Experts are taken to have equal shares of the
   tokens, and rows that have pages to be full.
3. A transfer needs the time of the bytes that a device sends, at the bandwidth of one dimension of its torus, and
   a latency besides, however few they are. Transfers that start and end apart hide behind the other work of their loop,
   and only what is longer than that is added.

This is an estimate: nothing has run. It may lean either way in the kernels' share of the peak and in the latency, which
are assumptions (`assumed.Assumed`), and towards too long in transfers, as rings over several dimensions of the torus
may be faster. `assumed.NOT_MODELLED` says what is left out.
"""

import collections
import dataclasses
import math
import re

from internvl_jax.models import scopes
from internvl_jax.planning.assumed import Assumed
from internvl_jax.planning.chips import Chip
from internvl_jax.planning.hlo import HloProgram, Instruction, collectives, cycles, num_bytes

STREAM = 0.8  # share of the memory's bandwidth that copies and sums are taken to reach
_PAGED = "ragged_paged_attention"  # in the name of the kernel
_GROUPED = re.compile(r"jit\(t?gmm\)+/pallas_call")
_FLOATS = re.compile(r"(?:bf16|f32)\[([\d,]+)\]")
# Of a grouped product: where the rows of its groups begin and end, one more than groups; and weights, of more groups
# where a layer's stand among those of others.
_OFFSETS, _WEIGHTS = re.compile(r"s32\[(\d+)\]"), re.compile(r"(?:bf16|f32)\[(\d+),\d+,\d+\]")
# Of attention over pages: which ones rows have, `[rows, pages of a row]`, and those of all layers.
_TABLE, _POOL = re.compile(r"s32\[(\d+),(\d+)\]"), re.compile(r"(?:bf16|f32)\[(\d+),\d+,\d+,\d+\]")
# Operations for every query, key and element of a head: of the forward kernel, of the two backward kernels (for keys
# and values, for queries), and of the one backward kernel that does the work of both.
_FORWARD, _BACKWARD_KV, _BACKWARD_Q, _BACKWARD = 4, 8, 6, 10


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What one call needs on one device.

    Attributes:
      flops: operations of products and kernels, also of those that are computed again.
      compiled_s: seconds of the operations that the compiler made (1 above).
      kernels_s: seconds of kernels (2).
      transfers_s: seconds of transfers that nothing hides (3).
      transfers: how many transfers there are, hidden ones too.
      cycles_s: what compiled_s would be if every operation took the compiler's cycles.
      sent: how many bytes a device sends, by kind of collective.
    """

    flops: float
    compiled_s: float
    kernels_s: float
    transfers_s: float
    transfers: float
    cycles_s: float
    sent: dict[str, float]

    @property
    def seconds(self) -> float:
        return self.compiled_s + self.kernels_s + self.transfers_s


def estimate(program: HloProgram, chip: Chip, devices: int, assumed: Assumed) -> Estimate:
    """The estimate for a program compiled for one of `devices` chips, under what is assumed."""
    flops = compiled = counted = kernels = transfers_s = transfers = 0.0
    sent: dict[str, float] = collections.defaultdict(float)
    for body, times in program.bodies():
        names = {one.name: one for one in body}
        work = sum(_seconds(program, one, names, chip) for one in body)
        inside, inside_s = 0.0, 0.0
        for one in body:
            operations, width = kernel_flops(one, assumed)
            inside += operations
            if operations:
                moved_s = (program.moved_bytes(one, names) - _unread(one)) / (chip.hbm_bandwidth * STREAM)
                inside_s += max(moved_s, operations / (chip.peak * assumed.kernel * min(1.0, width / chip.matrix)))
        shown = hidden = 0.0
        for transfer in collectives(body, devices):
            if transfer.group == 1:
                continue
            sent[transfer.kind] += times * transfer.bytes
            transfers += times
            seconds = transfer.bytes / chip.link_bandwidth + assumed.latency
            hidden, shown = (hidden + seconds, shown) if transfer.hidden else (hidden, shown + seconds)
        flops += times * (program.product_flops(body) + inside)
        compiled += times * work
        counted += times * sum(cycles(one) / chip.clock or _seconds(program, one, names, chip) for one in body)
        kernels += times * inside_s
        transfers_s += times * (shown + max(0.0, hidden - work - inside_s))
    return Estimate(flops, compiled, kernels, transfers_s, transfers, counted, dict(sent))


def _seconds(program: HloProgram, one: Instruction, names: dict[str, Instruction], chip: Chip) -> float:
    counted = cycles(one) / chip.clock
    if not counted:
        return program.row_bytes(one, names) / (chip.hbm_bandwidth * STREAM)
    if program.product_flops([one]):
        return counted
    return min(counted, program.moved_bytes(one, names) / (chip.hbm_bandwidth * STREAM))


def kernel_flops(one: Instruction, assumed: Assumed) -> tuple[float, int]:
    """How many operations a kernel is, and the width of its products (of a head, in attention); (0, 1) for what is no
    kernel. Attention that leaves out blocks meets those of rows packed as assumed.
    """
    keys: float | None = scopes.read_keys(one.rest)
    grouped = _GROUPED.search(one.rest)
    if one.opcode != "custom-call" or "tpu_custom_call" not in one.rest or not (keys or grouped):
        return 0.0, 1
    operands = _operands(one)
    # Of queries [B, N, T, H] or [N, T, H]; of rows, in whichever order.
    shape = [int(size) for size in _FLOATS.search(operands).group(1).split(",")]
    if grouped:  # [rows, in] to [rows, out], or [rows, out] to [groups, out, in]
        width = int(_FLOATS.search(one.shape).group(1).split(",")[-1])
        return 2.0 * math.prod(shape) * width * scopes.read_full(one.rest), width  # it leaves out rows of no group
    elements, walk, back = math.prod(shape), scopes.read_walk(one.rest), "splash_mha_dkv" in one.name
    if walk is not None:
        sizes = (walk.back_q_block, walk.back_k_block) if back else (walk.q_block, walk.k_block)
        keys *= assumed.met(walk.tokens, *sizes, walk.window or None)
    if "splash_mha_fwd" in one.name or _PAGED in one.name:
        factor = _FORWARD
    elif "splash_mha_dq" in one.name:
        factor = _BACKWARD_Q
    else:  # with dq's parts as a further result where it is fused
        kind = _FLOATS.search(operands).group(0).split("[")[0]
        parts = [part for part in re.findall(rf"{kind}\[([\d,]+)\]", one.shape) if len(part.split(",")) > len(shape)]
        factor = _BACKWARD if parts else _BACKWARD_KV
    return float(factor * elements * keys), shape[-1]


def _unread(one: Instruction) -> float:
    """Bytes that a kernel is given and leaves alone: weights that a grouped product has no groups for, pages of other
    layers.
    """
    if _PAGED in one.name:
        table, pool = _TABLE.search(_operands(one)), _POOL.search(_operands(one))
        return num_bytes(pool.group(0)) * (1 - int(table.group(1)) * int(table.group(2)) / int(pool.group(1)))
    offsets, weights = _OFFSETS.search(_operands(one)), _WEIGHTS.search(_operands(one))
    if not (_GROUPED.search(one.rest) and offsets and weights):
        return 0.0
    return num_bytes(weights.group(0)) * (1 - (int(offsets.group(1)) - 1) / int(weights.group(1)))


def _operands(one: Instruction) -> str:
    """A kernel's text from the shapes of its operands on."""
    return one.rest.split("operand_layout_constraints=", 1)[1]
