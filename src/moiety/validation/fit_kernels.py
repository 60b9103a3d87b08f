"""Products and attention: the few constants of each kind of kernel's line, from measured kernels.

The shapes of tile are what the kernels of DeepGEMM and CUTLASS have, and FlashAttention-3 for its queries. What a
launch takes, what computation and the memory reach, and what a tile takes besides are fitted, kind by kind.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moiety.calibration.calibration import QueryTile, Roofline, TileGrid
from moiety.calibration.catalog import load_calibration
from moiety.graph.op import Gemm
from moiety.validation.fitting import Fitting, Split, each_value, every_fold, rounded_fields
from moiety.validation.kernel_case import kernels_of
from moiety.validation.least_squares import minimise, robust
from moiety.validation.score import percent, score_of
from moiety.validation.skipped import SkippedRow
from moiety.validation.system_row import SystemRow

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from moiety.calibration.calibration import RooflineKind
    from moiety.validation.kernel_case import Kernel
    from moiety.validation.serving_row import ServingRow

Lines = dict["RooflineKind", Roofline]
_DRAWN_SPREAD = 0.3
_GRID = TileGrid(rows=(64, 128), columns=(16, 32, 64, 128), step_bytes=128, step_s=1e-7)
_LIBRARY_GRID = _GRID.model_copy(
    update={"depth_parts": {"bf16": (1, 2, 4, 8), "fp16": (1, 2, 4, 8)}, "parts_s": 1.5e-6}
)
"""DeepGEMM's FP8 kernels leave K whole, cuBLAS's do not (its split-K).

What adding the parts takes is assumed: about that of a small kernel that follows without a gap. All published kernels
are of FP8, so that no row binds it, and the line's source says so.
"""
_WHOLE_BLOCKS = TileGrid(rows=(128,), columns=(128,), step_bytes=128, step_s=1e-7)
_SCALE, _PRIOR_WEIGHT, _ROUNDS = 0.1, 0.3, 60


def _start(overhead_s: float, compute: float, memory: float, *, exponent: float = 2, **parts: object) -> Roofline:
    return Roofline.model_validate(
        {
            "basis": "fitted",
            "source": "",
            "overhead_s": overhead_s,
            "compute_efficiency": compute,
            "memory_efficiency": memory,
            "exponent": exponent,
            "row_block": 1,
            **parts,
        }
    )


START: Lines = {
    "dense_gemm": _start(4e-6, 0.75, 0.9, tiles=_LIBRARY_GRID),
    "grouped_gemm_decode": _start(4e-6, 0.75, 0.9, tiles=_GRID, row_spread=_DRAWN_SPREAD),
    "grouped_gemm_prefill": _start(4e-6, 0.75, 0.9, tiles=_WHOLE_BLOCKS, row_spread=_DRAWN_SPREAD),
    "attention_prefill": _start(1e-5, 0.65, 0.9, query_tile=QueryTile(rows=128, seconds=2e-6)),
    "attention_decode_gqa": _start(1.6e-5, 0.5, 0.9),
    "attention_decode_mla": _start(1.6e-5, 0.6, 0.9, exponent=8),
}
"""Where the fits start, and what constants that no row binds stay near. FlashMLA computes while the cache arrives."""


@dataclass(frozen=True, slots=True)
class TimedKernel:
    """A kernel and what it took."""

    kernel: Kernel
    seconds: float
    shape: str
    """What kernels of one layer share: columns and depth, experts of a GPU, heads."""
    source: str

    def error(self, line: Roofline) -> float:
        """Return the relative error of its time by a line."""
        return self.kernel.seconds(line) / self.seconds - 1


def timed_kernels(rows: Sequence[ServingRow | SystemRow]) -> list[TimedKernel]:
    """Return the kernels of complete rows that state what they took, or reached."""
    found = list[TimedKernel]()
    for row in rows:
        if not isinstance(row, SystemRow) or row.kind != "kernel" or row.tier != "A":
            continue
        try:
            kernels = kernels_of(row)
        except SkippedRow:
            continue
        for each in kernels:
            seconds = each.measured_s(row)
            known = each.device.architecture in load_calibration().architectures
            if seconds is not None and each.forward and known:
                found.append(TimedKernel(each, seconds, each.layer, row.source.partition(":")[0]))
    return found


def fit_kernels(kernels: Sequence[TimedKernel]) -> Lines:
    """Return the line of each kind of kernel whose times are nearest to the measured ones, by the relative errors."""
    found: Lines = {}
    for kind, start in START.items():
        own = [each for each in kernels if each.kernel.kind == kind]
        if own:
            found[kind] = _fit(start, own)
    return found


def kernel_errors(lines: Lines, kernels: Sequence[TimedKernel]) -> dict[str, list[float]]:
    """Return the relative errors of the kernels' times, by kind."""
    found: dict[str, list[float]] = {}
    for each in kernels:
        line = lines.get(each.kernel.kind, START[each.kernel.kind])
        found.setdefault(each.kernel.kind, []).append(each.error(line))
    return found


