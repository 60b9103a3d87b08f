"""Provenance: every figure says what it rests on, and assumptions are named."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.verify.findings import Finding, judged

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moiety.verify.inspection import Inspection


def provenance(inspection: Inspection) -> Iterator[Finding]:
    """Check that every figure of every projection has a basis; the plan names its version and calibration."""
    plan = inspection.plan
    found = [("the plan", plan.projection)] + [(inspection.name_of(pool), pool.projection) for pool in plan.pools]
    found += [(f"variant {variant.name}", variant.projection) for variant in plan.comparison]
    for subject, figures in found:
        if figures is None:
            continue
        named = set(type(figures).model_fields) - {"provenance"}
        missing = sorted(named - set(figures.provenance))
        extra = sorted(set(figures.provenance) - named)
        yield judged(
            "provenance",
            subject,
            f"{len(named) - len(missing)} of {len(named)} figures have a basis"
            + (f"; missing: {', '.join(missing)}" if missing else "")
            + (f"; of no figure: {', '.join(extra)}" if extra else ""),
            holds=not missing and not extra,
            expected=float(len(named)),
            actual=float(len(figures.provenance)),
        )
    made = plan.provenance
    yield judged(
        "provenance",
        "version",
        f"made by version {made.moiety_version or 'unknown'} with calibration "
        f"{made.calibration or 'unknown'}, seed {made.seed}",
        holds=bool(made.moiety_version and made.calibration),
    )


def assumptions(inspection: Inspection) -> Iterator[Finding]:
    """List what was assumed of the model and the cluster, so that nobody takes it for a fact."""
    plan = inspection.plan
    for text in plan.cluster.assumptions:
        yield judged("assumptions", f"cluster {plan.cluster.name}", f"assumed: {text}", holds=True)
    for text in plan.model.warnings:
        yield judged("assumptions", f"model {plan.model.name}", text, holds=False, otherwise="warning")
