"""The run time's kernels on one GPU, against the ceilings that the same run measures: `python benchmarks/gpu.py`.

Device time is measured: the host is far ahead, as a graph's replay would be; beside it stands what a call takes when
one follows the other, the host's part included. Routing is uniformly random, weights and states are new in every run,
and caches are flushed before each call.

Each half of the MLP, gate-up and down, stands beside torch's and, where they are installed, FlashInfer's and DeepGEMM's
products; some rows of everything that is timed are compared with float64 before. The seconds so far are printed on the
way: compiling and tuning take most of them.

Bars: the fused expert MLP at least 1.2 times as fast as gather, `grouped_mm`, silu * up, `grouped_mm`, weights and sum
on prefill shapes; 70 % of the measured matrix product from 1,024 rows an expert on; 80 % of the measured bandwidth
where an expert has at most 8. Experts held in FP8 stand beside the same in BF16 and beside expanding all of them, their
bytes counted as codes and scales; no bar. Without a GPU nothing is measured and nothing fails.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import multiprocessing
import os
import statistics
import sys
import time
from importlib.metadata import version
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.nccl_priority import exchange_beside_bulk
from moiety.runtime.dispatch.quantize import quantized
from moiety.runtime.dispatch.wire import Rows
from moiety.runtime.experts.weights import ExpertWeights
from moiety.runtime.fp8 import BLOCK, FP8, num_scales
from moiety.runtime.gates import Gate
from moiety.runtime.telemetry import Silent
from tests.runtime.kernels.routed_rows import DTYPES, Case, case_of, tolerance, wrong_numbers

if HAS_TRITON := find_spec("triton") is not None:
    from benchmarks.expert_products import SHAPES, TOP_K, RoutedExperts
    from benchmarks.fp8_experts import FP8_SHAPES, fp8_line, fp8_row
    from moiety.runtime.experts.fused import fused_outputs
    from moiety.runtime.kernels.quantized_rows import quantize_into
    from moiety.runtime.kernels.token_sums import row_sums

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.expert_products import Shape

LEAST_SPEEDUP, LEAST_OF_PRODUCT, LEAST_OF_BANDWIDTH = 1.2, 0.7, 0.8
MOST_APART = 0.01
"""Relative distance of results in BF16 from float64's."""
MANY_ROWS, FEW_ROWS = 1024, 8
"""An expert's, on average, at which the second and the third bar hold."""
SIZES = ((512, 256), (328, 104), (130, 40))
"""Hidden size and width that sums are tried on: tiles divide them, lines of 16 bytes do, nothing does."""
KINDS: dict[str, dict[str, Any]] = {
    "silu": {},
    "silu, codes": {"fp8_from": 0},
    "silu, codes in cut blocks": {"fp8_from": 45},
    "gpt-oss": {"gate": Gate.GPT_OSS, "is_biased": True, "is_transposed": False},
    "gpt-oss, codes": {"gate": Gate.GPT_OSS, "is_biased": True, "is_transposed": False, "fp8_from": 64},
}
"""Variants of the expert kernels."""
ROUTED = ((1, "spread"), (3, "nowhere"), (90, "some"), (700, "some"), (400, "one slot"))
"""Rows and their slots that sums are tried on."""
MANY_ROUTED = ((1300, "spread"),)
"""So many that programs of the down projection stay."""
REPEATS, SLEEP_CYCLES, FLUSHED_BYTES = 15, 2_000_000, 256 << 20


class Clock:
    """Device seconds of calls: the median of some, each with the caches flushed and its launches already queued."""

    def __init__(self, device: torch.device) -> None:
        self._flushed = torch.empty(FLUSHED_BYTES, dtype=torch.int8, device=device)

    def seconds(self, call: Callable[[], object], repeats: int = REPEATS) -> float:
        """Return what a call takes on the device."""
        for _ in range(3):
            call()
        events = [tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) for _ in range(repeats)]
        for start, end in events:
            self._flushed.zero_()
            torch.cuda._sleep(SLEEP_CYCLES)  # noqa: SLF001 - as torch's own tests do: the host queues the call meanwhile
            start.record()
            call()
            end.record()
            torch.cuda.synchronize()
        return statistics.median(start.elapsed_time(end) / 1e3 for start, end in events)

    @staticmethod
    def host_seconds(call: Callable[[], object], repeats: int = REPEATS) -> float:
        """Return what a call takes when one follows the other, the host's part included where it is the longer."""
        torch.cuda.synchronize()
        start_s = time.perf_counter()
        for _ in range(repeats):
            call()
        torch.cuda.synchronize()
        return (time.perf_counter() - start_s) / repeats


