"""Counts of loops, transfers and products, in programs small enough to count by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from internvl_jax.models import scopes
from internvl_jax.planning import hlo
from internvl_jax.sharding import make_mesh

# As libtpu writes it: no trip count, a kernel whose metadata has lines of its own, counting from 1 in twos.
TPU = """HloModule m, is_scheduled=true

%products (p.0: bf16[8,4], p.1: bf16[6,4]) -> bf16[8,6] {
  %p.0 = bf16[8,4]{1,0:T(8,128)} parameter(0)
  %p.1 = bf16[6,4]{1,0:T(8,128)} parameter(1)
  ROOT %conv.1 = bf16[8,6]{1,0:T(8,128)} convolution(%p.0, %p.1), dim_labels=bf_oi->bf
}

%body.1 (arg.1: (s32[], bf16[8,4], bf16[6,4])) -> (s32[], bf16[8,4], bf16[6,4]) {
  %arg.1 = (s32[], bf16[8,4], bf16[6,4]) parameter(0)
  %two = s32[] constant(2)
  %i.1 = s32[] get-tuple-element(%arg.1), index=0
  %x.1 = bf16[8,4] get-tuple-element(%arg.1), index=1
  %w.1 = bf16[6,4] get-tuple-element(%arg.1), index=2
  %add.1 = s32[] add(%i.1, %two)
  %copy.1 = s32[] copy(%add.1)
  %fusion.1 = bf16[8,6]{1,0} fusion(%x.1, %w.1), kind=kOutput, calls=%products, b={"estimated_cycles":"100"}
  %kernel.1 = bf16[8,6]{1,0} custom-call(%fusion.1), custom_call_target="tpu_custom_call", frontend_attributes={k={
"x":"{\\"block\\": 1}"
}}, metadata={op_name="kernel"}
  %ag.1 = bf16[8,4] all-gather(%x.1), replica_groups=mesh['a'=4,'b'=2] {'a'}, dimensions={0}
  ROOT %tuple.1 = (s32[], bf16[8,4], bf16[6,4]) tuple(%copy.1, %ag.1, %w.1)
}

%cond.1 (arg.2: (s32[], bf16[8,4], bf16[6,4])) -> pred[] {
  %arg.2 = (s32[], bf16[8,4], bf16[6,4]) parameter(0)
  %ten = s32[] constant(10)
  %i.2 = s32[] get-tuple-element(%arg.2), index=0
  ROOT %lt.1 = pred[] compare(%i.2, %ten), direction=LT
}

ENTRY %main (x.0: bf16[8,4], w.0: bf16[6,4]) -> bf16[8,4] {
  %x.0 = bf16[8,4] parameter(0)
  %w.0 = bf16[6,4] parameter(1)
  %one = s32[] constant(1)
  %start = (s32[], bf16[8,4], bf16[6,4]) tuple(%one, %x.0, %w.0)
  %while.1 = (s32[], bf16[8,4], bf16[6,4]) while(%start), condition=%cond.1, body=%body.1
  %ar.1 = bf16[8,4] all-reduce-start(%x.0), replica_groups=[2,4]<=[8], to_apply=%products
  ROOT %out = bf16[8,4] get-tuple-element(%while.1), index=1
}
"""


def test_a_tpu_program_by_hand():
    program = hlo.HloProgram(TPU)
    (entry, once), (body, times) = program.bodies()
    assert (once, times) == (1, 5)  # 1, 3, 5, 7, 9
    assert program.product_flops(body) == pytest.approx(2 * 8 * 6 * 4)
    assert sum(map(hlo.cycles, body)) == 100
    assert "op_name" in next(one for one in body if one.opcode == "custom-call").rest
    (gather,) = hlo.collectives(body, 8)
    assert (gather.kind, gather.group, gather.bytes, gather.hidden) == ("all-gather", 4, 8 * 4 * 2 * 3 / 4, False)
    (reduce,) = hlo.collectives(entry, 8)
    assert (reduce.kind, reduce.group, reduce.bytes, reduce.hidden) == ("all-reduce", 4, 8 * 4 * 2 * 2 * 3 / 4, True)


def test_branches_of_chunks_run_where_experts_have_rows():
    text = """%skip (p.0: f32[2]) -> f32[2] {
  ROOT %p.0 = f32[2] parameter(0)
}

%add (p.1: f32[2]) -> f32[2] {
  ROOT %p.1 = f32[2] parameter(0)
}

