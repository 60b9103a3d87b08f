"""`python -m moiety.validation.fit ROWS...`: the serving constants anew from rows of measurements, cross-validated.

Serving rows that ran without speculation are fitted, and offline runs; of disaggregated ones the time per output token,
for prompts are computed elsewhere there. The constants are those of `fit_law.py`: per family of devices what its
kernels and links reach, per engine what it adds, per group of releases a few of these again, held near the engine's.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moiety.calibration.calibration import CollectiveConstants, Roofline
from moiety.calibration.catalog import load_calibration
from moiety.calibration.serving import EngineRelease, ServingConstants, ServingFamily, release_number
from moiety.calibration.serving_catalog import DEFAULT_SERVING
from moiety.files import write_all
from moiety.validation.fit_acceptance import with_acceptance
from moiety.validation.fit_law import (
    DEVICE,
    ENGINE,
    ENGINES,
    OF_TTFT,
    RELEASE,
    RELEASES,
    Law,
    Rows,
    names,
    prior,
    roofline_constants,
    steps_of,
)
from moiety.validation.fit_terms import FORMATS, GROUPED, latency_weight, row_terms
from moiety.validation.least_squares import minimise, robust
from moiety.validation.offline_case import as_closed_loop
from moiety.validation.predict import ServingPredictor
from moiety.validation.rows import read_rows
from moiety.validation.score import error_percents, score_of
from moiety.validation.serving_case import serving_case
from moiety.validation.serving_row import ServingRow
from moiety.validation.skipped import SkippedRow

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from moiety.calibration.calibration import RooflineKind
    from moiety.dtypes import Dtype
    from moiety.validation.fit_terms import RowTerms
    from moiety.validation.serving_case import ServingCase
    from moiety.validation.system_row import SystemRow

FAMILIES: tuple[tuple[str, ...], ...] = (("hopper",), ("blackwell",))
_GROUP_SIZES = (2, 4, 8, 16, 32, 64)
_TPOT_SCALE, _TTFT_SCALE, _TTFT_WEIGHT, _PRIOR_WEIGHT = 0.15, 0.25, 0.6, 0.3
_LEAST_ROWS = 12
"""Rows that a group of releases needs for constants of its own in the catalogue."""
_HELD_OUT_PERCENT = 30
_LEAST_LEFT_OUT = 40
"""Rows that a model or system needs to be left out by itself."""


@dataclass(frozen=True, slots=True)
class Known:
    """A row that can be predicted, with its terms."""

    row: ServingRow
    case: ServingCase
    terms: RowTerms

    @property
    def family(self) -> int:
        """Index of the family of devices."""
        architecture = self.case.cluster.device.architecture
        return next((i for i, each in enumerate(FAMILIES) if architecture in each), 0)


def start_constants() -> ServingConstants:
    """Return the constants that the fit starts from, which say how steps are built: blocks of rows, mixed steps."""
    logs, _ = prior()
    families = tuple(_family(each, logs, "expected before any fit", lambda _e, _g: True) for each in FAMILIES)
    return ServingConstants(name="start", families=families)


def known_rows(rows: Sequence[ServingRow | SystemRow]) -> list[Known]:
    """Return the rows that can be predicted and ran without speculation, with their terms."""
    start, found = ServingPredictor(start_constants()), list[Known]()
    for row in rows:
        try:
            loop = row if isinstance(row, ServingRow) else as_closed_loop(row)
            case = serving_case(loop)
        except SkippedRow:
            continue
        if not case.draft_tokens:
            pool, apart = start.pool(case, case.decode), case.disaggregated
            offline = loop is not row
            terms = row_terms(pool, case.concurrency, computes_prompts=not apart, offline=offline)
            found.append(Known(loop, case, terms))
    return found


def fit(rows: Sequence[Known]) -> dict[int, NDArray[np.float64]]:
    """Return the logarithms of the constants of each family, fitted on `rows`: TPOT, then TTFT, then both.

    The first two look for the logarithm of the ratio, which leads from afar; the last for the relative error.
    """
    fitted: dict[int, NDArray[np.float64]] = {}
    centre, _ = prior()
    latency = np.array([name.rpartition(".")[2] in OF_TTFT for name in names()])
    for family in range(len(FAMILIES)):
        own = [each for each in rows if each.family == family]
        logs = centre.copy()
        if own:
            table = as_rows(own)
            law = Law(table)
            every = np.ones_like(latency)
            logs[~latency] = minimise(
                _Residuals(law, table, logs, ~latency, ("tpot",), np.log), logs[~latency], rounds=15
            )
            logs[latency] = minimise(_Residuals(law, table, logs, latency, ("ttft",), np.log), logs[latency], rounds=15)
            both = _Residuals(law, table, logs, every, ("tpot", "ttft"), _relative)
            logs = minimise(both, logs, rounds=20)
        fitted[family] = logs
    return fitted


@dataclass(frozen=True, slots=True)
class _Residuals:
    """What `minimise` squares: the constants' distance from their priors, and the errors of some latencies."""

    law: Law
    table: Rows
    logs: NDArray[np.float64]
    free: NDArray[np.bool_]
    latencies: tuple[str, ...]
    error: Callable[[NDArray[np.float64]], NDArray[np.float64]]

    def __call__(self, chosen: NDArray[np.float64]) -> NDArray[np.float64]:
        centre, width = prior()
        logs = self.logs.copy()
        logs[self.free] = chosen
        period, first = self.law.predict(logs)
        parts = [_PRIOR_WEIGHT * (chosen - centre[self.free]) / width[self.free]]
        if "tpot" in self.latencies:
            parts.append(robust(np.nan_to_num(self.error(period / self.table.tpot_s)), _TPOT_SCALE))
        if "ttft" in self.latencies:
            parts.append(_TTFT_WEIGHT * robust(np.nan_to_num(self.error(first / self.table.ttft_s)), _TTFT_SCALE))
        return np.concatenate(parts)


