"""Collectives and memory traffic in the text of compiled programs."""

from pathlib import Path

import pytest

from vidlatent.plan.hlo import parse

HERE = Path(__file__).parent
LOOP = (HERE / "loop.hlo").read_text()  # a scan over the rows of an array that is gathered first
COUNTED = (HERE / "counted.hlo").read_text()
SCATTERED = (HERE / "scattered.hlo").read_text()  # reduce-scatters as the TPU compiler has them
ASYNC = (HERE / "overlapped.hlo").read_text()  # as the TPU compiler writes what overlaps


def test_collectives_in_a_loop_count_as_often_as_it_runs():
    gather, reduce = sorted(parse(LOOP).collectives(), key=lambda c: c.kind)
    assert (gather.kind, gather.group, gather.count) == ("all-gather", 2, 1)
    assert gather.bytes == 80 * 128 * 4 and gather.sent == gather.bytes / 2
    assert (reduce.kind, reduce.group, reduce.count) == ("all-reduce", 4, 5)
    assert reduce.bytes == 5 * 128 * 4 and reduce.sent == reduce.bytes * 1.5


@pytest.mark.parametrize("start, turns", [(0, 40), (1, 39)])
def test_a_loop_that_only_compares_its_counter_counts_too(start, turns):
    """As the TPU compiler leaves scans: the number of turns stands in the condition alone."""
    text = COUNTED.replace("START", str(start))
    (reduce,) = parse(text).collectives()
    assert (reduce.count, reduce.bytes) == (turns, turns * 8 * 128 * 4)
    unknown = text.replace("direction=LT", "direction=NE")
    assert parse(unknown).collectives()[0].count == 1


def test_an_overlapped_collective_counts_once():
    found = {c.kind: c for c in parse(ASYNC).collectives()}
    gather, permute = found["all-gather"], found["collective-permute"]
    assert (gather.count, gather.group, gather.bytes) == (1, 4, 32 * 128 * 2)
    assert (permute.count, permute.bytes, permute.sent) == (1, 512, 512.0)


def test_a_fusion_around_an_all_reduce_and_a_slice_is_a_reduce_scatter():
    """Two of them, though both go by channel 1."""
    (found,) = parse(SCATTERED).collectives()
    assert (found.kind, found.group, found.count) == ("reduce-scatter", 4, 2)
    assert found.bytes == (32 + 64) * 128 * 4 and found.sent == found.bytes * 0.75


def test_traffic_of_a_slice_is_the_slice():
    row = 128 * 4
    # Per turn: the row taken and its double; the all-reduce in and out. Outside: gather and slices.
    turn = (row + 4 + row) + 2 * row
    assert parse(LOOP).traffic() == 5 * turn + (80 + 40) * row + 2 * 40 * row + 2 * row


def test_a_slice_inside_of_a_fusion_in_a_fusion_is_the_slice_too():
    begin = LOOP.index("%fused_take (")
    end = LOOP.index("%body (")
    taking = LOOP[begin:end].replace("fused_take", "inner_take")
    outer = """%fused_take (param_0.1: f32[40,128], param_1.1: s32[]) -> f32[1,128] {
  %param_0.1 = f32[40,128]{1,0} parameter(0)
  %param_1.1 = s32[] parameter(1)
  ROOT %inner = f32[1,128]{1,0} fusion(%param_0.1, %param_1.1), kind=kLoop, calls=%inner_take
}

"""
    nested = parse(LOOP[:begin] + taking + outer + LOOP[end:])
    assert nested.traffic() == parse(LOOP).traffic()


def test_traffic_leaves_out_vector_memory():
    # Both fusions read x; everything else stays in vector memory, but for x's edge.
    assert parse(ASYNC).traffic() == pytest.approx(2 * 16 * 128 * 2, abs=1024)
