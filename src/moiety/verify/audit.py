"""The audit of claims: every claim with its verdict and the arithmetic behind it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Literal

from moiety.records import Record
from moiety.verify.case import AuditCase
from moiety.verify.observation import Observation
from moiety.verify.relations.table import RELATIONS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from moiety.calibration.calibration import Calibration
    from moiety.plan import Plan
    from moiety.verify.claims import Claim, ClaimSet, VariantName

Verdict = Literal["holds", "does not hold", "cannot hold together", "cannot be judged"]
VERDICTS: tuple[Verdict, ...] = ("holds", "does not hold", "cannot hold together", "cannot be judged")


class ClaimVerdict(Record):
    """What became of one claim."""

    claim: str
    text: str
    claimed: str
    verdict: Verdict
    conflicts_with: tuple[str, ...] = ()
    """Claims that it cannot hold together with, whether it holds by itself or not."""
    reasons: tuple[str, ...]
    """The arithmetic that decides the verdict first, then the rest."""

    @property
    def sentence(self) -> str:
        """The verdict in words, the claims it conflicts with named."""
        if not self.conflicts_with:
            return self.verdict
        beside = f"cannot hold together with {', '.join(self.conflicts_with)}"
        return beside if self.verdict == "cannot hold together" else f"{self.verdict}; {beside}"


class AuditReport(Record):
    """All claims of a set, judged."""

    claims: str
    """Name of the set."""
    source: str
    strategy: str
    verdicts: tuple[ClaimVerdict, ...]
    observations: tuple[Observation, ...]
    num_by_verdict: dict[Verdict, int]

    def verdict_of(self, claim: str) -> ClaimVerdict:
        """Return the verdict on the claim with that id; raise KeyError where there is none."""
        for each in self.verdicts:
            if each.claim == claim:
                return each
        raise KeyError(claim)


def audit(claims: ClaimSet, plans: Mapping[VariantName, Plan], calibration: Calibration) -> AuditReport:
    """Return every claim with its verdict.

    `plans` are the evaluated plans of the claimed strategy, by variant (`claimed_plans` makes them); at least one. What
    else has to be simulated is made from them.
    """
    if not plans:
        msg = "an audit needs at least one plan of the claimed strategy"
        raise ValueError(msg)
    case = AuditCase(claims, plans, calibration)
    observations = tuple(each for rule in RELATIONS for each in rule(case))
    verdicts = tuple(_verdict(claim, observations) for claim in claims.claims)
    counts = Counter(each.verdict for each in verdicts)
    return AuditReport(
        claims=claims.name,
        source=claims.source,
        strategy=claims.strategy,
        verdicts=verdicts,
        observations=observations,
        num_by_verdict={kind: counts[kind] for kind in VERDICTS},
    )


def _verdict(claim: Claim, observations: Sequence[Observation]) -> ClaimVerdict:
    """Return the verdict: what is refuted weighs most, then facts, then conflicts with other claims, then agreement."""
    own = [each for each in observations if claim.id in each.claims]
    by_outcome = {outcome: [each for each in own if each.outcome == outcome] for outcome in _WEIGHT}
    others: list[str] = []
    if not by_outcome["confirms"]:  # where a fact stands against another claim, that one is wrong
        others = [other for each in by_outcome["conflicts"] for other in each.claims if other != claim.id]
    if by_outcome["contradicts"]:
        verdict: Verdict = "does not hold"
    elif others:
        verdict = "cannot hold together"
    elif by_outcome["confirms"] or by_outcome["supports"]:
        verdict = "holds"
    else:
        verdict = "cannot be judged"
    ordered = [f"{each.rule}: {each.arithmetic}" for outcome in _WEIGHT for each in by_outcome[outcome]]
    return ClaimVerdict(
        claim=claim.id,
        text=claim.text,
        claimed=claim.shown,
        verdict=verdict,
        conflicts_with=tuple(dict.fromkeys(others)),
        reasons=tuple(ordered) or (f"no rule of the audit compares {claim.quantity} with anything given here",),
    )


_WEIGHT = ("contradicts", "confirms", "conflicts", "supports", "doubts", "cannot judge")
