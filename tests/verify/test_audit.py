"""The audit of claims: it finds the reference's contradictions by itself, and nothing in what is consistent."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from moiety.errors import InputError
from moiety.verify.audit import AuditReport, audit
from moiety.verify.case import claimed_plans
from moiety.verify.claims import Claim, ClaimSet, load_claims, read_claims
from moiety.verify.closed_form import pool_flops_per_token
from moiety.verify.quantities import QUANTITIES
from moiety.verify.relations.table import RELATIONS
from tests.verify.plans import (
    CALIBRATION,
    VARIANTS,
    decode_plan,
    dense_plan,
    mixed_plan,
    reference_plan,
    small_plan,
    training_plan,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from moiety.plan import Plan
    from moiety.verify.claims import VariantName
    from moiety.verify.observation import Observation

REFERENCE = load_claims("reference")
ROOT = Path(__file__).parents[2]


@cache
def reference_plans() -> Mapping[VariantName, Plan]:
    return claimed_plans(REFERENCE, reference_plan(), VARIANTS, CALIBRATION)


@cache
def reference_report() -> AuditReport:
    return audit(REFERENCE, reference_plans(), CALIBRATION)


def with_values(claims: ClaimSet, values: Mapping[str, float], **changes: object) -> ClaimSet:
    """Return the claims with other values, written to many digits, and other fields for all that are changed."""
    return claims.model_copy(
        update={
            "claims": tuple(
                each.model_copy(update={"value": values[each.id], "precision": abs(values[each.id]) * 1e-6, **changes})
                if each.id in values
                else each
                for each in claims.claims
            )
        }
    )


def observed(report: AuditReport, rule: str, *claims: str) -> list[Observation]:
    return [each for each in report.observations if each.rule == rule and set(claims) <= set(each.claims)]


def reasons(claim: str) -> str:
    return "\n".join(reference_report().verdict_of(claim).reasons)


# The reference ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claim", "verdict", "says"),
    [
        ("throughput-enhanced", "cannot hold together", "47.25 GFLOP per token: 23.6 B active parameters if inference"),
        ("throughput-enhanced", "cannot hold together", "7.9 B if training (6N)"),
        ("utilization-enhanced", "cannot hold together", "1.0667x, utilisation 56.7 / 52.5 = 1.0800x"),
        ("utilization-enhanced", "cannot hold together", "consistent would be 56.0 % or 622,080 tokens/s"),
        ("utilization-enhanced", "cannot hold together", "the highest of"),
        ("throughput-original", None, "46.67 GFLOP per token"),
        ("utilization-change", "cannot hold together", "both change by the same share"),
        ("achieved-flops", "does not hold", "a unit error by a factor of 1,000"),
        ("latency-enhanced", "does not hold", "1.628 us between tokens"),
        ("latency-original", "does not hold", "time per 1,000 tokens, the reciprocal of the throughput"),
        ("latency-baseline", "does not hold", "time per 1,000 tokens, the reciprocal of the throughput"),
        ("all-reduce", "cannot hold together", "less than one layer's all-reduce"),
        ("all-reduce", "cannot hold together", "moves 270 M elements"),
        ("memory", "holds", "dense weights"),
        ("memory-headroom", "holds", "1 - 33% = 67.0%"),
        ("cross-node-reduction", "does not hold", "uniform routing): 7.0% less"),
        ("cross-node-reduction", "does not hold", "tensor-parallel partners of an expert: 50% less"),
        ("checkpointing", "does not hold", "checkpointing implies training"),
        ("power", "cannot hold together", "compute-bound"),
        ("full-utilization", "does not hold", "100% occupancy"),
        ("one-expert-per-gpu", "cannot hold together", "that is 1 per group of 2 GPUs"),
        ("throughput-baseline", "holds", "tp8_pp16, 8 micro-batches of 2,048 tokens"),
        ("gain-enhanced", "holds", "614,400 / 120,000 = 5.120x"),
        ("gain-enhanced", "holds", "is over a baseline of"),
        ("throughput-change", None, "= +6.67%"),
        ("latency-change", "holds", "= -6.32%"),
        ("compute-headroom", "holds", "43.3%"),
        ("modules", "holds", "64 experts x 2 expert-TP partitions = 128"),
        ("nvlink", "holds", "both ways together per GPU"),
        ("infiniband", "holds", "one way per node"),
        ("effective-bandwidth", "cannot be judged", "25 GB/s each way per GPU (400%)"),
        ("all-reduce-change", "cannot be judged", "do not state"),
        ("placement", "holds", "4 per node, in order"),
        ("linear-scaling", "holds", "from 128 to 256 GPUs"),
        ("expansion", "holds", "512 GPUs"),
        ("overlap", None, "simulated"),
        ("latency-hiding", None, "simulated"),
    ],
)
def test_contradictions_of_the_reference_are_found(claim: str, verdict: str | None, says: str) -> None:
    found = reference_report().verdict_of(claim)
    assert verdict in {None, found.verdict}, found.sentence
    assert says in reasons(claim), reasons(claim)


def test_conflicts_name_each_other() -> None:
    report = reference_report()
    assert set(report.verdict_of("utilization-enhanced").conflicts_with) == {
        "throughput-enhanced",
        "throughput-original",
        "utilization-original",
    }
    assert "latency-enhanced" in report.verdict_of("all-reduce").conflicts_with
    assert "throughput-enhanced" in report.verdict_of("power").conflicts_with


def test_every_claim_has_a_verdict_with_reasons() -> None:
    report = reference_report()
    assert [each.claim for each in report.verdicts] == [each.id for each in REFERENCE.claims]
    assert all(each.reasons for each in report.verdicts)
    assert sum(report.num_by_verdict.values()) == len(REFERENCE.claims)
    assert AuditReport.model_validate_json(report.model_dump_json()) == report


def test_every_rule_says_something() -> None:
    from moiety.verify.case import AuditCase  # noqa: PLC0415 - the rules one by one, here only

    impossible = with_values(REFERENCE, {"throughput-enhanced": 1e9})
    cases = [AuditCase(claims, reference_plans(), CALIBRATION) for claims in (REFERENCE, impossible)]
    assert [rule.__name__ for rule in RELATIONS if not any(list(rule(case)) for case in cases)] == []


def test_every_quantity_is_claimed_or_compared_somewhere() -> None:
    sources = "\n".join(path.read_text() for path in (ROOT / "src/moiety/verify/relations").glob("*.py"))
    assert [name for name in QUANTITIES if f'"{name}"' not in sources] == []


# Consistent values --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "claims"),
    [
        ("throughput-follows-utilization", ("utilization-enhanced", "throughput-enhanced", "utilization-original")),
        ("throughput-follows-utilization", ("throughput-enhanced", "utilization-enhanced")),
        ("throughput-follows-utilization", ("utilization-change", "throughput-change")),
        ("achieved-rate", ("achieved-flops",)),
        ("all-reduce-within-latency", ("all-reduce", "latency-enhanced")),
        ("experts-per-gpu", ("one-expert-per-gpu",)),
        ("cross-node-traffic", ("cross-node-reduction",)),
        ("checkpointing", ("checkpointing",)),
        ("reciprocal-of-throughput", ("latency-baseline",)),
        ("simulated-throughput", ("throughput-original",)),
        ("simulated-utilization", ("utilization-original",)),
        ("hidden-communication", ("overlap-original",)),
        ("power-cut", ("power",)),
    ],
)
def test_the_consistent_value_turns_the_outcome(rule: str, claims: tuple[str, ...]) -> None:
    bad = [each for each in observed(reference_report(), rule, *claims) if each.outcome in {"conflicts", "contradicts"}]
    assert bad
    (consistent,) = {claim: value for claim, value in bad[0].consistent.items() if claim == claims[0]}.items()
    mended = audit(with_values(REFERENCE, dict([consistent])), reference_plans(), CALIBRATION)
    after = observed(mended, rule, *claims)
    assert after
    assert all(each.outcome in {"supports", "confirms"} for each in after), after


def test_a_claim_that_is_mended_holds() -> None:
    for claim in ("achieved-flops", "cross-node-reduction", "checkpointing", "one-expert-per-gpu", "power"):
        (bad, *_) = [
            each for each in reference_report().observations if claim in each.consistent and each.outcome != "supports"
        ]
        mended = audit(with_values(REFERENCE, {claim: bad.consistent[claim]}), reference_plans(), CALIBRATION)
        assert mended.verdict_of(claim).verdict == "holds", (claim, mended.verdict_of(claim))


def test_the_right_unit_mends_a_unit_error() -> None:
    (claim,) = (each for each in REFERENCE.claims if each.id == "achieved-flops")
    fixed = claim.model_copy(update={"unit": "TFLOPS"})
    claims = REFERENCE.model_copy(
        update={"claims": tuple(fixed if each is claim else each for each in REFERENCE.claims)}
    )
    assert audit(claims, reference_plans(), CALIBRATION).verdict_of("achieved-flops").verdict == "holds"


def test_a_fact_that_is_misstated_does_not_hold() -> None:
    wrong = {
        "gpus": 127.0,
        "gpu-memory": 80.0,
        "experts": 63.0,
        "modules": 64.0,
        "placement": 8.0,
        "memory": 60.0,
        "nvlink": 50.0,
    }
    report = audit(with_values(REFERENCE, wrong), reference_plans(), CALIBRATION)
    for claim in wrong:
        assert report.verdict_of(claim).verdict == "does not hold", claim


# Another deployment -------------------------------------------------------------------------------------------------


def other_claims() -> ClaimSet:
    """Return claims about another model that are all true: computed from its plans."""
    plan = small_plan()
    plans = claimed_plans(ClaimSet(name="o", strategy="ep8_tp2", claims=REFERENCE.claims), plan, VARIANTS, CALIBRATION)
    fast, slow = plans["enhanced"].projection, plans["original"].projection
    assert fast is not None
    assert slow is not None
    device = plan.cluster.device
    needed = pool_flops_per_token(plan, plan.pools[0])
    used = fast.throughput_tokens_per_s * needed / (device.peak("bf16") * plan.num_gpus)
    other = slow.throughput_tokens_per_s * needed / (device.peak("bf16") * plan.num_gpus)
    tokens = float(plan.workload.tokens_per_batch)
    memory = plan.pools[0].memory
    assert memory is not None
    lines = [
        f"{{id: rate, quantity: throughput, of: enhanced, value: {fast.throughput_tokens_per_s!r}, unit: tokens/s",
        (
            f"{{id: rate-before, quantity: throughput, of: original, value: {slow.throughput_tokens_per_s!r}, "
            "unit: tokens/s"
        ),
        f"{{id: used, quantity: gpu_utilization, of: enhanced, value: {used * 100!r}, unit: '%'",
        f"{{id: used-before, quantity: gpu_utilization, of: original, value: {other * 100!r}, unit: '%'",
        (
            f"{{id: achieved, quantity: achieved_flops_per_gpu, of: enhanced, value: "
            f"{used * device.peak('bf16') / 1e12:.1f}, unit: TFLOPS"
        ),
        (
            f"{{id: wait, quantity: latency_per_token, of: enhanced, value: "
            f"{tokens / fast.throughput_tokens_per_s!r}, unit: s"
        ),
        f"{{id: gpus, quantity: num_gpus, value: {plan.num_gpus}, unit: GPUs",
        f"{{id: bytes, quantity: memory_per_gpu, of: enhanced, value: {memory.total_bytes / 1e9:.1f}, unit: GB",
        f"{{id: split, quantity: experts_per_gpu, value: {8 / 16}, unit: experts",
        (
            f"{{id: hidden, quantity: communication_overlap, of: enhanced, value: "
            f"{fast.overlap_fraction * 100:.1f}, unit: '%'"
        ),
    ]
    text = "\n".join(f"  - {line}, text: computed}}" for line in lines)
    return read_claims(f"name: other\nstrategy: ep8_tp2\nclaims:\n{text}\n", source="other.yaml")


def judged(claims: ClaimSet, plan: Plan) -> AuditReport:
    return audit(claims, claimed_plans(claims, plan, VARIANTS, CALIBRATION), CALIBRATION)


def test_claims_that_are_true_of_another_deployment_hold() -> None:
    report = judged(other_claims(), small_plan())
    assert {each.claim: each.sentence for each in report.verdicts if each.verdict != "holds"} == {}


@pytest.mark.parametrize(
    ("claim", "factor", "verdict"),
    [
        ("rate", 1.2, "cannot hold together"),
        ("rate", 3.0, "does not hold"),
        ("used", 1.2, "cannot hold together"),
        ("achieved", 0.001, "does not hold"),
        ("achieved", 0.5, "cannot hold together"),
        ("wait", 0.1, "cannot hold together"),
        ("gpus", 2.0, "does not hold"),
        ("bytes", 4.0, "does not hold"),
        ("split", 2.0, "cannot hold together"),
        ("hidden", 0.5, "does not hold"),
    ],
)
def test_a_false_claim_about_another_deployment_is_found(claim: str, factor: float, verdict: str) -> None:
    claims = other_claims()
    (old,) = (each for each in claims.claims if each.id == claim)
    report = judged(with_values(claims, {claim: old.value * factor}), small_plan())
    assert report.verdict_of(claim).verdict == verdict, report.verdict_of(claim)


@pytest.mark.parametrize("make", [decode_plan, mixed_plan, dense_plan, training_plan])
def test_rates_and_utilisation_of_every_phase_agree(make: Callable[[], Plan]) -> None:
    plan = make()
    figures = plan.projection
    assert figures is not None
    rate = Claim(
        id="rate",
        quantity="throughput",
        of="enhanced",
        value=figures.throughput_tokens_per_s,
        unit="tokens/s",
        precision=0,
        text="rate",
    )
    used = Claim(
        id="used",
        quantity="gpu_utilization",
        of="enhanced",
        value=figures.model_flops_utilization,
        unit="x",
        precision=0,
        text="used",
    )
    for factor, verdict in ((1.0, "holds"), (1.2, "cannot hold together")):
        other = used.model_copy(update={"value": used.value * factor})
        claims = ClaimSet(name="two", strategy="", claims=(rate, other))
        report = audit(claims, {"enhanced": plan}, CALIBRATION)
        assert {each.verdict for each in report.verdicts} == {verdict}


def single(**fields: object) -> ClaimSet:
    claim = Claim.model_validate({"id": "it", "text": "it", "precision": 0.5, **fields})
    return ClaimSet(name="one", strategy="", claims=(claim,))


def test_checkpointing_is_measured_where_there_is_a_backward_pass() -> None:
    plan = training_plan()
    fields = {"quantity": "activation_memory_reduction", "of": "enhanced", "by": "checkpointing", "unit": "%"}
    wrong = audit(single(value=0.0, **fields), {"enhanced": plan}, CALIBRATION).verdict_of("it")
    assert "kept for the backward pass" in wrong.reasons[0]
    saved = re.search(r"(\d+)% less", wrong.reasons[0])
    assert saved is not None
    right = audit(single(value=float(saved[1]), **fields), {"enhanced": plan}, CALIBRATION).verdict_of("it")
    assert {right.verdict, wrong.verdict} == {"holds", "does not hold"}


def test_a_power_cut_is_nearly_free_where_memory_is_the_limit() -> None:
    rate = Claim(id="rate", quantity="throughput", of="enhanced", value=1.0, unit="tokens/s", precision=0, text="rate")
    cut = Claim(id="cut", quantity="power_reduction", of="enhanced", value=1.0, unit="%", precision=0, text="cut")
    claims = ClaimSet(name="two", strategy="", claims=(rate, cut))
    report = audit(claims, {"enhanced": decode_plan()}, CALIBRATION)
    assert report.verdict_of("cut").verdict == "holds", report.verdict_of("cut")


def test_claims_about_another_scenario_are_refused() -> None:
    with pytest.raises(InputError, match="the claims are about the model"):
        claimed_plans(REFERENCE, small_plan(), VARIANTS, CALIBRATION)


def test_strategy_that_does_not_exist_is_refused() -> None:
    claims = other_claims().model_copy(update={"strategy": "ep16"})
    with pytest.raises(InputError, match="does not divide"):
        claimed_plans(claims, small_plan(), VARIANTS, CALIBRATION)


# The figures live in one file ---------------------------------------------------------------------------------------

FIGURES = ("614,?400", "576,?000", "622,?080", r"56\.7", r"52\.5", r"1\.63", r"8\.33", r"1\.74")


def test_the_specifications_figures_stand_in_one_file_only() -> None:
    pattern = re.compile(rf"(?<![\d.,])(?:{'|'.join(FIGURES)})(?![\d.,]*\d)")
    files = [*(ROOT / "src").rglob("*"), *(ROOT / "docs").rglob("*"), ROOT / "README.md"]
    texts = {
        path: path.read_text(encoding="utf-8") for path in files if path.suffix in {".py", ".yaml", ".json", ".md"}
    }
    assert {str(path.relative_to(ROOT)) for path, text in texts.items() if pattern.search(text)} == {
        "src/moiety/catalog/claims/reference.yaml"
    }
