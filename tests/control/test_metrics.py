"""Metrics of a state, read back by Prometheus' own parser."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from moiety.control.apply import apply
from moiety.control.events import DeviceReading, ExpertCounts, RequestMetrics
from moiety.control.metrics import metrics_text
from moiety.control.policy import Policy
from moiety.control.working import working_map
from tests.control.deployments import beats, deployment, lose, started

if TYPE_CHECKING:
    from moiety.control.state import State


def read(state: State) -> dict[tuple[str, ...], float]:
    """Return the samples by name and values of labels, these by their names."""
    return {
        (sample.name, *(sample.labels[key] for key in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(metrics_text(state))
        for sample in family.samples
    }


def test_before_anything_is_known_nothing_is_claimed() -> None:
    found = read(started(deployment()))
    assert found["moiety_epoch",] == 1
    assert found["moiety_ranks", "working"] == 8
    assert found["moiety_expert_moves_total",] == found["moiety_recoveries_total",] == 0
    assert not {name for name, *_ in found} & {"moiety_power_watts", "moiety_expert_load", "moiety_balancedness"}


def test_balance_loads_and_watts_are_those_that_were_told() -> None:
    state = started(deployment())
    counts = np.random.default_rng(3).integers(1, 100, (2, 16)).astype(float)
    state = apply(ExpertCounts(1.0, counts), beats(state, 1.0))
    state = apply(DeviceReading(1.0, 5, power_w=345.5), state)
    found = read(state)
    assert found["moiety_power_watts", "5"] == 345.5
    assert ("moiety_power_watts", "4") not in found
    for layer, (row, slots) in enumerate(zip(counts, working_map(state), strict=True)):
        loads = row[slots].reshape(8, -1).sum(axis=1)
        assert found["moiety_balancedness", str(layer)] == pytest.approx(loads.mean() / loads.max())
        shares = [found["moiety_expert_load", str(expert), str(layer)] for expert in range(16)]
        assert shares == pytest.approx(row / row.sum())


def test_what_is_asked_for_and_what_waits_is_shown_once_it_was_told() -> None:
    assert ("moiety_demand_tokens_per_second",) not in read(started(deployment()))
    found = read(apply(RequestMetrics(1.0, 200.0, backlog_tokens=600.0), started(deployment())))
    assert found["moiety_backlog_tokens",] == 600.0
    assert found["moiety_demand_tokens_per_second",] == 200.0 + 600.0 / Policy().drain_s


def test_a_recovery_and_its_moves_are_counted() -> None:
    state, _ = lose(started(deployment(), 24), [3], 10.0)
    found = read(state)
    assert found["moiety_recoveries_total",] == 1
    assert found["moiety_epoch",] == state.epoch > 1
    assert found["moiety_expert_moves_total",] == state.moves
    assert found["moiety_ranks", "fenced"] == 1
    assert found["moiety_ranks", "working"] == 7
    assert found["moiety_expert_moves_pending",] == 0
