"""Telemetry: tiles follow each other without a gap, waits are set apart, overlapping transfers count once."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from moiety.runtime.comm.priority import Priority
from moiety.runtime.telemetry import Telemetry


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now_s = 10.0

    def __call__(self) -> float:
        """Return the time it is set to."""
        return self.now_s


def recorded() -> Telemetry:
    clock = Clock()
    telemetry = Telemetry(clock=clock)
    telemetry.mark("before", 0)  # nobody records yet
    telemetry.begin()
    clock.now_s = 11.0
    telemetry.mark("attention", 0)
    telemetry.waited(11.5, 12.0, 12.0)
    telemetry.transferred("stage all_to_all", Priority.EXCHANGE, 11.0, 12.0, (5, 7))
    clock.now_s = 13.0
    telemetry.mark("dispatch", 0)
    telemetry.transferred("stage all_to_all", Priority.EXCHANGE, 12.5, 13.5, (0, 2))
    clock.now_s = 14.0
    telemetry.mark("attention", 1)
    telemetry.end()
    telemetry.mark("after", 1)
    return telemetry


def test_tiles_cover_the_time_and_waits_are_apart() -> None:
    telemetry = recorded()
    assert [(tile.name, tile.layer, tile.start_s, tile.end_s) for tile in telemetry.tiles] == [
        ("attention", 0, 10.0, 11.0),
        ("dispatch", 0, 11.0, 13.0),
        ("attention", 1, 13.0, 14.0),
    ]
    busy, waited = telemetry.seconds_by_op()
    assert busy == {"attention@0": 1.0, "dispatch@0": 1.5, "attention@1": 1.0}
    assert waited == {"attention@0": 0.0, "dispatch@0": 0.5, "attention@1": 0.0}


def test_communication_counts_once_however_many_transfers_are_under_way() -> None:
    assert recorded().communication() == (2.0, 0.5)


def test_events_stand_on_the_simulators_lanes() -> None:
    events = recorded().events(3, ("node", "network"), zero_s=10.0)
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert names == {0: "compute", 1: "link node", 2: "link network"}
    transfers = [event for event in events if event.get("cat") == "communication"]
    assert [(event["tid"], event["ts"], event["dur"]) for event in transfers] == [(2, 1e6, 1e6), (2, 2.5e6, 1e6)]
    assert {event["pid"] for event in events} == {3}