ENTRY %main (x.0: f32[2]) -> f32[2] {
  %x.0 = f32[2] parameter(0)
  %i.0 = s32[] constant(0)
  ROOT %c = f32[2] conditional(%i.0, %x.0, %x.0), branch_computations={%skip, %add}, metadata={op_name="NAME/cond"}
}
"""
    shares = lambda name: [times for _, times in hlo.HloProgram(text.replace("NAME", name)).bodies()]
    assert shares("other") == [1, 0.5, 0.5]
    assert shares(scopes.chunks_scope(4, 32, 0.8)) == [1, 28 / 32, 4 / 32]


def test_rows_that_are_gathered_and_scattered():
    text = """%rows (p.0: f32[9,4], p.1: s32[3], p.2: f32[3,4]) -> f32[9,4] {
  %p.0 = f32[9,4] parameter(0)
  %p.1 = s32[3] parameter(1)
  %p.2 = f32[3,4] parameter(2)
  ROOT %s = f32[9,4] scatter(%p.0, %p.1, %p.2), to_apply=%add
}

ENTRY %main (x.0: f32[9,4], i.0: s32[3]) -> f32[9,4] {
  %x.0 = f32[9,4] parameter(0)
  %i.0 = s32[3] parameter(1)
  %g = f32[3,4] gather(%x.0, %i.0), slice_sizes={1,4}
  ROOT %f = f32[9,4] fusion(%x.0, %i.0, %g), kind=kCustom, calls=%rows
}
"""
    program = hlo.HloProgram(text)
    ((body, _),) = program.bodies()
    assert [program.row_bytes(one, {}) for one in body] == [0, 0, 2 * 48, 3 * 48]


def test_arguments_that_are_read():
    text = """ENTRY %main (x.0: f32[9], y.0: f32[5], z.0: f32[3]) -> (f32[9], f32[5]) {
  %x.0 = f32[9] parameter(0)
  %y.0 = f32[5] parameter(1)
  %z.0 = f32[3] parameter(2)
  %c = f32[9] copy(%x.0)
  ROOT %t = (f32[9], f32[5]) tuple(%c, %y.0)
}
"""
    assert hlo.HloProgram(text).read_bytes() == 36  # the second is handed on, nobody asks for the third
    assert hlo.HloProgram(TPU).read_bytes() == 2 * (8 * 4 + 6 * 4)


def test_a_slice_moves_its_own_bytes():
    """As those of a layer out of the stack; what is read otherwise as well moves whole."""
    text = """%cut (p.0: f32[36,4], p.1: s32[]) -> f32[1,4] {
  %p.0 = f32[36,4] parameter(0)
  %p.1 = s32[] parameter(1)
  ROOT %s = f32[1,4] dynamic-slice(%p.0, %p.1), dynamic_slice_sizes={1,4}
}

