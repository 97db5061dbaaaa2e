"""Bytes that a compiled program moves, by XLA's text: loops as often as they run, what stays on a chip not at all."""

from gla_jax.bench.traffic import array_bytes, read_traffic

KB = 16 * 16 * 4  # bytes of an f32[16,16]

GPU = """HloModule jit_f, is_scheduled=true

%fused (param_0: f32[4,16,16], param_1: s32[]) -> f32[16,16] {
  %param_0 = f32[4,16,16]{2,1,0} parameter(0)
  %param_1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = f32[1,16,16]{2,1,0} dynamic-slice(%param_0, %param_1, %zero, %zero), dynamic_slice_sizes={1,16,16}
  ROOT %bitcast = f32[16,16]{1,0} bitcast(%slice)
}

%body (state: (s32[], f32[16,16], f32[4,16,16])) -> (s32[], f32[16,16], f32[4,16,16]) {
  %state = (s32[], f32[16,16]{1,0}, f32[4,16,16]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[16,16]{1,0} get-tuple-element(%state), index=1
  %all = f32[4,16,16]{2,1,0} get-tuple-element(%state), index=2
  %block = f32[16,16]{1,0} fusion(%all, %i), kind=kLoop, calls=%fused
  %gemm = (f32[16,16]{1,0}, s8[33554432]{0}) custom-call(%x, %block), custom_call_target="__cublas$lt$matmul"
  %y = f32[16,16]{1,0} get-tuple-element(%gemm), index=0
  %sent = f32[16,16]{1,0} collective-permute(%y), source_target_pairs={{0,1},{1,0}}
  ROOT %next = (s32[], f32[16,16]{1,0}, f32[4,16,16]{2,1,0}) tuple(%i, %sent, %all)
}

%condition (state: (s32[], f32[16,16], f32[4,16,16])) -> pred[] {
  %state = (s32[], f32[16,16]{1,0}, f32[4,16,16]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %n = s32[] constant(4)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (a: f32[4,16,16], b: f32[16,16]) -> f32[16,16] {
  %a = f32[4,16,16]{2,1,0} parameter(0), metadata={op_name="params[\\'gla-towers\\']"}
  %b = f32[16,16]{1,0} parameter(1)
  %zero = s32[] constant(0)
  %start = (s32[], f32[16,16]{1,0}, f32[4,16,16]{2,1,0}) tuple(%zero, %b, %a)
  %loop = (s32[], f32[16,16]{1,0}, f32[4,16,16]{2,1,0}) while(%start), condition=%condition, body=%body, metadata={op_name="jit(f)/gla-anchors/while"}TRIPS
  %end = f32[16,16]{1,0} get-tuple-element(%loop), index=1
  %copy = f32[16,16]{1,0} copy(%end)
  ROOT %exp = f32[16,16]{1,0} exponential(%copy), metadata={op_name="jit(f)/gla-attention/exp"}
}
"""  # noqa: E501


def test_a_loop_moves_its_bytes_as_often_as_it_runs():
    """A step reads a block of four and writes it, multiplies (two in, one out, no workspace) and sends the result."""
    for trips in ("", ', backend_config={"known_trip_count":{"n":"4"}}'):
        found = read_traffic(GPU.replace("TRIPS", trips))
        index = 4  # of the block, an s32
        assert found.moved["anchors"] == 4 * (2 * KB + index + 3 * KB + 2 * KB)
        assert found.sent == {("anchors", "collective-permute"): 4 * KB}
        assert found.calls == {("anchors", "collective-permute"): 4}
        assert found.moved["attention"] == 4 * KB  # the copy is its reader's
        assert found.unknown == 0
    assert read_traffic(GPU.replace("TRIPS", "").replace("direction=LT", "direction=GT")).unknown == 1


def test_a_block_that_a_fusion_in_a_fusion_takes_is_not_the_whole():
    """XLA puts the slice of a loop's keys into the product's fusion: read whole, each step would count all keys."""
    nested = """%outer (p: f32[4,16,16], q: s32[]) -> f32[16,16] {
  %p = f32[4,16,16]{2,1,0} parameter(0)
  %q = s32[] parameter(1)
  ROOT %inner = f32[16,16]{1,0} fusion(%p, %q), kind=kLoop, calls=%fused
}

%body"""
    text = GPU.replace("TRIPS", "")
    inside = text.replace("fusion(%all, %i), kind=kLoop, calls=%fused", "fusion(%all, %i), kind=kOutput, calls=%outer")
    inside = inside.replace("%body", nested, 1)
    assert inside.count("calls=%outer") == 1
    assert read_traffic(inside).moved == read_traffic(text).moved


def test_what_xla_keeps_on_the_chip_is_not_moved():
    kind = "(f32[16,16]{1,0:T(8,128)S(1)}, bf16[8]{0:T(256)(2,1)}, pred[], u4[6])"
    assert array_bytes(kind) == ((KB, 16, 1, 3), (0, 16, 1, 3))


TPU = """HloModule jit_f

ENTRY %main (w: bf16[64,64], k: f32[16,16]) -> f32[64,16] {
  %w = bf16[64,64]{1,0:T(8,128)(2,1)} parameter(0)
  %k = f32[16,16]{1,0:T(8,128)} parameter(1)
  %k-start = (f32[16,16]{1,0:T(8,128)S(1)}, f32[16,16]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%k)
  %k-done = f32[16,16]{1,0:T(8,128)S(1)} copy-done(%k-start)
  %copy-start = (bf16[64,64]{1,0:T(8,128)(2,1)S(1)}, bf16[64,64]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%w)
  %copy-done = bf16[64,64]{1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start)
  %gather = f32[64,16]{1,0:T(8,128)} all-gather(%k-done), dimensions={0}, metadata={op_name="jit(f)/gla-labels/gather"}
  ROOT %dot = f32[64,16]{1,0:T(8,128)} convolution(%copy-done, %gather), metadata={op_name="vmap(gla-towers)/dot"}
}
"""


def test_a_weight_brought_onto_the_chip_is_read_once_and_a_gather_sends_what_a_device_lacks():
    found = read_traffic(TPU)
    whole = 64 * 16 * 4
    assert found.moved == {"towers": 64 * 64 * 2 + 2 * whole, "labels": KB + whole}
    assert found.sent == {("labels", "all-gather"): whole - KB}
