"""A simulated step as a Chrome trace, for Perfetto: a process a rank class, a thread a stream."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from moiety.sim.timeline import Timeline

MAX_EVENTS = 250_000
"""Most ops in one trace: about 40 MB of text, which viewers still open."""
_MICROSECONDS = 1e6
_OUTSIDE = {-1: "outside the layers", -2: "gate"}


@dataclass(frozen=True, slots=True)
class TracedPool:
    """One pool's step: the timeline, and the words for its lanes."""

    role: str
    strategy: str
    timeline: Timeline
    tiers: tuple[str, ...]
    """Names of the cluster's link tiers, the innermost first."""


def chrome_trace(pools: Sequence[TracedPool], title: str) -> str:
    """Return the JSON text of the step of every pool, times in microseconds; the same steps give the same bytes.

    Of more than 250,000 ops those that start first are kept, and `otherData.ops_left_out` says how many are missing.
    """
    events: list[dict[str, object]] = []
    left_out = 0
    room = MAX_EVENTS
    first_process = 1
    for pool in pools:
        steps = pool.timeline.steps
        events += _names(pool, first_process)
        complete = list(_ops(pool, first_process))
        complete.sort(key=_order)
        events += complete[:room]
        left_out += max(len(complete) - room, 0)
        room -= min(len(complete), room)
        first_process += steps.num_stages * steps.num_classes
    other = {"title": title, "ops_left_out": left_out}
    head = json.dumps({"displayTimeUnit": "ms", "otherData": other})[:-1]
    lines = ",\n".join(json.dumps(event, allow_nan=False) for event in events)
    return f'{head}, "traceEvents": [\n{lines}\n]}}\n'


def _order(event: dict[str, object]) -> tuple[float, int, int]:
    when, process, thread = event["ts"], event["pid"], event["tid"]
    assert isinstance(when, float), "microseconds"
    assert isinstance(process, int), "a number"
    assert isinstance(thread, int), "a number"
    return when, process, thread


def _names(pool: TracedPool, first_process: int) -> Iterator[dict[str, object]]:
    """Yield the events that name processes and threads."""
    timeline, steps = pool.timeline, pool.timeline.steps
    for lane in range(steps.num_stages * steps.num_classes):
        stage, which = divmod(lane, steps.num_classes)
        ranks = timeline.lane_weights[lane]
        words = (
            f"{pool.role} {pool.strategy}: stage {stage}, "
            if steps.num_stages > 1
            else f"{pool.role} {pool.strategy}: "
        )
        words += f"{ranks} GPU{'s' if ranks > 1 else ''} of each instance"
        words += f" (class {which + 1} of {steps.num_classes}, the busiest first)" if steps.num_classes > 1 else ""
        process = first_process + lane
        yield _meta("process_name", process, 0, {"name": words})
        yield _meta("process_sort_index", process, 0, {"sort_index": process})
        for stream in range(1 + steps.num_tiers):
            tier = pool.tiers[stream - 1] if 0 < stream <= len(pool.tiers) else f"tier {stream - 1}"
            yield _meta("thread_name", process, stream, {"name": f"link {tier}" if stream else "compute"})
            yield _meta("thread_sort_index", process, stream, {"sort_index": stream})


def _meta(name: str, process: int, thread: int, arguments: dict[str, object]) -> dict[str, object]:
    return {"name": name, "ph": "M", "pid": process, "tid": thread, "args": arguments}


def _ops(pool: TracedPool, first_process: int) -> Iterator[dict[str, object]]:
    """Yield a complete event for every op on every stream that it holds."""
    timeline, steps = pool.timeline, pool.timeline.steps
    stride = 1 + steps.num_tiers
    for index, task in enumerate(steps.tasks):
        layer = steps.layers[index]
        arguments: dict[str, object] = {
            "layer": layer if layer >= 0 else _OUTSIDE[layer],
            "micro_batch": steps.microbatches[index],
        }
        if task.priority:
            arguments["bulk"] = True
        for resource in task.resources:
            lane, stream = divmod(resource, stride)
            yield {
                "name": task.name,
                "cat": "communication" if stream else "compute",
                "ph": "X",
                "pid": first_process + lane,
                "tid": stream,
                "ts": round(timeline.start_s[index] * _MICROSECONDS, 3),
                "dur": round(task.duration_s * _MICROSECONDS, 3),
                "args": arguments,
            }
