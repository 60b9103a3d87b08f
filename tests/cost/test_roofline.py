"""Time on the compute stream: monotone in hardware and in work."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.calibration.calibration import TileGrid
from moiety.cluster.catalog import load_device
from moiety.cost.roofline import (
    buffer_rows,
    compute_seconds,
    line_seconds,
    padded_rows,
    product_seconds,
    roofline_kind,
    row_tiles,
    tile_wave_seconds,
)
from moiety.graph.op import AttentionCore, AttentionShape, Gemm, MemoryPass
from tests.scenarios import CALIBRATION

H100 = load_device("h100")
WORKS: list[Gemm | AttentionCore | MemoryPass] = [
    Gemm(4096, 8192, 4096, "bf16", "bf16"),
    Gemm(4, 8192, 4096, "bf16", "bf16"),
    Gemm(64, 4096, 2048, "fp8", "bf16", 8, experts=True),
    Gemm(8192, 4096, 2048, "fp8", "bf16", 8, experts=True),
    AttentionCore("prefill", "gqa", 1e12, 1e9, "bf16"),
    AttentionCore("decode", "mla", 1e10, 1e9, "bf16"),
    AttentionCore("decode", "gqa", 1e10, 1e9, "bf16"),
    AttentionCore("prefill", "linear", 1e10, 1e9, "bf16"),
    MemoryPass(1e9),
]


@pytest.mark.parametrize("work", WORKS, ids=str)
@pytest.mark.parametrize("what", ["peak", "memory"])
def test_faster_hardware_is_never_slower(work: Gemm | AttentionCore | MemoryPass, what: str) -> None:
    change: dict[str, object] = {"memory_bandwidth_bytes_per_s": 2 * H100.memory_bandwidth_bytes_per_s}
    if what == "peak":
        change = {"peak_flops_per_s": {name: 2 * peak for name, peak in H100.peak_flops_per_s.items()}}
    before = compute_seconds(work, H100, CALIBRATION)
    after = compute_seconds(work, H100.model_copy(update=change), CALIBRATION)
    assert 0 < after <= before
    assert compute_seconds(work, H100, CALIBRATION, sm_share=0.5) >= before


def test_the_formula_by_hand() -> None:
    line = CALIBRATION.roofline["dense_gemm"].model_copy(update={"tiles": None})
    work = Gemm(1024, 4096, 2048, "bf16", "bf16")
    compute = 2 * 1024 * 4096 * 2048 / (line.compute_efficiency * H100.peak("bf16"))
    moved = 2 * (4096 * 2048 + 1024 * (2048 + 4096))
    memory = moved / (line.memory_efficiency * H100.memory_bandwidth_bytes_per_s)
    expected = line.overhead_s + (compute**2 + memory**2) ** 0.5
    assert product_seconds(work, H100, line) == pytest.approx(expected)


def test_a_format_may_reach_less_of_the_memory_than_of_the_tensor_cores() -> None:
    line = CALIBRATION.roofline["grouped_gemm_decode"]
    few, many = (Gemm(rows, 4096, 2048, "fp8", "bf16", 8, experts=True) for rows in (8, 65_536))
    slow = line.model_copy(update={"format_memory_efficiency": {"fp8": 0.5}})
    assert product_seconds(few, H100, slow) > 1.5 * product_seconds(few, H100, line)
    assert product_seconds(many, H100, slow) < 1.2 * product_seconds(many, H100, line)


def test_weights_with_a_scale_a_block_may_reach_less_than_those_with_one_scale() -> None:
    line = CALIBRATION.roofline["dense_gemm"].model_copy(
        update={
            "tiles": None,
            "overhead_s": 0.0,
            "format_efficiency": {"fp8": 0.8},
            "block_scale_memory_efficiency": 0.25,
        }
    )
    for rows, slower in ((1, 4), (1_000_000, 1)):
        one, blocks = (Gemm(rows, 65_536, 65_536, "fp8", "bf16", block_scales=each) for each in (False, True))
        assert product_seconds(blocks, H100, line) == pytest.approx(slower * product_seconds(one, H100, line), rel=0.2)


def test_waves_of_tiles_by_hand() -> None:
    only = TileGrid(rows=(128,), columns=(128,), step_bytes=128, step_s=1e-7)
    # 9 x 8 tiles on 64 SMs: two waves of 16 steps, each 128 x 128 x 128 multiply-adds of one byte
    step_s = math.hypot(1e-7, 2 * 128**3 / 1e13)
    assert tile_wave_seconds([9], 1024, 2048, only, 64, 1e13) == pytest.approx(2 * 16 * step_s)
    assert tile_wave_seconds([8], 1024, 2048, only, 64, 1e13) == pytest.approx(16 * step_s)
    # one tile of columns: cut into four parts, eight tiles use half of the SMs
    parted = only.model_copy(update={"parts_s": 1e-6})
    assert tile_wave_seconds([8], 128, 2048, parted, 64, 1e13, (1, 4)) == pytest.approx(4 * step_s + 1e-6)


@given(st.floats(1, 1e5), st.integers(1, 40_000), st.integers(128, 65_536), st.integers(1, 300), st.floats(1e11, 1e14))
def test_waves_are_never_faster_than_all_sms_at_work(
    rows: float, columns: int, depth: int, sms: int, rate: float
) -> None:
    tiles = CALIBRATION.roofline["dense_gemm"].tiles
    assert tiles is not None
    down = [row_tiles(rows, 1, height, 0.0) for height in tiles.rows]
    seconds = tile_wave_seconds(down, columns, depth, tiles, sms, rate)
    assert seconds >= 2 * rows * columns * depth / (rate * sms) * (1 - 1e-12)
    assert seconds >= depth / tiles.step_bytes * tiles.step_s
    assert tile_wave_seconds(down, columns, depth, tiles, sms + 1, rate) <= seconds
    assert tile_wave_seconds(down, columns, depth, tiles, sms, rate, (1, 2, 4)) <= seconds


@given(st.integers(1, 3000), st.integers(1, 32), st.sampled_from([64, 128]), st.floats(0, 0.9))
def test_groups_of_unequal_rows_begin_the_tiles_of_their_mean(
    rows: int, groups: int, height: int, spread: float
) -> None:
    begun = row_tiles(rows * groups, groups, height, spread)
    sizes = [rows * (1 - spread + 2 * spread * (step + 0.5) / 1000) for step in range(1000)]
    assert begun == pytest.approx(groups * sum(math.ceil(size / height) for size in sizes) / 1000, rel=0.01)
    assert row_tiles(rows * groups, groups, height, 0.0) == groups * math.ceil(rows / height)
    assert row_tiles(0.0, groups, height, spread) == 0


def test_a_contiguous_buffer_costs_few_rows_the_tiles_of_all_experts() -> None:
    line = CALIBRATION.roofline["grouped_gemm_prefill"].model_copy(
        update={"contiguous_layout": True, "row_block": 128, "row_spread": 0.0}
    )
    assert line.tiles is not None
    step_s = math.hypot(line.tiles.step_s, 2 * 128**3 * H100.num_sms / (line.compute_efficiency * H100.peak("fp8")))
    assert buffer_rows(32, 128, 128) == 128 * 128
    one = Gemm(32, 1536, 4096, "fp8", "bf16", 1, experts=True, slots=128)
    waves = math.ceil(128 * 12 / H100.num_sms)
    moved = one.weight_bytes + 128 * 128 * (4096 + 2 * 1536)
    memory_s = moved / (line.memory_efficiency * H100.memory_bandwidth_bytes_per_s)
    expected = line.overhead_s + math.hypot(waves * 32 * step_s, memory_s)
    assert product_seconds(one, H100, line) == pytest.approx(expected, rel=1e-3)
    # half of the experts, whole, have as many tiles as all of them, halved
    assert product_seconds(replace(one, n=2 * one.n, slots=64), H100, line) == pytest.approx(expected, rel=0.05)


@given(rows=st.floats(0, 1e5), slots=st.integers(1, 512))
def test_a_buffer_holds_whatever_is_routed(rows: float, slots: int) -> None:
    found = buffer_rows(rows, slots, 128)
    assert found % 128 == 0
    assert rows <= found <= rows + slots * 127 + 128


def test_tiles_of_queries_cost_short_prompts_more() -> None:
    line = CALIBRATION.roofline["attention_prefill"]
    assert line.query_tile is not None
    shape = AttentionShape(8, 1000, 16, 16, 128, 128, 0, 0, "bf16")
    work = AttentionCore("prefill", "gqa", 1e12, 0.0, "bf16", shape)
    tiles = 8 * 16 * math.ceil(1000 / line.query_tile.rows)
    added = line_seconds(work, H100, line) - line_seconds(replace(work, shape=None), H100, line)
    assert added == pytest.approx(tiles * line.query_tile.seconds / H100.num_sms)


@given(st.floats(0, 1e5), st.floats(1, 4), st.sampled_from([1.0, 4.0, 16.0]), st.booleans())
def test_more_rows_are_never_cheaper(rows: float, factor: float, groups: float, experts: bool) -> None:
    def seconds(m: float) -> float:
        return compute_seconds(Gemm(m, 2048, 1024, "bf16", "bf16", groups, experts), H100, CALIBRATION)

    assert seconds(rows * factor) >= seconds(rows) * (1 - 1e-12)


@given(st.floats(0.1, 1e5), st.floats(1, 256), st.sampled_from(["grouped_gemm_prefill", "grouped_gemm_decode"]))
def test_kernels_compute_whole_blocks(rows: float, groups: float, kind: str) -> None:
    line = CALIBRATION.roofline[kind]
    padded = padded_rows(rows, groups, line)
    assert padded >= rows * (1 - 1e-12)
    assert padded <= rows + max(groups, 1) * line.row_block * (1 + 1e-12)


def test_a_rank_s_load_scales_its_experts_and_nothing_else() -> None:
    for work in WORKS[:4]:
        loaded = compute_seconds(work, H100, CALIBRATION, load=8.0)
        assert (loaded > compute_seconds(work, H100, CALIBRATION)) is (isinstance(work, Gemm) and work.experts)


def test_each_kind_of_work_has_its_measured_line() -> None:
    assert [roofline_kind(work) for work in WORKS] == [
        "dense_gemm",
        "dense_gemm",
        "grouped_gemm_decode",
        "grouped_gemm_prefill",
        "attention_prefill",
        "attention_decode_mla",
        "attention_decode_gqa",
        "attention_linear",
        "memory_pass",
    ]
