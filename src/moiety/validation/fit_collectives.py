"""Collectives inside one domain of links: protocols of NCCL from measured rows.

Per architecture two families of protocols. Rings (all-reduce, all-gather, reduce-scatter) have LL, LL128 and Simple,
each with a start-up, a time per step and a share of the link, which an all-reduce uses better by a factor. All-to-all
sends straight to every peer, by LL up to the size of message at which NCCL leaves it, by Simple beyond. What timing
takes each benchmark is fitted beside them, so that it is no part of them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moiety.calibration.calibration import CollectiveProtocols, LibraryCollective, Protocol
from moiety.validation.fitting import Fitting, Split, each_value, every_fold, rounded_fields
from moiety.validation.least_squares import minimise, robust
from moiety.validation.serving_case import row_cluster
from moiety.validation.skipped import SkippedRow
from moiety.validation.system_row import SystemRow
from moiety.validation.transfer_case import COLLECTIVES, benchmark, row_device, timed_us

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from moiety.validation.serving_row import ServingRow

LL_PEER_BYTES = 16_384
"""Largest message to one peer that NCCL sends by LL (its parameter NCCL_P2P_LL_THRESHOLD)."""
_SCALE, _PRIOR_WIDTH, _PRIOR_WEIGHT, _ROUNDS = 0.1, 1.5, 0.05, 60
_HOST_S = 1e-6
"""What timing takes a benchmark of captured or queued launches, at most."""
_LATER = (0.0, 0.7, 1.4)
"""Logarithms that all start-up times are moved by, to begin the fit elsewhere: launches from Python take longer."""


@dataclass(frozen=True, slots=True)
class _Family:
    """Collectives that share protocols, and the constants that their fit starts from."""

    collectives: frozenset[LibraryCollective]
    start_s: tuple[float, ...]
    step_s: tuple[float, ...]
    share: tuple[float, ...]
    share_exponent: float
    most_peer_bytes: tuple[int | None, ...]

    @property
    def centre(self) -> NDArray[np.float64]:
        """Logarithms of start-ups, steps, shares and all-reduce's gain; the exponent."""
        return np.array([*np.log([*self.start_s, *self.step_s, *self.share]), 0.0, self.share_exponent])

    def protocols(
        self,
        constants: NDArray[np.float64],
        architecture: str,
        largest: int,
        names: frozenset[LibraryCollective],
        benchmarks: Sequence[str] = (),
    ) -> list[CollectiveProtocols]:
        """Return what the catalogue holds of the collectives named, for constants in the order of `centre`.

        Logarithms of what timing takes each of the benchmarks follow them.
        """
        constants, hosts = np.split(constants, [len(self.centre)])
        host_s = dict(zip(benchmarks, np.exp(hosts).tolist(), strict=True))
        start, step, share = np.exp(constants[:-2]).reshape(3, -1)
        gains = {names - _REDUCED: 1.0, names & _REDUCED: float(np.exp(constants[-2]))}
        return [
            CollectiveProtocols(
                collectives=tuple(sorted(alike)),
                architectures=(architecture,),
                largest_group=largest,
                share_exponent=float(np.clip(constants[-1], -2, 2)),
                host_s=host_s,
                protocols=tuple(
                    Protocol(start_s=a, step_s=b, share=c, most_peer_bytes=limit)
                    for a, b, c, limit in zip(
                        start.tolist(),
                        step.tolist(),
                        np.clip(share * gain, 1e-6, 1.0).tolist(),
                        self.most_peer_bytes,
                        strict=True,
                    )
                ),
            )
            for alike, gain in gains.items()
            if alike
        ]


_REDUCED: frozenset[LibraryCollective] = frozenset({"all_reduce"})
_FAMILIES = (
    _Family(
        frozenset({"all_gather", "all_reduce", "reduce_scatter"}),
        start_s=(5e-6, 8e-6, 15e-6),
        step_s=(1e-6, 1e-6, 2e-6),
        share=(0.1, 0.5, 0.8),
        share_exponent=0.25,
        most_peer_bytes=(None, None, None),
    ),
    _Family(
        frozenset({"all_to_all"}),
        start_s=(5e-6, 10e-6),
        step_s=(1e-6, 1e-6),
        share=(0.1, 0.7),
        share_exponent=0.1,
        most_peer_bytes=(LL_PEER_BYTES, None),
    ),
)
"""What LL, LL128 and Simple are known for."""