def ceilings(clock: Clock, device: torch.device) -> tuple[float, float]:
    """Return the bytes per second of a copy, read and written, and the FLOPs per second of a BF16 product."""
    source = torch.empty(1 << 30, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / clock.seconds(lambda: target.copy_(source))
    size = 8192
    left, right = (torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
    out = torch.empty_like(left)
    return bandwidth, 2 * size**3 / clock.seconds(lambda: torch.mm(left, right, out=out))


def moved(case: Case, device: torch.device) -> tuple[Rows, ExpertWeights]:
    """Return a case on the device, the rows' gaps and the weights' layout as they are."""
    held, weights = case.rows, case.weights
    states = held.hidden.new_empty(held.hidden.shape[0], held.hidden.stride(0)).to(device)[:, : held.hidden.shape[1]]
    states.copy_(held.hidden)
    rows = Rows(states, held.keys.to(device), held.slots.to(device), held.weights.to(device))
    biases = (None if each is None else each.to(device) for each in (weights.gate_up_bias, weights.down_bias))
    return rows, ExpertWeights(weights.gate_up.to(device), weights.down.to(device), *biases, weights.gate)


def wire_room(rows: int, hidden: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return room for the codes and the scales of rows."""
    codes = torch.empty(rows, hidden, dtype=FP8, device=device)
    return codes, torch.empty(rows, num_scales(hidden), dtype=torch.float32, device=device)


def wrongs(device: torch.device, seed: int) -> list[str]:
    """Return what is wrong with the kernels on new random data in BF16, which is what is timed.

    Several processes try them, as compiling takes long; `tests/gpu/test_kernels.py` tries the other formats.
    """
    context = multiprocessing.get_context("spawn")
    cases = [(device, seed, torch.bfloat16, *each) for each in product(SIZES, KINDS)]
    with context.Pool(min(len(cases), os.cpu_count() or 1)) as pool:
        found = [each for part in pool.starmap(wrong_sums, cases) for each in part]
        single = [each for each in of_single_rows(device) if torch.bfloat16 in each]
        found += [each for part in pool.starmap(wrong_numbers, single) for each in part]
    return found + wrong_codes(device)


def of_single_rows(device: torch.device) -> list[tuple[Any, ...]]:
    """Return what `wrong_numbers` is tried on: blocks that tiles divide, that they do not, that begin anywhere."""
    return [
        (device, sizes, dtype, first, gate)
        for sizes, first in zip(SIZES, (0, 64, 45), strict=True)
        for dtype in DTYPES
        for gate in Gate
    ]


def wrong_sums(
    device: torch.device,
    seed: int,
    dtype: torch.dtype,
    sizes: tuple[int, int],
    of: str = "silu",
    routed: Sequence[tuple[int, str]] = ROUTED,
) -> list[str]:
    """Return what is wrong with the sums of one format, size and kind: beside float64's, or bits in another order."""
    torch.set_num_threads(1)  # of the reference, whose processes stand side by side
    found: list[str] = []
    for num_rows, kind in routed:
        case = case_of(
            num_rows=num_rows, num_slots=9, width=4, sizes=sizes, dtype=dtype, kind=kind, seed=seed, **KINDS[of]
        )
        rows, weights = moved(case, device)
        sums = fused_outputs(rows, weights, Silent(), 0)
        reference, doubt = case.reference()
        off = (sums.cpu().double() - reference).abs()
        name = f"{of}, {dtype}, {num_rows} rows {kind}, {sizes}"
        if not bool((off <= tolerance(dtype) * doubt + 1e-6).all()):
            found.append(f"{name}: off by {float(off.max()):.2e}")
        order = torch.randperm(num_rows, device=device)
        other = Rows(rows.hidden[order], rows.keys[order], rows.slots[order], rows.weights[order])
        again = fused_outputs(other, weights, Silent(), 0)
        if not torch.equal(again, sums[order]):
            found.append(f"{name}: other bits in another order")
    return found


def wrong_codes(device: torch.device) -> list[str]:
    """Return what is wrong with rows in FP8."""
    states = torch.randn(64, 7168, dtype=torch.bfloat16, device=device)
    codes, scales = wire_room(64, 7168, device)
    quantize_into(codes, scales, states, torch.arange(64, device=device))
    pairs = zip((codes, scales), quantized(states.cpu()), strict=True)
    is_right = all(torch.equal(got.cpu().float(), expected.float()) for got, expected in pairs)
    return [] if is_right else ["FP8: other codes than the host's"]


def expert_row(shape: Shape, clock: Clock, limits: tuple[float, float], device: torch.device) -> dict[str, Any]:
    """Return the figures of a shape, what is wrong in it, and whether its bars hold."""
    bandwidth, flops = limits
    experts = RoutedExperts(shape, device)
    apart = experts.wrong()  # before anything is timed, which compiles and tunes besides
    rows, whole = experts.rows, experts.whole()
    fused_s, unfused_s = (clock.seconds(whole[name].call) for name in ("ours", "torch"))
    pairs, used = rows.slots.numel(), int(rows.slots.unique().numel())
    num_flops = 6 * pairs * shape.hidden * shape.width
    read = used * 3 * shape.hidden * shape.width * 2
    moved_bytes = read + 2 * pairs * 2 * (shape.hidden + shape.width) + 4 * rows.hidden.numel()
    row = {
        **vars(shape),
        "fused_s": fused_s,
        "fused_host_s": clock.host_seconds(whole["ours"].call),
        "unfused_s": unfused_s,
        "speedup": unfused_s / fused_s,
        "of_product": num_flops / fused_s / flops,
        "of_bandwidth": moved_bytes / fused_s / bandwidth,
        "apart": apart,
        "gate_up_s": {name: clock.seconds(way.call) for name, way in experts.gate_up().items()},
    }
    middle = experts.gate_up()["torch"].call()
    row["down_s"] = {name: clock.seconds(way.call) for name, way in experts.down(middle).items()}
    row["gate_up_of_product"] = num_flops * 2 / 3 / row["gate_up_s"]["ours"] / flops
    row["down_of_product"] = num_flops / 3 / row["down_s"]["ours"] / flops
    met = max(apart.values()) < MOST_APART
    if shape.rows <= FEW_ROWS:
        met = met and row["of_bandwidth"] >= LEAST_OF_BANDWIDTH
    else:
        met = met and row["speedup"] >= LEAST_SPEEDUP
        met = met and (shape.rows < MANY_ROWS or row["of_product"] >= LEAST_OF_PRODUCT)
    return {**row, "met": met}


def expert_lines(row: dict[str, Any]) -> str:
    """Return a shape's figures: the whole, then each half beside torch's and libraries', then what is wrong."""
    whole = (
        f"{row['hidden']:6} {row['width']:5} {row['experts']:7} {row['rows']:4} | {row['fused_s'] * 1e3:6.2f}"
        f" ({row['fused_host_s'] * 1e3:.2f}) {row['unfused_s'] * 1e3:6.2f} ms {row['speedup']:6.2f}x |"
        f" {row['of_product']:10.0%} {row['of_bandwidth']:13.0%} | {'met' if row['met'] else 'NOT MET'}"
    )
    lines = [whole]
    for half, name in (("gate_up", "gate-up"), ("down", "down")):
        figures = ", ".join(f"{way} {seconds * 1e3:.2f}" for way, seconds in row[f"{half}_s"].items())
        lines.append(f"       {name:7} {figures} ms; ours {row[f'{half}_of_product']:.0%} of the product")
    lines += [f"       WRONG: {way} is {off:.1%} off" for way, off in row["apart"].items() if off >= MOST_APART]
    return "\n".join(lines)


def wire_rows(clock: Clock, bandwidth: float, device: torch.device) -> dict[str, float]:
    """Return the share of the bandwidth that quantizing gathered rows and adding up outputs reach."""
    tokens, hidden = 16384, 7168
    states = torch.randn(tokens, hidden, dtype=torch.bfloat16, device=device)
    index = torch.randperm(tokens, device=device)
    codes, scales = wire_room(tokens, hidden, device)
    quantize_s = clock.seconds(lambda: quantize_into(codes, scales, states, index))
    first = torch.arange(tokens // TOP_K + 1, device=device) * TOP_K
    sums_s = clock.seconds(lambda: row_sums(states, first, TOP_K))
    return {
        "permute and quantize": tokens * (3 * hidden + 4 * hidden // BLOCK) / quantize_s / bandwidth,
        "unpermute": tokens * hidden * (2 + 4 / TOP_K) / sums_s / bandwidth,
    }


def attention(clock: Clock, flops: float, device: torch.device) -> dict[str, float]:
    """Return how many times as fast as the plain way flash attention is, and its share of the matrix product."""
    heads, length, size = 32, 4096, 128
    query, key, value = (torch.randn(1, heads, length, size, dtype=torch.bfloat16, device=device) for _ in range(3))

    def seconds(backend: SDPBackend) -> float:
        with sdpa_kernel(backend):
            return clock.seconds(lambda: scaled_dot_product_attention(query, key, value, is_causal=True))

    flash_s = seconds(SDPBackend.FLASH_ATTENTION)
    causal_flops = 2 * heads * length**2 * size
    return {"speedup": seconds(SDPBackend.MATH) / flash_s, "of_product": causal_flops / flash_s / flops}


def measure(device: torch.device) -> dict[str, Any]:
    """Measure everything, printing on the way with the seconds so far; return the figures and whether the bars hold."""
    begin_s = time.monotonic()
    hardware = torch.cuda.get_device_name(device)
    versions = {name: version(name) for name in ("torch", "triton")} | {"cuda": torch.version.cuda}
    today = dt.datetime.now(tz=dt.UTC).date().isoformat()
    print(f"{hardware}, {today}, {', '.join(f'{name} {each}' for name, each in versions.items())}", flush=True)
    wrong = wrongs(device, seed=int(time.time()) % 10_000)
    said = "; ".join(wrong) or "sums, bits in any order, FP8: right"
    print(f"correctness: {said}  [{time.monotonic() - begin_s:.0f} s]", flush=True)
    clock = Clock(device)
    bandwidth, flops = limits = ceilings(clock, device)
    print(f"ceilings: copy {bandwidth / 1e12:.2f} TB/s, BF16 product {flops / 1e12:.0f} TFLOP/s")
    sys.stdout.flush()
    print("hidden width experts rows |    fused (host)   unfused   ratio | of product  of bandwidth | bar")
    table: list[dict[str, Any]] = []
    for shape in SHAPES:
        table.append(expert_row(shape, clock, limits, device))
        print(expert_lines(table[-1]), f"  [{time.monotonic() - begin_s:.0f} s]", sep="\n", flush=True)
        torch.cuda.empty_cache()
    held: list[dict[str, Any]] = []
    print("held in FP8: hidden width experts rows | our kernels; with all expanded: torch's | of product, of bandwidth")
    for shape in FP8_SHAPES:
        held.append(fp8_row(shape, clock.seconds, limits, device))
        print(fp8_line(held[-1]), f"  [{time.monotonic() - begin_s:.0f} s]", flush=True)
        torch.cuda.empty_cache()
    wrong += [
        f"FP8, {row['hidden']} x {row['width']}: apart" for row in held if max(row["apart"].values()) > MOST_APART
    ]
    wire, attended = wire_rows(clock, bandwidth, device), attention(clock, flops, device)
    print("of bandwidth:", ", ".join(f"{name} {share:.0%}" for name, share in wire.items()))
    print(f"flash attention: {attended['speedup']:.1f}x the plain one, {attended['of_product']:.0%} of the product")
    nccl = exchange_beside_bulk() if torch.cuda.device_count() > 1 else None
    if nccl is None:
        print("NCCL priorities: not measured, one GPU")
    else:
        print(f"NCCL: an exchange {nccl['alone_s'] * 1e3:.2f} ms, beside bulk {nccl['beside_bulk_s'] * 1e3:.2f} ms")
    met = not wrong and all(row["met"] for row in table)
    figures = {"wrong": wrong, "bandwidth_bytes_per_s": bandwidth, "flops_per_s": flops, "experts": table, "fp8": held}
    figures |= {"hardware": hardware, "date": today, "versions": versions}
    return figures | {"wire": wire, "attention": attended, "nccl": nccl, "met": met}


def main() -> int:
    """Print the table; return 0 when the bars hold, or where there is no GPU."""
    parser = argparse.ArgumentParser(description="The run time's kernels on one GPU.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures go")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("not measured: no GPU")
        return 0
    if not HAS_TRITON:
        print("not measured: Triton is not installed")
        return 0
    figures = measure(torch.device("cuda", torch.cuda.current_device()))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    print(f"bars: {'met' if figures['met'] else 'NOT MET'}")
    return 0 if figures["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
