"""The fitted logarithms of the serving law as the catalogue holds them: families of devices, releases of engines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moiety.calibration.calibration import CollectiveConstants, Roofline
from moiety.calibration.catalog import load_calibration
from moiety.calibration.serving import EngineRelease, ServingConstants, ServingFamily, release_number
from moiety.validation.fit_law import DEVICE, ENGINE, ENGINES, RELEASE, RELEASES, names, prior, roofline_constants
from moiety.validation.fit_terms import FORMATS, GROUPED, latency_weight

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from moiety.calibration.calibration import RooflineKind
    from moiety.dtypes import Dtype

FAMILIES: tuple[tuple[str, ...], ...] = (("hopper",), ("blackwell",))
_GROUP_SIZES = (2, 4, 8, 16, 32, 64)


def start_constants() -> ServingConstants:
    """Return the constants that the fit starts from, which say how steps are built: blocks of rows, mixed steps."""
    logs, _ = prior()
    families = tuple(serving_family(each, logs, "expected before any fit", lambda _e, _g: True) for each in FAMILIES)
    return ServingConstants(name="start", families=families)


def release_group(engine: str, version: str) -> int:
    """Return the group of releases of a version: 0 where it states no number."""
    number = release_number(version)
    if number is None:
        return 0
    starts = [release_number(each) or () for each in RELEASES[engine]]
    return sum(start <= number for start in starts)


def serving_family(
    architectures: tuple[str, ...],
    logs: NDArray[np.float64],
    source: str,
    has_rows: Callable[[str, int], bool],
) -> ServingFamily:
    """Return a family's constants as the catalogue holds them."""
    values = dict(zip(names(), np.exp(logs).tolist(), strict=True))
    device = {name: values[name] for name in DEVICE}
    base = load_calibration()
    lines: dict[RooflineKind, Roofline] = {}
    for kind, (compute, memory) in roofline_constants(device).items():
        products = kind in GROUPED or kind == "dense_gemm"
        compute_shares, memory_shares = (
            _format_shares(device, what, grouped=kind in GROUPED) if products else {} for what in ("compute", "memory")
        )
        lines[kind] = Roofline(
            compute_efficiency=_rounded(compute),
            memory_efficiency=_rounded(memory),
            overhead_s=0.0,
            exponent=2,
            row_block=64 if kind == "grouped_gemm_prefill" else 1,
            format_efficiency=compute_shares,
            format_memory_efficiency=memory_shares,
            block_scale_memory_efficiency=_rounded(device["block_fp8_memory"]) if kind == "dense_gemm" else 1.0,
            basis="fitted",
            source=source,
        )
    efficiency = min(_rounded(device["link_efficiency"]), 1.0)
    sizes = len(_GROUP_SIZES)
    collectives = base.collectives.model_copy(
        update={
            "group_sizes": _GROUP_SIZES,
            "latency_s": tuple(_rounded(device["link_latency_s"] * latency_weight(n)) for n in _GROUP_SIZES),
            "link_efficiency": (efficiency,) * sizes,
            "large_efficiency": efficiency,
            "in_network_gain": 1.0,
            "second_start": _rounded(device["second_start"]),
            "protocols": (),
            "small_bytes": 0,
            "source": source,
            "range": "all-reduce of activations in one domain of links",
        }
    )
    releases = [
        _release(values, engine, group, source)
        for engine in ENGINES
        for group in range(len(RELEASES[engine]) + 1)
        if has_rows(engine, group)
    ]
    return ServingFamily(
        architectures=architectures,
        roofline=lines,
        collectives=CollectiveConstants.model_validate(collectives.model_dump()),
        releases=tuple(releases),
    )


def _format_shares(device: dict[str, float], what: str, *, grouped: bool) -> dict[Dtype, float]:
    of_grouped = device[f"grouped_fp8_{what}"] if grouped else 1.0
    return {each: _rounded(device[f"{each}_{what}"] * (of_grouped if each == "fp8" else 1.0)) for each in FORMATS}


def _release(values: dict[str, float], engine: str, group: int, source: str) -> EngineRelease:
    starts = RELEASES[engine]
    constants = {
        name: _rounded(values[f"{engine}.{name}"] * (values[f"{engine}.{group}.{name}"] if name in RELEASE else 1.0))
        for name in ENGINE
    }
    return EngineRelease.model_validate(
        {
            "engine": engine,
            "since": starts[group - 1] if group else None,
            "until": starts[group] if group and group < len(starts) else None,
            "basis": "fitted",
            "source": source,
            **constants,
        }
    )


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