def _fit(start: Roofline, kernels: Sequence[TimedKernel]) -> Roofline:
    centre = np.log(_constants(start))

    def residuals(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        line = _moved(start, np.exp(logs).tolist())
        errors = np.array([each.error(line) for each in kernels])
        return np.concatenate([robust(errors, _SCALE), _PRIOR_WEIGHT * (logs - centre)])

    return rounded_fields(_moved(start, np.exp(minimise(residuals, centre, rounds=_ROUNDS)).tolist()))


def _constants(line: Roofline) -> list[float]:
    """Return what is fitted of a line: its start-up, both efficiencies, and what a tile takes where it has tiles."""
    tiles = [line.tiles.step_s] if line.tiles else [line.query_tile.seconds] if line.query_tile else []
    return [line.overhead_s, line.compute_efficiency, line.memory_efficiency, *tiles]


def _moved(line: Roofline, constants: Sequence[float]) -> Roofline:
    """Return a line with other constants, in the order of `_constants`."""
    overhead_s, compute, memory, *tile = constants
    update: dict[str, object] = {
        "overhead_s": overhead_s,
        "compute_efficiency": compute,
        "memory_efficiency": memory,
    }
    if line.tiles:
        update["tiles"] = line.tiles.model_copy(update={"step_s": tile[0]})
    elif line.query_tile:
        update["query_tile"] = line.query_tile.model_copy(update={"seconds": tile[0]})
    return line.model_copy(update=update)


def _splits(kernels: Sequence[TimedKernel]) -> list[Split[TimedKernel]]:
    """Return each shape, a fifth of the rows, and each source; not where nothing of a kind would be left to fit on."""
    by_shape = _each_of_several(lambda each: f"{each.kernel.kind} {each.shape}", kernels)
    by_source = _each_of_several(lambda each: each.source, kernels)
    return [
        Split("each shape in turn", tuple(by_shape.values())),
        Split("a fifth of the rows at a time", every_fold(lambda each: f"{each.kernel.work} {each.source}")),
        *(Split(f"rows of {source}", (left_out,)) for source, left_out in by_source.items()),
    ]


def _each_of_several(
    key: Callable[[TimedKernel], str], kernels: Sequence[TimedKernel]
) -> dict[str, Callable[[TimedKernel], bool]]:
    """Return the folds of each value of a key, of the kinds of kernel that have several values of it."""
    values = {kind: {key(e) for e in kernels if e.kernel.kind == kind} for kind in START}
    several = [each for each in kernels if len(values[each.kernel.kind]) > 1]
    folds = each_value(key, several)
    return {
        value: lambda each, left_out=left_out: len(values[each.kernel.kind]) > 1 and left_out(each)
        for value, left_out in folds.items()
    }


def _rewritten(text: str, lines: Lines, kernels: Sequence[TimedKernel]) -> str:
    """Return a calibration with the lines in the places of those that it had."""
    calibration = json.loads(text)
    for kind, line in lines.items():
        own = [each for each in kernels if each.kernel.kind == kind]
        error = score_of([each.error(line) for each in own]).mape
        sources = ", ".join(sorted({each.source for each in own}))
        counted = f"{len(own)} kernels of {sources}; mean relative error {percent(error)}"
        if line.tiles is not None and line.tiles.parts_s:
            counted += "; parts_s is assumed"
        sourced = line.model_copy(
            update={"source": f"python -m moiety.validation.fit kernels: {counted}", "range": f"{_range(own)}; Hopper"}
        )
        calibration["roofline"][kind] = sourced.model_dump(mode="json")
    return json.dumps(calibration, indent=2) + "\n"


def _range(kernels: Sequence[TimedKernel]) -> str:
    """Return which sizes were measured."""
    works = [each.kernel.work for each in kernels]
    products = [work for work in works if isinstance(work, Gemm)]
    if not products:
        return ", ".join(sorted({each.shape for each in kernels}))
    sizes = {
        "rows a matrix": [work.m / work.groups for work in products],
        "N": [work.n for work in products],
        "K": [work.k for work in products],
        "matrices": [work.groups for work in products],
    }
    return ", ".join(f"{name} {min(found):g}..{max(found):g}" for name, found in sizes.items())


KERNELS_FIT = Fitting("kernels", timed_kernels, fit_kernels, kernel_errors, _splits, _rewritten)