def _relative(ratio: NDArray[np.float64]) -> NDArray[np.float64]:
    return ratio - 1


def as_rows(known: Sequence[Known]) -> Rows:
    """Return rows of one family as arrays."""
    terms = [each.terms for each in known]
    measured = [each.row.measured for each in known]
    return Rows(
        decode=steps_of(terms, "decode"),
        chunk=steps_of(terms, "chunk"),
        engine=np.array([ENGINES.index(each.case.engine) for each in known]),
        release=np.array([release_group(each.case.engine, each.case.version) for each in known]),
        offered=np.array([each.offered for each in terms]),
        running=np.array([each.running for each in terms]),
        chunks=np.array([each.chunks for each in terms]),
        mixtures=np.array([float(each.mixtures) for each in terms]),
        concurrency=np.array([float(each.case.concurrency) for each in known]),
        output_tokens=np.array([float(each.case.output_tokens) for each in known]),
        data_parallel=np.array([each.case.decode.strategy.attn_dp > 1 for each in known]),
        mixes=np.array([mixes_prefill(each.case.engine) for each in known]),
        tpot_s=np.array([(each.tpot_ms or np.nan) / 1e3 for each in measured]),
        ttft_s=np.array(
            [((not each.case.disaggregated and each.row.measured.ttft_ms) or np.nan) / 1e3 for each in known]
        ),
    )


def release_group(engine: str, version: str) -> int:
    """Return the group of releases of a version: 0 where it states no number."""
    number = release_number(version)
    if number is None:
        return 0
    starts = [release_number(each) or () for each in RELEASES[engine]]
    return sum(start <= number for start in starts)


def mixes_prefill(engine: str) -> bool:
    """Return whether an engine decodes in the steps that hold prompts: SGLang by default does not."""
    return engine != "sglang"


def _family(
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
        formats: dict[Dtype, float] = {each: _rounded(device[each]) for each in FORMATS} if products else {}
        lines[kind] = Roofline(
            compute_efficiency=_rounded(compute),
            memory_efficiency=_rounded(memory),
            overhead_s=0.0,
            exponent=2,
            row_block=64 if kind == "grouped_gemm_prefill" else 1,
            format_efficiency=formats,
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
            "mixes_prefill": mixes_prefill(engine),
            "basis": "fitted",
            "source": source,
            **constants,
        }
    )


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def held_out(row: ServingRow) -> bool:
    """Return whether a row is kept from the fit that is tested: 30 % of the configurations, all repeats together."""
    parts = (row.system, row.backend, row.precision, row.mode, row.isl, row.osl, row.concurrency, row.tp, row.moe_tp)
    key = "|".join(str(part) for part in (*parts, row.moe_ep, row.model.replace("R1", "V3")))
    return int(hashlib.sha256(key.encode()).hexdigest(), 16) % 100 < _HELD_OUT_PERCENT


