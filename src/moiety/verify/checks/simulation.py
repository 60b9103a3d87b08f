"""The simulated step, again: laws of every schedule, the same figures as in the file, and a network that matters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.projection.project import evaluate
from moiety.verify.findings import Finding, judged

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moiety.plan import Projection
    from moiety.verify.inspection import Inspection

_SAME = 1e-6
_TIME_SLACK_S = 1e-9


def timelines(inspection: Inspection) -> Iterator[Finding]:
    """Check that critical path <= makespan <= sum of work, and that exposed and hidden communication add up."""
    for pool, phase in zip(inspection.plan.pools, inspection.evaluated().phases, strict=True):
        timeline = phase.outcome.timeline
        if timeline is None:
            continue
        subject = inspection.name_of(pool)
        order = (timeline.critical_path_s, timeline.makespan_s, timeline.work_s)
        yield judged(
            "timeline-bounds",
            subject,
            f"critical path {order[0]:.6f} s <= makespan {order[1]:.6f} s <= work {order[2]:.6f} s, "
            f"{len(timeline.steps.tasks):,} tasks",
            holds=order[0] <= order[1] + _TIME_SLACK_S and order[1] <= order[2] + _TIME_SLACK_S,
            expected=order[0],
            actual=order[1],
        )
        lanes = zip(timeline.communication_s, timeline.exposed_s, timeline.compute_busy_s, strict=True)
        wrong = [
            (moving, exposed, busy)
            for moving, exposed, busy in lanes
            if not -_TIME_SLACK_S <= exposed <= moving + _TIME_SLACK_S or busy + exposed > timeline.makespan_s + 1e-6
        ]
        mean = sum(timeline.communication_s) / len(timeline.communication_s)
        bare = sum(timeline.exposed_s) / len(timeline.exposed_s)
        yield judged(
            "timeline-overlap",
            subject,
            f"communication {mean:.6f} s = {mean - bare:.6f} s hidden + {bare:.6f} s exposed, averaged over "
            f"{len(timeline.exposed_s)} lanes; computing and exposed never exceed the step",
            holds=not wrong,
        )


def reproduces(inspection: Inspection) -> Iterator[Finding]:
    """Check that evaluating the plan's decisions again gives the figures that stand in the file."""
    plan, again = inspection.plan, inspection.evaluated().plan
    if plan.provenance.calibration != inspection.calibration.name:
        message = (
            f"the plan was made with calibration {plan.provenance.calibration}, this is {inspection.calibration.name}"
        )
        yield judged("reproduces", "the plan", message, holds=False, otherwise="warning")
        return
    pairs = [("the plan", plan.projection, again.projection)]
    pairs += [
        (inspection.name_of(pool), pool.projection, new.projection)
        for pool, new in zip(plan.pools, again.pools, strict=True)
    ]
    for subject, stated, computed in pairs:
        differing = _differing(stated, computed)
        yield judged(
            "reproduces",
            subject,
            f"{'; '.join(differing)}" if differing else "evaluated again, every figure of the projection is the same",
            holds=not differing,
        )
    for pool, new in zip(plan.pools, again.pools, strict=True):
        same = pool.memory == new.memory
        yield judged(
            "reproduces",
            f"{inspection.name_of(pool)}, memory",
            "evaluated again, the memory plan is the same"
            if same
            else "evaluated again, the memory plan is another one",
            holds=same,
        )


def network_matters(inspection: Inspection) -> Iterator[Finding]:
    """Check that half the outermost bandwidth never helps, and slows a plan with exposed traffic between nodes."""
    plan = inspection.plan
    cluster = plan.cluster
    outermost = cluster.tiers[-1]
    slower = outermost.model_copy(update={"bandwidth_bytes_per_s": outermost.bandwidth_bytes_per_s / 2})
    halved = plan.model_copy(update={"cluster": cluster.model_copy(update={"tiers": (*cluster.tiers[:-1], slower)})})
    now = evaluate(plan, inspection.calibration, timing="folded").plan.projection
    then = evaluate(halved, inspection.calibration, timing="folded").plan.projection
    if now is None or then is None:
        return
    before, after = now.throughput_tokens_per_s, then.throughput_tokens_per_s
    crosses = now.cross_node_bytes_per_token > 0 and len(cluster.tiers) > 1
    message = (
        f"half of {outermost.name}'s bandwidth: {before:,.0f} -> {after:,.0f} tokens/s "
        f"({after / before - 1:+.1%}), exposed "
        f"communication {now.exposed_communication_fraction:.1%} -> {then.exposed_communication_fraction:.1%}; "
        f"{now.cross_node_bytes_per_token / 1e6:.3f} MB per token cross nodes"
    )
    if after > before * (1 + _SAME):
        yield judged("network-matters", "the plan", message, holds=False, expected=before, actual=after)
        return
    felt = after < before * (1 - _SAME) or not crosses or then.exposed_communication_fraction <= _SAME
    yield judged("network-matters", "the plan", message, holds=felt, otherwise="warning", expected=before, actual=after)


def _differing(stated: Projection | None, computed: Projection | None) -> list[str]:
    """Return which figures differ, with both values."""
    if stated is None or computed is None:
        return ["the projection is missing"]
    found: list[str] = []
    for name in type(computed).model_fields:
        old, new = getattr(stated, name), getattr(computed, name)
        if isinstance(old, float) and isinstance(new, float):
            if abs(old - new) > _SAME * max(abs(old), abs(new)):
                found.append(f"{name}: stated {old:.9g}, computed {new:.9g}")
        elif old != new:
            found.append(f"{name}: stated and computed differ")
    return found
