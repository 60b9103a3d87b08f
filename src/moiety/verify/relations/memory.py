"""Claims about memory: bytes, shares that must add up, and what checkpointing can save."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.verify.claims import VARIANTS
from moiety.verify.observation import Observation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moiety.plan import Plan
    from moiety.verify.case import AuditCase
    from moiety.verify.claims import Claim

_TOLERANCE = 0.1
"""How far a claim may lie outside the range from the model's own data to everything that the plan reserves."""
_RESERVES = frozenset({"engine_reserve", "communication_buffers"})


def memory_per_gpu(case: AuditCase) -> Iterator[Observation]:
    """Compare bytes per GPU with the plan's: between what the model's data need and all that is reserved."""
    memory = case.pool.memory
    if memory is None:
        return
    parts = memory.bytes_by_kind
    least = sum(size for kind, size in parts.items() if kind not in _RESERVES)
    shown = ", ".join(f"{kind.replace('_', ' ')} {size / 1e9:.1f}" for kind, size in parts.items() if size)
    for variant in VARIANTS:
        for claim in case.claimed("memory_per_gpu", variant):
            high, low = memory.total_bytes * (1 + _TOLERANCE), least * (1 - _TOLERANCE)
            agrees = claim.interval.low <= high and claim.interval.high >= low
            yield Observation(
                rule="memory-per-gpu",
                outcome="supports" if agrees else "contradicts",
                claims=(claim.id,),
                arithmetic=f"claimed {claim.shown}; planned {memory.total_bytes / 1e9:.1f} GB ({shown} GB), "
                f"{least / 1e9:.1f} GB without reserve and communication buffers",
                consistent={claim.id: claim.in_unit(memory.total_bytes)},
            )


def shares_of_memory(case: AuditCase) -> Iterator[Observation]:
    """Check that utilisation is bytes over capacity; headroom is one minus utilisation."""
    capacity = case.plan.cluster.device.memory_bytes
    for variant in VARIANTS:
        for used in case.claimed("memory_utilization", variant):
            for size in case.claimed("memory_per_gpu", variant):
                share = size.interval / float(capacity)
                yield _adds_up(
                    used,
                    size,
                    share.value,
                    f"{size.shown} / {capacity / 1e9:g} GB",
                    agrees=share.overlaps(used.interval),
                )
            for left in case.claimed("memory_headroom", variant):
                rest = used.interval * -1.0 + 1.0
                yield _adds_up(left, used, rest.value, f"1 - {used.shown}", agrees=rest.overlaps(left.interval))


def checkpointing(case: AuditCase) -> Iterator[Observation]:
    """Check that a saving by recomputation stands where a backward pass keeps activations, and how large it is."""
    plan = case.plan
    for claim in case.claimed("activation_memory_reduction"):
        if claim.by != "checkpointing":
            yield Observation(
                rule="checkpointing",
                outcome="cannot judge",
                claims=(claim.id,),
                arithmetic=f"{claim.shown} of activation memory by {claim.by}: only checkpointing is modelled",
            )
        elif plan.workload.kind != "training":
            live = case.pool.memory.bytes_by_kind.get("activations", 0) if case.pool.memory else 0
            yield Observation(
                rule="checkpointing",
                outcome="supports" if claim.interval.low <= 0 else "contradicts",
                claims=(claim.id,),
                arithmetic=f"claimed {claim.shown}; checkpointing implies training: it drops what a backward "
                "pass would need. "
                f"The workload {plan.workload.name} is {plan.workload.kind}: no backward pass, no activation "
                "outlives its "
                f"layer ({live / 1e9:.2f} GB live at once, with checkpointing or without), so it saves 0 %",
                consistent={claim.id: 0.0},
            )
        else:
            yield _measured_checkpointing(case, claim)


def _measured_checkpointing(case: AuditCase, claim: Claim) -> Observation:
    """Return the comparison with the plan's stored activations, all layers recomputing and none."""
    off = case.plan.options.model_copy(update={"activation_checkpointing": False})
    kept = _stored(case.project_anyway(off))
    on = _stored(case.plan)
    saved = 1 - on / kept if kept else 0.0
    return Observation(
        rule="checkpointing",
        outcome="supports" if claim.interval.near(saved, _TOLERANCE) else "contradicts",
        claims=(claim.id,),
        arithmetic=f"claimed {claim.shown}; activations kept for the backward pass: {kept / 1e9:.1f} GB without, "
        f"{on / 1e9:.1f} GB with checkpointing as planned: {saved:.0%} less",
        consistent={claim.id: claim.in_unit(saved)},
    )


def _stored(plan: Plan) -> int:
    memory = plan.pools[-1].memory
    return memory.bytes_by_kind.get("stored_activations", 0) if memory else 0


def _adds_up(claim: Claim, other: Claim, value: float, formula: str, *, agrees: bool) -> Observation:
    return Observation(
        rule="shares-of-memory",
        outcome="supports" if agrees else "conflicts",
        claims=(claim.id,) if agrees else (claim.id, other.id),
        arithmetic=f"{formula} = {value:.1%}; claimed {claim.shown}",
        consistent={claim.id: claim.in_unit(value)},
    )