def errors(
    fitted: dict[int, NDArray[np.float64]], rows: Sequence[Known]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the relative errors (TPOT, TTFT) of `rows` under fitted constants."""
    periods: list[NDArray[np.float64]] = []
    firsts: list[NDArray[np.float64]] = []
    for family, logs in fitted.items():
        own = [each for each in rows if each.family == family]
        if own:
            table = as_rows(own)
            period, first = Law(table).predict(logs)
            periods.append(period / table.tpot_s - 1)
            firsts.append(first / table.ttft_s - 1)
    return np.concatenate(periods), np.concatenate(firsts)


def cross_validation(rows: Sequence[Known]) -> list[str]:
    """Return lines of the errors on rows that the fit did not see: at random, by model, by system."""
    return [left_out_line(rows, name, left_out) for name, left_out in splits(rows).items()]


def splits(rows: Sequence[Known]) -> dict[str, Callable[[Known], bool]]:
    """Return what is left out in turn, by name: configurations at random, each model and system with many rows."""
    found: dict[str, Callable[[Known], bool]] = {
        f"{_HELD_OUT_PERCENT} % of configurations": lambda each: held_out(each.row)
    }
    for name, count in sorted(Counter(each.case.model.name for each in rows).items()):
        if count >= _LEAST_LEFT_OUT:
            found[f"model {name}"] = lambda each, name=name: each.case.model.name == name
    for name, count in sorted(Counter(each.case.cluster.device.name for each in rows).items()):
        if count >= _LEAST_LEFT_OUT:
            found[f"system {name}"] = lambda each, name=name: each.case.cluster.device.name == name
    return found


def left_out_line(rows: Sequence[Known], name: str, left_out: Callable[[Known], bool]) -> str:
    """Return the errors on the rows that are left out of a fit; families without such rows are not fitted."""
    tested = [each for each in rows if left_out(each)]
    families = {each.family for each in tested}
    fitted = fit([each for each in rows if each.family in families and not left_out(each)])
    return f"{name}: {_line(*errors(fitted, tested))}"


def _line(tpot: NDArray[np.float64], ttft: NDArray[np.float64]) -> str:
    parts = [f"{len(tpot)} rows"]
    for name, found in (("TPOT", tpot), ("TTFT", ttft)):
        known = [float(each) for each in found if not np.isnan(each)]
        if known:
            parts.append("{} MAPE {}, median {}, bias {}".format(name, *error_percents(score_of(known))))
    return "; ".join(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit on the rows of the files named, print the errors, and write the constants."""
    parser = argparse.ArgumentParser(prog="python -m moiety.validation.fit", description=main.__doc__)
    parser.add_argument("rows", nargs="+", type=Path, help="files of serving rows, JSON Lines")
    parser.add_argument("--out", type=Path, help="where the constants go")
    parser.add_argument("--cross-validate", action="store_true", help="also fit without each model and each system")
    given = parser.parse_args(arguments)
    read = [read_rows(path) for path in given.rows]
    serving = [each.row for found in read for each in found.rows if isinstance(each.row, ServingRow)]
    rows = known_rows([each.row for found in read for each in found.rows])
    if given.cross_validate:
        sys.stdout.writelines(f"{line}\n" for line in cross_validation(rows))
    fitted = fit(rows)
    sys.stdout.write(f"fitted on: {_line(*errors(fitted, rows))}\n")
    if given.out:
        constants = with_acceptance(_constants(fitted, rows), serving)
        text = constants.model_dump_json(indent=2, exclude_none=True) + "\n"
        write_all(given.out.parent, {given.out.name: text})


def _constants(fitted: dict[int, NDArray[np.float64]], rows: Sequence[Known]) -> ServingConstants:
    families = list[ServingFamily]()
    for index, architectures in enumerate(FAMILIES):
        own = [each for each in rows if each.family == index]
        groups = [(each.case.engine, release_group(each.case.engine, each.case.version)) for each in own]
        source = f"{len(own)} rows of {_sources(own)}"
        families.append(
            _family(
                architectures,
                fitted[index],
                source,
                lambda engine, group, groups=groups: groups.count((engine, group)) >= _LEAST_ROWS or group == 0,
            )
        )
    return ServingConstants(name=DEFAULT_SERVING, families=tuple(families))


def _sources(rows: Sequence[Known]) -> str:
    return ", ".join(sorted({each.row.source.partition(" (")[0] for each in rows}))


if __name__ == "__main__":
    main()