ENTRY %main (x.0: f32[36,4], i.0: s32[]) -> f32[1,4] {
  %x.0 = f32[36,4] parameter(0)
  %i.0 = s32[] parameter(1)
  %d = f32[1,4] dynamic-slice(%x.0, %i.0), dynamic_slice_sizes={1,4}
  ROOT %f = f32[1,4]{1,0:T(1,128)S(1)} fusion(%x.0, %i.0), kind=kLoop, calls=%cut
}
"""

    def moved(text):
        program = hlo.HloProgram(text)
        ((body, _),) = program.bodies()
        names = {one.name: one for one in body}
        return [program.moved_bytes(names[name], names) for name in ("d", "f")]

    assert moved(text) == [16 + 16 + 4, 16 + 4]  # what lies in the chip's fast memory is not counted
    read = text.replace("ROOT %s = f32[1,4]", "%r = f32[4] reduce(%p.0), to_apply=%add\n  ROOT %s = f32[1,4]")
    assert moved(read) == [36, 36 * 16 + 4]


def test_a_loop_without_a_constant_end_is_refused():
    with pytest.raises(ValueError, match=r"while\.1 does not count up"):
        list(hlo.HloProgram(TPU.replace("direction=LT", "direction=GT")).bodies())


def test_a_loop_that_data_may_end_runs_as_often_as_its_scope_says():
    text = TPU.replace("direction=LT", "direction=GT")
    named = text.replace("body=%body.1", f'body=%body.1, metadata={{op_name="jit(f)/{scopes.turns_scope(3)}/while"}}')
    assert [times for _, times in hlo.HloProgram(named).bodies()] == [1, 3]


def test_a_scan_inside_a_scan_is_counted_as_often_as_it_runs():
    """Layers in micro-batches: 3 x 5 sums over eight devices of 4 x 8 float32."""
    mesh = make_mesh({"fsdp": 8})

    def total(x):
        def one(x):
            return jax.lax.psum(jnp.sin(x), "fsdp") / 8

        inner = lambda x: jax.lax.scan(lambda x, _: (one(x), None), x, length=5)[0]
        return jax.lax.scan(lambda x, _: (inner(x), None), x, length=3)[0]

    mapped = jax.shard_map(total, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
    struct = jax.ShapeDtypeStruct((4, 8), jnp.float32, sharding=NamedSharding(mesh, P()))
    program = hlo.HloProgram(jax.jit(mapped).lower(struct).compile().as_text())
    sums = [(times, one) for body, times in program.bodies() for one in hlo.collectives(body, 8)]
    assert sum(times for times, _ in sums) == 15
    assert all(one.kind == "all-reduce" and one.bytes == 4 * 8 * 4 * 2 * 7 / 8 for _, one in sums)


@pytest.mark.parametrize(
    ("rest", "size"),
    [
        ("replica_groups=[2,4]<=[8]", 4),
        ("replica_groups={{0,2},{1,3}}", 2),
        ("replica_groups=mesh['a'=2,'b'=3] {'a','b'}", 6),
        ("source_target_pairs={{0,1}}", 8),
    ],
)
def test_sizes_of_groups(rest, size):
    assert hlo.group_size(rest, 8) == size


def flops(line: str, left: str, right: str) -> float:
    """Operations of one product."""
    text = f"""ENTRY %main (x.0: {left}, y.0: {right}) -> f32[] {{
  %x.0 = {left} parameter(0)
  %y.0 = {right} parameter(1)
  ROOT %p = {line}
}}
"""
    program = hlo.HloProgram(text)
    ((body, _),) = program.bodies()
    return program.product_flops(body)


def test_products_of_batches():
    """Seven times [3, 5] by [5, 2], as a dot and as the TPU compiler writes it: a window that meets one batch."""
    dims = "lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={1}"
    wanted = 2 * 7 * 3 * 5 * 2
    assert flops(f"f32[7,3,2] dot(%x.0, %y.0), {dims}", "f32[7,3,5]", "f32[7,5,2]") == wanted
    window = "window={size=7 stride=6 lhs_dilate=7}, dim_labels=0bf_0io->0bf"
    assert flops(f"f32[7,3,2] convolution(%x.0, %y.0), {window}", "f32[7,3,5]", "f32[7,5,2]") == wanted
    two = "lhs_contracting_dims={1,2}, rhs_contracting_dims={0,1}"
    assert flops(f"f32[3,2] dot(%x.0, %y.0), {two}", "f32[3,5,4]", "f32[5,4,2]") == 2 * 3 * 20 * 2
    assert flops("f32[3,2] dot(%x.0, %y.0), lhs_contracting_dims={}", "f32[3]", "f32[2]") == 2 * 3 * 2


def test_products_of_windows():
    """A picture of 6 x 6 with 3 channels in patches of 2 x 2, and a window of 3 that is cut off at both ends."""
    patches = "window={size=2x2 stride=2x2}, dim_labels=b01f_01io->b01f"
    found = flops(f"f32[4,3,3,8] convolution(%x.0, %y.0), {patches}", "f32[4,6,6,3]", "f32[2,2,3,8]")
    assert found == 2 * 4 * 9 * 8 * (2 * 2 * 3)
    cut = "window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f"
    assert flops(f"f32[1,5,2] convolution(%x.0, %y.0), {cut}", "f32[1,5,4]", "f32[3,4,2]") == 2 * (15 - 2) * 4 * 2


@pytest.mark.parametrize("kind", ["f8e4m3fn", "f8e5m2", "s8", "s4"])
def test_products_of_narrow_types(kind):
    line = "bf16[3,2] dot(%x.0, %y.0), lhs_contracting_dims={1}, rhs_contracting_dims={0}"
    assert flops(line, f"{kind}[3,5]", f"{kind}[5,2]") == 2 * 3 * 5 * 2


def test_bytes_of_narrow_types():
    assert hlo.num_bytes("(f8e4m3fn[3,5]{1,0}, s4[5], u4[4]{0:T(128)E(4)}, f4e2m1fn[2], u64[2], f64[], u1[9])") == (
        15 + 3 + 2 + 1 + 16 + 8 + 2
    )


def test_bytes_of_shapes():
    assert hlo.num_bytes("(bf16[2,3]{1,0:T(8,128)(2,1)}, s32[], pred[5])") == 12 + 4 + 5
