"""The estimate of programs that can be reckoned by hand."""

import dataclasses
import math

import pytest

from internvl_jax.models import scopes
from internvl_jax.planning import hlo
from internvl_jax.planning.assumed import Assumed
from internvl_jax.planning.chips import CHIPS
from internvl_jax.planning.estimate import STREAM, kernel_flops
from internvl_jax.planning.estimate import estimate as estimate_under

CHIP = dataclasses.replace(CHIPS["v5p"], clock=1e3, hbm_bandwidth=1e4, link_bandwidth=1e3)
ASSUMED = Assumed(kernel=0.5, latency=3e-6)
KERNEL, LATENCY = ASSUMED.kernel, ASSUMED.latency
# A copy whose cycles are less than its bytes, one whose bytes are less, and two transfers, one beside the work.
PROGRAM = """ENTRY %main (x.0: f32[250]) -> f32[250] {
  %x.0 = f32[250] parameter(0)
  %fast = f32[250] copy(%x.0), b={"estimated_cycles":"100"}
  %slow = f32[250] copy(%fast), b={"estimated_cycles":"9000"}
  %start = f32[250] all-reduce-start(%x.0), replica_groups=[1,2]<=[2]
  ROOT %ar = f32[250] all-reduce(%slow), replica_groups=[1,2]<=[2]
}
"""


def estimate(program, chip, devices):
    return estimate_under(program, chip, devices, ASSUMED)


def test_by_hand():
    found = estimate(hlo.HloProgram(PROGRAM), CHIP, 2)
    assert found.compiled_s == pytest.approx(0.1 + 2000 / (1e4 * STREAM))
    assert found.cycles_s == pytest.approx(9.1)
    # 1,000 bytes each; what started early is hidden as long as there is work.
    assert found.transfers_s == pytest.approx(2 * (1 + LATENCY) - found.compiled_s)
    assert (found.sent, found.transfers, found.kernels_s) == ({"all-reduce": 2000}, 2, 0)
    assert found.seconds == pytest.approx(found.compiled_s + found.transfers_s)


def test_a_transfer_of_few_bytes_takes_its_latency():
    small, alone = PROGRAM.replace("f32[250]", "f32[1]"), PROGRAM.replace("[1,2]<=[2]", "[2,1]<=[2]")
    assert estimate(hlo.HloProgram(small), CHIP, 2).transfers_s > LATENCY
    assert estimate(hlo.HloProgram(alone), CHIP, 2).transfers == 0  # nobody to send to


def kernel(name: str, result: str, width: int) -> hlo.Instruction:
    rest = (
        '%a), custom_call_target="tpu_custom_call", operand_layout_constraints='
        f"{{s8[1,4]{{1,0}}, bf16[3,2,64,{width}]}}"
        f', metadata={{op_name="{scopes.keys_scope(40)}/x"}}'
    )
    return hlo.Instruction(name, result, "custom-call", rest, False)


@pytest.mark.parametrize(
    ("name", "result", "factor"),
    [
        ("splash_mha_fwd_segmented_residuals.1", "(bf16[3,2,64,128], f32[3,2,64])", 4),
        ("splash_mha_dkv_segmented_no_residuals.2", "(bf16[3,5,2,64,128], bf16[3,2,64,128])", 10),  # with parts of dq
        ("splash_mha_dkv_segmented_no_residuals.3", "(bf16[3,2,64,128], bf16[3,2,64,128])", 8),
        ("splash_mha_dq_segmented.4", "bf16[3,2,64,128]", 6),
    ],
)
def test_kernels(name, result, factor):
    assert kernel_flops(kernel(name, result, 128), ASSUMED) == (factor * 3 * 2 * 64 * 128 * 40, 128)
    assert kernel_flops(dataclasses.replace(kernel(name, result, 128), opcode="fusion"), ASSUMED) == (0, 1)


