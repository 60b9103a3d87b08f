"""Plan files: what is written is read back equal, and what is not a plan is refused with one message."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moiety.cli.plan_file import load_plan, method_json
from moiety.cluster.catalog import load_cluster
from moiety.model.catalog import load_catalog_model
from moiety.placement.linear import place_linear
from moiety.plan import DtypePolicy, Options, Plan, Pool, Provenance, Schedule
from moiety.strategy.enumeration import enumerate_strategies
from moiety.workload.catalog import load_workload
from tests.cli.command import moiety, refused

MODELS = {
    name: load_catalog_model(name) for name in ("mixtral-8x7b", "olmoe-1b-7b", "deepseek-v2-lite", "llama-3.1-8b")
}


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Return any legal plan of a small model on up to 16 GPUs."""
    model = MODELS[draw(st.sampled_from(sorted(MODELS)))]
    cluster = load_cluster(f"h100x{draw(st.sampled_from((1, 2, 4, 8, 16)))}")
    copies = draw(st.sampled_from((0, 0, 16))) if model.moe else 0
    legal = [c.strategy for c in enumerate_strategies(model, cluster.num_gpus, copies) if c.is_legal]
    strategy = draw(st.sampled_from(legal))
    moe_layers = [i for i, block in enumerate(model.layers) if block.moe is not None]
    placement, shares = None, None
    if model.moe is not None:
        experts = model.moe.num_experts
        placement = place_linear(
            layers=moe_layers,
            num_experts=experts,
            redundant_experts=copies,
            num_gpus=strategy.gpus_per_stage,
            num_nodes=1,
            expert_tp=strategy.etp,
        )
        share = draw(st.floats(0, 1))
        shares = draw(
            st.sampled_from((None, ((share, *([(1 - share) / (experts - 1)] * (experts - 1))),) * len(moe_layers)))
        )
    schedule = Schedule(
        num_microbatches=draw(st.integers(1, 16)),
        prefill_tokens=draw(st.integers(0, 10**6)),
        prompt_tokens=draw(st.integers(1, 10**6)),
        decode_sequences=draw(st.integers(1, 10**4)),
        context_tokens=draw(st.integers(0, 10**6)),
    )
    dtypes = DtypePolicy(kv_cache=draw(st.sampled_from(("bf16", "fp8"))))
    options = Options(
        redundant_experts=copies,
        two_batch_overlap=draw(st.booleans()),
        all_to_all=draw(st.sampled_from(("flat", "dedup", "hierarchical"))),
        dtypes=dtypes,
    )
    pool = Pool(role="mixed", first_rank=0, strategy=strategy, schedule=schedule, placement=placement)
    return Plan(
        name=draw(st.from_regex(r"[a-z][a-z0-9_-]{0,20}", fullmatch=True)),
        model=model,
        cluster=cluster,
        workload=load_workload("chat"),
        options=options,
        expert_shares=shares,
        pools=(pool,),
        provenance=Provenance(moiety_version="1", calibration="published-2026-11"),
    )


@settings(max_examples=40)
@given(plans())
def test_what_is_dumped_is_parsed_back_equal(plan: Plan) -> None:
    text = method_json(plan)
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"{plan.name}_deployment_method.json"
        path.write_text(text)
        for argument in (str(path), folder):
            read, source = load_plan(argument)
            assert read == plan
            assert source == path
    assert method_json(read) == text


def test_a_whole_plan_is_parsed_back_equal_with_its_projection_and_search(reference_folder: Path) -> None:
    plan, path = load_plan(str(reference_folder))
    assert plan.projection is not None
    assert plan.search is not None
    assert plan.comparison
    assert method_json(plan) == path.read_text()


@pytest.fixture
def stored(small_folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((small_folder / "enhanced_deployment_method.json").read_text())
    return document


VERBS = ("verify", "simulate")


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("version", [0, 2, "1", None, 1.5, True])
def test_a_plan_of_another_version_is_refused(verb: str, version: object, stored: dict[str, Any], work: Path) -> None:
    (work / "p.json").write_text(json.dumps({**stored, "schema_version": version}))
    message = refused(moiety(verb, "p.json"))
    assert "p.json" in message
    assert "schema_version" in message
    assert [path.name for path in work.iterdir()] == ["p.json"]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("model",), None, ("model",)),
        (("model", "hidden_size"), -1, ("model.hidden_size", "-1")),
        (("model", "hidden_size"), 10**400, ("model.hidden_size",)),
        (("cluster", "num_nodes"), 0, ("cluster.num_nodes",)),
        (("cluster", "device", "max_power_w"), 1e300, ("max_power_w",)),
        (("pools",), [], ("pools",)),
        (("pools", 0, "strategy", "tp"), 3, ("pools.0.strategy",)),
        (("pools", 0, "num_gpus"), 99, ("num_gpus", "99")),
        (("pools", 0, "memory", "total_bytes"), 1, ("total_bytes",)),
        (("pools", 0, "rank_groups", "tp"), [[0]], ("rank_groups",)),
        (("pools", 0, "schedule", "num_microbatches"), "many", ("num_microbatches", "many")),
        (("provenance", "calibration"), "../../etc", ("calibration", "published-2026-11")),
        (("unheard",), 1, ("unheard",)),
    ],
)
def test_a_plan_that_was_tampered_with_is_refused(
    verb: str, path: tuple[str | int, ...], value: object, words: tuple[str, ...], stored: dict[str, Any], work: Path
) -> None:
    place: Any = stored
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (work / "p.json").write_text(json.dumps(stored))
    message = refused(moiety(verb, "p.json"))
    assert all(word in message for word in ("p.json", *words)), message
    assert [each.name for each in work.iterdir()] == ["p.json"]


@pytest.mark.parametrize("key", ["model", "cluster", "workload", "pools", "name", "provenance"])
def test_a_missing_field_is_named(key: str, stored: dict[str, Any], work: Path) -> None:
    del stored[key]
    (work / "p.json").write_text(json.dumps(stored))
    assert key in refused(moiety("verify", "p.json"))


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"a": NaN}', '{"a": 1, "a": 2}', "[" * 100_000, "9" * 5000])
def test_what_is_not_a_json_object_is_refused(text: str, work: Path) -> None:
    (work / "p.json").write_text(text)
    assert "p.json" in refused(moiety("simulate", "p.json"))


def test_a_plan_that_is_not_there_or_not_alone_is_refused(small_folder: Path, work: Path) -> None:
    assert "no such file or folder" in refused(moiety("simulate", "nowhere"))
    assert "_deployment_method.json" in refused(moiety("simulate", "."))
    text = (small_folder / "enhanced_deployment_method.json").read_text()
    for name in ("one", "two"):
        (work / f"{name}_deployment_method.json").write_text(text)
    message = refused(moiety("verify", "."))
    assert "one_deployment_method.json" in message
    assert "two_deployment_method.json" in message