@dataclass(frozen=True, slots=True)
class Timed:
    """A measured collective inside one domain of links."""

    row: SystemRow
    architecture: str
    size_bytes: float
    bandwidth_bytes_per_s: float
    measured_us: float

    @property
    def collective(self) -> LibraryCollective:
        """What was asked for."""
        return COLLECTIVES[self.row.model]

    @property
    def gpus(self) -> int:
        """Members of the group."""
        return self.row.n_gpus or 1

    def error(self, known: Sequence[CollectiveProtocols]) -> float:
        """Return the relative error of its time by the first protocols that are for it."""
        own = next(e for e in known if self.architecture in e.architectures and self.collective in e.collectives)
        return timed_us(self.row, own, self.size_bytes, self.gpus, self.bandwidth_bytes_per_s) / self.measured_us - 1


def timed_rows(rows: Sequence[ServingRow | SystemRow]) -> list[Timed]:
    """Return the rows that name a library's collective, its bytes, its GPUs in one domain, and a time."""
    found = list[Timed]()
    for row in rows:
        if not isinstance(row, SystemRow) or row.kind != "comm" or row.model not in COLLECTIVES:
            continue
        size, us = row.metric("bytes"), row.metric("us")
        if size is None or not us:
            continue
        try:
            device = row_device(row)
            cluster = row_cluster(device.name, row.n_gpus or 1)
        except SkippedRow:
            continue
        if 1 < (row.n_gpus or 1) <= cluster.tiers[0].num_gpus:
            found.append(Timed(row, device.architecture, size, cluster.bandwidth_per_gpu(0), us))
    return found


def fit_collectives(rows: Sequence[Timed]) -> list[CollectiveProtocols]:
    """Return the protocols of every architecture and family of collectives that was measured."""
    found = list[CollectiveProtocols]()
    for architecture in sorted({each.architecture for each in rows}):
        for family in _FAMILIES:
            own = [each for each in rows if each.architecture == architecture and each.collective in family.collectives]
            if own:
                found += _fit(family, architecture, own)
    return found


def collective_errors(known: Sequence[CollectiveProtocols], rows: Sequence[Timed]) -> dict[str, list[float]]:
    """Return the relative errors of the rows' times."""
    return {"collective": [each.error(known) for each in rows]}


def _fit(family: _Family, architecture: str, rows: Sequence[Timed]) -> list[CollectiveProtocols]:
    """Return the protocols whose times are nearest to the measured ones, by the relative errors."""
    largest, benchmarks = max(each.gpus for each in rows), sorted({benchmark(each.row) for each in rows})
    centre = np.concatenate([family.centre, np.full(len(benchmarks), np.log(_HOST_S))])
    names: frozenset[LibraryCollective] = frozenset(each.collective for each in rows)
    later = np.zeros_like(centre)
    later[: 2 * len(family.start_s)] = 1.0

    def residuals(constants: NDArray[np.float64]) -> NDArray[np.float64]:
        known = family.protocols(constants, architecture, largest, names, benchmarks)
        errors = np.array([each.error(known) for each in rows])
        return np.concatenate([robust(errors, _SCALE), _PRIOR_WEIGHT * (constants - centre) / _PRIOR_WIDTH])

    fitted = [minimise(residuals, centre + shift * later, rounds=_ROUNDS) for shift in _LATER]
    best = min(fitted, key=lambda each: float(np.square(residuals(each)).sum()))
    return [rounded_fields(each) for each in family.protocols(best, architecture, largest, names, benchmarks)]


def _splits(rows: Sequence[Timed]) -> list[Split[Timed]]:
    hopper = [each for each in rows if each.architecture == "hopper"]
    by_hardware = each_value(lambda each: each.row.hardware, hopper)
    return [
        Split(
            "a fifth of the rows at a time",
            every_fold(lambda each: f"{each.row.id}|{each.row.hardware}|{each.size_bytes}"),
        ),
        *(Split(f"rows of {hardware}", (left_out,)) for hardware, left_out in by_hardware.items()),
    ]


def _rewritten(text: str, known: Sequence[CollectiveProtocols], _rows: Sequence[Timed]) -> str:
    """Return a calibration with its protocols replaced."""
    calibration = json.loads(text)
    calibration["collectives"]["protocols"] = [each.model_dump(mode="json") for each in known]
    return json.dumps(calibration, indent=2) + "\n"


COLLECTIVES_FIT = Fitting("collectives", timed_rows, fit_collectives, collective_errors, _splits, _rewritten)
