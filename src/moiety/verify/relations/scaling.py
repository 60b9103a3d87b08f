"""Claims about more GPUs: how near to linear, and how many."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.cluster.resize import resized
from moiety.errors import InputError
from moiety.projection.project import evaluate
from moiety.verify.case import best_plan
from moiety.verify.observation import Observation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moiety.plan import Plan
    from moiety.verify.case import AuditCase
    from moiety.verify.claims import Claim

_NEARLY_LINEAR = 0.9
"""Share of the linear throughput from which scaling is called near-linear."""


def scaling(case: AuditCase) -> Iterator[Observation]:
    """Plan the claimed strategy on as many GPUs, with the same work per GPU (weak) and in all (strong)."""
    for claim in case.claimed("linear_scaling_gpus"):
        gpus = round(claim.number)
        base = evaluate(case.plan, case.calibration, timing="estimated").plan
        start = _throughput(base)
        results = {kind: _grown(case, gpus, more_work=kind == "weak") for kind in ("weak", "strong")}
        failed = [f"{kind}: {plan}" for kind, plan in results.items() if isinstance(plan, str)]
        if failed or start is None:
            yield _observed(claim, "cannot judge", "; ".join(failed) or "the plan has no projection")
            continue
        shares = {
            k: (_throughput(p) or 0.0) / start * base.num_gpus / gpus
            for k, p in results.items()
            if not isinstance(p, str)
        }
        texts = [
            f"{kind} scaling ({'the same work per GPU' if kind == 'weak' else 'the same work in all'}): "
            f"{share:.0%} of linear, by copies of the instance"
            for kind, share in shares.items()
        ]
        linear = [kind for kind, share in shares.items() if share >= _NEARLY_LINEAR]
        text = (
            f"from {base.num_gpus} to {gpus} GPUs, {'; '.join(texts)}; near-linear (90 %) in "
            f"{' and '.join(linear) or 'neither'}"
        )
        yield _observed(claim, "supports" if "weak" in linear else "contradicts", text)


def supported_size(case: AuditCase) -> Iterator[Observation]:
    """Plan the claimed strategy on as many GPUs: it must be legal and fit."""
    for claim in case.claimed("supported_gpus"):
        gpus = round(claim.number)
        plan = _grown(case, gpus, more_work=True)
        if isinstance(plan, str):
            yield _observed(claim, "contradicts", f"{gpus} GPUs: {plan}")
            continue
        memory = plan.pools[-1].memory
        used = f"{memory.total_bytes / 1e9:.1f} of {memory.capacity_bytes / 1e9:.1f} GB a GPU" if memory else ""
        yield _observed(claim, "supports", f"{gpus} GPUs: {plan.pools[-1].strategy.name} is legal and fits, {used}")


def _grown(case: AuditCase, gpus: int, *, more_work: bool) -> Plan | str:
    """Return the plan with more copies of the instance, estimated, or why there is none."""
    base = case.plan
    per_instance = case.pool.strategy.gpus_per_instance
    if gpus % per_instance:
        return f"instances of {per_instance} GPUs do not divide {gpus}"
    try:
        cluster = resized(base.cluster, gpus)
    except InputError as error:
        return str(error)
    strategy = case.pool.strategy.model_copy(update={"instances": gpus // per_instance})
    factor = gpus / base.num_gpus if more_work else 1.0
    workload = base.workload
    loads = {
        name: type(value)(value * factor)
        for name in ("tokens_in_flight", "concurrency", "request_rate_per_s")
        if (value := getattr(workload, name)) is not None
    }
    grown = base.model_copy(update={"cluster": cluster, "workload": workload.model_copy(update=loads)})
    return best_plan(grown, strategy, base.options, case.calibration)


def _throughput(plan: Plan) -> float | None:
    return plan.projection.throughput_tokens_per_s if plan.projection else None


def _observed(claim: Claim, outcome: str, text: str) -> Observation:
    return Observation.model_validate(
        {"rule": "scaling", "outcome": outcome, "claims": (claim.id,), "arithmetic": f"claimed {claim.shown}; {text}"}
    )
