"""Dense products: four constants of the law by waves of tiles, from measured kernels.

The shapes of tile are what the kernels of DeepGEMM and CUTLASS have; what a step of a tile's loop takes at the least,
what its computation and the memory reach, and what a launch takes are fitted.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moiety.calibration.calibration import Roofline, TileGrid
from moiety.cost.roofline import product_seconds
from moiety.validation.fitting import Fitting, Split, each_value, every_fold, rounded_fields
from moiety.validation.least_squares import minimise, robust
from moiety.validation.score import percent, score_of
from moiety.validation.serving_case import SkippedRow
from moiety.validation.system_case import DENSE_GEMM, dense_product
from moiety.validation.system_row import SystemRow
from moiety.validation.transfer_case import row_device

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from moiety.cluster.device import Device
    from moiety.graph.op import Gemm
    from moiety.validation.serving_row import ServingRow

_TILE_ROWS, _TILE_COLUMNS, _STEP_BYTES = (64, 128), (16, 32, 64, 128), 128
_START = (4e-6, 1e-7, 0.75, 0.9)
"""Where the fit starts: seconds of a launch and of a step, efficiency of computation and of memory."""
_SCALE, _PRIOR_WEIGHT, _ROUNDS = 0.1, 0.02, 60


@dataclass(frozen=True, slots=True)
class Product:
    """A measured product of one kernel."""

    work: Gemm
    device: Device
    seconds: float
    source: str

    @property
    def shape(self) -> str:
        """Columns and depth, which all rows of a layer share."""
        return f"{self.work.n} x {self.work.k}"


def measured_products(rows: Sequence[ServingRow | SystemRow]) -> list[Product]:
    """Return the rows that name a dense product and what it took, or reached."""
    found = list[Product]()
    for row in rows:
        match = DENSE_GEMM.match(row.model) if isinstance(row, SystemRow) else None
        if match is None or not isinstance(row, SystemRow) or row.tier != "A":
            continue
        m, n, k = (int(part) for part in match.groups())
        us, tflops = row.metrics.get("us"), row.metrics.get("tflops")
        seconds = 1e-6 * us if isinstance(us, float) else 2e-12 * m * n * k / tflops if isinstance(tflops, float) else 0
        try:
            device = row_device(row)
        except SkippedRow:
            continue
        if seconds > 0:
            found.append(Product(dense_product(m, n, k), device, seconds, row.source.partition(":")[0]))
    return found


def fit_products(products: Sequence[Product]) -> Roofline:
    """Return the constants whose times are nearest to the measured ones, by the relative errors."""
    centre = np.log(_START)

    def residuals(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        errors = np.array(product_errors(_line(logs), products)["product"])
        return np.concatenate([robust(errors, _SCALE), _PRIOR_WEIGHT * (logs - centre)])

    return rounded_fields(_line(minimise(residuals, centre, rounds=_ROUNDS)))


def product_errors(line: Roofline, products: Sequence[Product]) -> dict[str, list[float]]:
    """Return the relative errors of the products' times."""
    return {"product": [product_seconds(each.work, each.device, line) / each.seconds - 1 for each in products]}


def _line(logs: NDArray[np.float64]) -> Roofline:
    overhead_s, step_s, compute, memory = np.exp(logs).tolist()
    return Roofline(
        compute_efficiency=compute,
        memory_efficiency=memory,
        overhead_s=overhead_s,
        exponent=2,
        row_block=1,
        tiles=TileGrid(rows=_TILE_ROWS, columns=_TILE_COLUMNS, step_bytes=_STEP_BYTES, step_s=step_s),
        basis="fitted",
        source="",
    )


def _splits(products: Sequence[Product]) -> list[Split[Product]]:
    by_source = each_value(lambda each: each.source, products)
    return [
        Split("each N x K in turn", tuple(each_value(lambda each: each.shape, products).values())),
        Split("a fifth of the rows at a time", every_fold(lambda each: f"{each.work.m} x {each.shape} {each.source}")),
        *(Split(f"rows of {source}", (left_out,)) for source, left_out in by_source.items()),
    ]


def _rewritten(text: str, line: Roofline, products: Sequence[Product]) -> str:
    """Return a calibration with the line in the place of its dense products'."""
    error = score_of(product_errors(line, products)["product"]).mape
    sources = ", ".join(sorted({each.source for each in products}))
    edges = [
        f"{name} {min(sizes):g}..{max(sizes):g}"
        for name, sizes in (
            ("M", [each.work.m for each in products]),
            ("N", [each.work.n for each in products]),
            ("K", [each.work.k for each in products]),
        )
    ]
    sourced = line.model_copy(
        update={
            "source": f"python -m moiety.validation.fit products: {len(products)} FP8 products of {sources}; mean "
            f"relative error {percent(error)}",
            "range": f"{', '.join(edges)}, Hopper",
        }
    )
    calibration = json.loads(text)
    calibration["roofline"]["dense_gemm"] = sourced.model_dump(mode="json")
    return json.dumps(calibration, indent=2) + "\n"


PRODUCTS_FIT = Fitting("products", measured_products, fit_products, product_errors, _splits, _rewritten)
