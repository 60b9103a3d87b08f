"""Precedent: whether anyone has published as high a utilisation as a plan projects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.verify.findings import Finding, judged
from moiety.verify.published import published_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moiety.verify.inspection import Inspection


def utilization(inspection: Inspection) -> Iterator[Finding]:
    """Compare each pool's model FLOPs utilisation with the highest published for a model with as many experts."""
    moe = inspection.plan.model.moe
    experts = moe.num_experts if moe else 1
    rows = published_for(experts)
    if not rows:
        return
    best = rows[0]
    for pool in inspection.plan.pools:
        if pool.projection is None:
            continue
        projected = pool.projection.model_flops_utilization
        yield judged(
            "utilization-precedent",
            inspection.name_of(pool),
            f"projected {projected:.1%}; the highest of {len(rows)} published for at least {experts} experts is "
            f"{best.utilization:.1%} ({best.phase} of {best.model} on {best.num_gpus} {best.device}: {best.source}); "
            "the constants were fitted on kernels that ran alone",
            holds=projected <= best.utilization,
            expected=best.utilization,
            actual=projected,
            otherwise="warning",
        )
