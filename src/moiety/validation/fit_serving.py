"""The serving constants from measured runs: per family of devices, per engine, per group of its releases.

Serving rows that ran without speculation are fitted, and offline runs; of disaggregated ones the time per output token,
for prompts are computed elsewhere there; and the steps of prefill and decode that were measured by themselves. The
constants are those of `fit_law.py`: per family of devices what its kernels and links reach, per engine what it adds,
per group of releases a few of these again, held near the engine's; `fit_families.py` fits them.
Rows that ran with speculation decide one more, the share of right guesses.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from moiety.calibration.scheduling import scheduling
from moiety.calibration.serving import PREFILL_APART, ServingConstants, ServingFamily
from moiety.calibration.serving_catalog import DEFAULT_SERVING
from moiety.validation.fit_acceptance import with_acceptance
from moiety.validation.fit_families import fit_families
from moiety.validation.fit_law import ENGINES, RELEASES, Law, Rows, steps_of
from moiety.validation.fit_terms import phase_terms, row_terms
from moiety.validation.fitting import Fitting, Split, each_value, fold_of
from moiety.validation.offline_case import as_closed_loop
from moiety.validation.phase_case import PHASES, as_steps, phase_case
from moiety.validation.predict import ServingPredictor
from moiety.validation.serving_case import serving_case
from moiety.validation.serving_constants import (
    FAMILIES,
    release_group,
    serving_family,
    start_constants,
)
from moiety.validation.skipped import SkippedRow
from moiety.validation.system_row import SystemRow

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from moiety.validation.fit_families import Logs
    from moiety.validation.fit_terms import RowTerms
    from moiety.validation.serving_case import ServingCase
    from moiety.validation.serving_row import ServingRow

_LEAST_ROWS = 12
"""Rows that a group of releases needs for constants of its own in the catalogue."""
_HELD_OUT_PERCENT = 30
HELD_OUT = f"{_HELD_OUT_PERCENT} % of the configurations"
"""The name of the split by `held_out`."""
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


def known_rows(rows: Sequence[ServingRow | SystemRow]) -> list[Known]:
    """Return the rows that can be predicted, with their terms."""
    start, found = ServingPredictor(start_constants()), list[Known]()
    for row in rows:
        try:
            if isinstance(row, SystemRow) and row.phase in PHASES:
                found.append(_known_phase(row, start))
            else:
                found.append(_known_requests(row, start))
        except SkippedRow:
            continue
    return found


def _known_requests(row: ServingRow | SystemRow, start: ServingPredictor) -> Known:
    """Return a row of whole requests; raise SkippedRow where it cannot be predicted."""
    offline = isinstance(row, SystemRow)
    loop = as_closed_loop(row) if offline else row.model_copy(update={"measured": row.latencies})
    case = serving_case(loop)
    pool, apart = start.pool(case, case.decode), case.disaggregated
    return Known(loop, case, row_terms(pool, case.concurrency, computes_prompts=not apart, offline=offline))


def _known_phase(row: SystemRow, start: ServingPredictor) -> Known:
    """Return a row of a phase by itself; raise SkippedRow where it cannot be predicted.

    Its release is not stated: it stands for the newest, as it is predicted.
    """
    case, schedule = phase_case(row)
    if case.engine not in ENGINES:
        raise SkippedRow("of the kernels alone no engine's constants can be told")
    case = replace(case, version=RELEASES[case.engine][-1])
    return Known(as_steps(row, case, schedule), case, phase_terms(start.pool(case, case.decode), schedule))


def fit_serving(rows: Sequence[Known]) -> Logs:
    """Return the logarithms of the constants of each family, fitted on `rows` that ran without speculation."""
    tables = dict[int, Rows]()
    for family in range(len(FAMILIES)):
        own = [each for each in rows if each.family == family and not each.case.draft_tokens]
        if own:
            tables[family] = as_rows(own)
    return fit_families(tables, len(FAMILIES))


def as_rows(known: Sequence[Known]) -> Rows:
    """Return rows of one family as arrays."""
    terms = [each.terms for each in known]
    measured = [each.row.measured for each in known]
    return Rows(
        decode=steps_of(terms, "decode"),
        chunk=steps_of(terms, "chunk"),
        filled=steps_of(terms, "filled"),
        engine=np.array([ENGINES.index(each.case.engine) for each in known]),
        release=np.array([release_group(each.case.engine, each.case.version) for each in known]),
        offered=np.array([each.offered for each in terms]),
        running=np.array([each.running for each in terms]),
        sequences=np.array([float(each.sequences) for each in terms]),
        thrown_out=np.array([each.thrown_out for each in terms]),
        chunks=np.array([each.chunks for each in terms]),
        filled_chunks=np.array([each.filled_chunks for each in terms]),
        mixtures=np.array([float(each.mixtures) for each in terms]),
        captured_prompts=np.array([each.captured_prompts for each in terms]),
        prompts_alone=np.array([each.prompts_alone for each in terms]),
        admission_steps=np.array([each.admission_steps for each in terms]),
        equal_lengths=np.array([each.equal_lengths for each in terms]),
        cold=np.array([each.cold for each in terms]),
        fp4_experts=np.array([each.fp4_experts for each in terms]),
        concurrency=np.array([float(each.case.concurrency) for each in known]),
        output_tokens=np.array([float(each.case.output_tokens) for each in known]),
        groups=np.array([float(each.case.decode.strategy.attn_dp) for each in known]),
        mixes=np.array([each.mixes for each in terms]),
        whole_prompts=np.array([scheduling(each.case.engine).takes_whole_prompts for each in known]),
        tpot_s=np.array([(each.tpot_ms or np.nan) / 1e3 for each in measured]),
        ttft_s=np.array(
            [((not each.case.disaggregated and each.row.measured.ttft_ms) or np.nan) / 1e3 for each in known]
        ),
    )


def held_out(row: ServingRow) -> bool:
    """Return whether a row is kept from the fit that is tested: 30 % of the configurations, all repeats together."""
    parts = (row.system, row.backend, row.precision, row.mode, row.isl, row.osl, row.concurrency, row.tp, row.moe_tp)
    key = "|".join(str(part) for part in (*parts, row.moe_ep, row.model.replace("R1", "V3")))
    return fold_of(key, 100) < _HELD_OUT_PERCENT


def serving_errors(fitted: Logs, rows: Sequence[Known]) -> dict[str, list[float]]:
    """Return the relative errors of the latencies of `rows` under fitted constants."""
    found: dict[str, list[float]] = {"TPOT": [], "TTFT": [], "steps of prompts alone": []}
    for family, logs in fitted.items():
        own = [each for each in rows if each.family == family and not each.case.draft_tokens]
        if own:
            table = as_rows(own)
            period, first = Law(table).predict(logs)
            steps, alone = period / table.tpot_s, table.prompts_alone
            of_steps = ("TPOT", steps[~alone]), ("steps of prompts alone", steps[alone])
            for name, ratio in (*of_steps, ("TTFT", first / table.ttft_s)):
                found[name] += (ratio[~np.isnan(ratio)] - 1).tolist()
    return found


def _splits(rows: Sequence[Known]) -> list[Split[Known]]:
    by_model = each_value(lambda each: each.case.model.name, _common(rows, lambda each: each.case.model.name))
    by_system = each_value(_device_name, _common(rows, _device_name))
    return [
        Split(HELD_OUT, (lambda each: held_out(each.row),)),
        *(Split(f"model {name}", (left_out,)) for name, left_out in by_model.items()),
        *(Split(f"system {name}", (left_out,)) for name, left_out in by_system.items()),
    ]


def _device_name(row: Known) -> str:
    return row.case.cluster.device.name


def _common(rows: Sequence[Known], key: Callable[[Known], str]) -> list[Known]:
    """Return the rows whose model or system has enough of them to be left out by itself."""
    count = Counter(map(key, rows))
    return [each for each in rows if count[key(each)] >= _LEAST_LEFT_OUT]


def _rewritten(text: str, fitted: Logs, rows: Sequence[Known]) -> str:
    """Return the constants of every family; releases with few rows take their engine's.

    Those of deployments with prefill apart stay what they were: `fit_apart.py` makes them, given these.
    """
    families = list[ServingFamily]()
    for index, architectures in enumerate(FAMILIES):
        own = [each for each in rows if each.family == index and not each.case.draft_tokens]
        groups = [(each.case.engine, release_group(each.case.engine, each.case.version)) for each in own]
        source = f"{len(own)} rows of {_sources(own)}"
        families.append(
            serving_family(
                architectures,
                fitted[index],
                source,
                lambda engine, group, groups=groups: groups.count((engine, group)) >= _LEAST_ROWS or group == 0,
            )
        )
    guessing = [
        (each.case, each.row.measured.tpot_ms / 1e3)
        for each in rows
        if each.case.draft_tokens and each.row.measured.tpot_ms is not None
    ]
    apart = ServingConstants.model_validate_json(text).apart if text else PREFILL_APART
    made = ServingConstants(name=DEFAULT_SERVING, apart=apart, families=tuple(families))
    constants = with_acceptance(made, guessing)
    return constants.model_dump_json(indent=2, exclude_none=True) + "\n"


def _sources(rows: Sequence[Known]) -> str:
    return ", ".join(sorted({each.row.source.partition(" (")[0] for each in rows}))


SERVING_FIT = Fitting("serving", known_rows, fit_serving, serving_errors, _splits, _rewritten)