def test_kernels_leave_out_blocks_of_other_samples():
    """Rows packed of samples of 16 tokens, 64 to a row: of blocks of 16 every query meets one instead of 2.5."""
    walk = scopes.Walk(tokens=64, q_block=16, k_block=16, back_q_block=16, back_k_block=32, window=0)
    whole = kernel("splash_mha_fwd_segmented.1", "bf16[3,2,64,128]", 128)
    skipping = dataclasses.replace(whole, rest=whole.rest.replace(scopes.keys_scope(40), scopes.keys_scope(40, walk)))
    packed = Assumed(median=16)
    assert kernel_flops(skipping, ASSUMED) == kernel_flops(whole, packed) == kernel_flops(whole, ASSUMED)
    assert kernel_flops(skipping, packed)[0] == pytest.approx(kernel_flops(whole, packed)[0] * 4 / 10)
    # Backward, blocks of two samples: four of the six that causal attention meets.
    back = dataclasses.replace(skipping, name="splash_mha_dkv.1")
    whole = dataclasses.replace(whole, name="splash_mha_dkv.1")
    assert kernel_flops(back, packed)[0] == pytest.approx(kernel_flops(whole, packed)[0] * 4 / 6)


@pytest.mark.parametrize(
    ("call", "result", "operands"),
    [
        ("jvp(jit(gmm))", "bf16[512,96]", "s32[], bf16[512,64], bf16[5,96,64]"),
        ("transpose(jvp(jit(tgmm)))", "bf16[5,96,64]", "s32[], bf16[96,512], bf16[512,64]"),
    ],
)
def test_grouped_products(call, result, operands):
    rest = f"custom_call_target=tpu_custom_call, operand_layout_constraints={{{operands}}}, op_name={call}/pallas_call"
    found, _ = kernel_flops(hlo.Instruction("gmm", result, "custom-call", rest, False), ASSUMED)
    assert found == 2 * 512 * 64 * 96
    # Rows of no group are left out.
    within = rest.replace("op_name=", f"op_name={scopes.chunks_scope(1, 2, 0.75)}/")
    assert kernel_flops(hlo.Instruction("gmm", result, "custom-call", within, False), ASSUMED)[0] == 0.75 * found


@pytest.mark.parametrize("weights", ["bf16[5,96,64]", "bf16[20,96,64]"])  # of one layer, or of four
def test_a_kernel_of_few_rows_takes_as_long_as_reading_its_weights(weights):
    operands = f"s32[], s32[6]{{0}}, s32[5]{{0}}, s32[1]{{0}}, bf16[8,64]{{1,0}}, {weights}{{2,1,0}}"
    rest = f'%w.0), custom_call_target="tpu_custom_call", operand_layout_constraints={{{operands}}}'
    one = hlo.Instruction("gmm", "bf16[8,96]", "custom-call", rest + ", op_name=jit(gmm)/pallas_call", False)
    program = hlo.HloProgram(PROGRAM)
    program.computations["main"] = [hlo.Instruction("w.0", weights, "parameter", "0)", False), one]
    assert estimate(program, CHIP, 2).kernels_s == pytest.approx(2 * (5 * 96 * 64 + 8 * 96) / (1e4 * STREAM))


def test_attention_over_pages_reads_those_of_one_layer():
    """Three rows of five pages, of four layers' 60."""
    pool = "bf16[60,16,4,128]"
    operands = f"s32[3]{{0}}, s32[3,5]{{1,0}}, s32[4]{{0}}, s32[1]{{0}}, bf16[3,8,128]{{2,1,0}}, {pool}{{3,2,1,0}}"
    rest = f'%w.0), custom_call_target="tpu_custom_call", operand_layout_constraints={{{operands}}}'
    rest += f', metadata={{op_name="{scopes.keys_scope(80)}/x"}}'
    one = hlo.Instruction("ragged_paged_attention_kernel.1", "bf16[3,8,128]", "custom-call", rest, False)
    assert kernel_flops(one, ASSUMED) == (4 * 3 * 8 * 128 * 80, 128)
    program = hlo.HloProgram(PROGRAM)
    program.computations["main"] = [hlo.Instruction("w.0", pool, "parameter", "0)", False), one]
    wanted = 2 * (15 * 16 * 4 * 128 + 3 * 8 * 128) / (1e4 * STREAM)
    assert estimate(program, CHIP, 2).kernels_s == pytest.approx(wanted)


def test_a_narrow_head_takes_longer():
    program = hlo.HloProgram(PROGRAM)
    program.computations["main"] = [kernel("splash_mha_fwd.1", "bf16[3,2,64,64]", 64)]
    found = estimate(program, dataclasses.replace(CHIP, hbm_bandwidth=math.inf), 2)
    assert found.kernels_s == pytest.approx(4 * 3 * 2 * 64 * 64 * 40 / (CHIP.peak * KERNEL / 2))
