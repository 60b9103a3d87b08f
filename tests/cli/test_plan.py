"""`moiety plan`: what it writes and prints, for models and clusters of every origin."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from moiety.cli.option_settings import changed_options
from moiety.cli.plan_file import load_plan
from moiety.plan import DtypePolicy, Options
from tests.cli.command import moiety, moiety_process

if TYPE_CHECKING:
    from pathlib import Path

FILES = {
    "{}_deployment_method.json",
    "{}_deployment_verification.json",
    "{}_llm_deployment_comprehensive.dot",
    "{}_llm_deployment_comprehensive.svg",
    "{}_llm_deployment_summary.dot",
    "{}_llm_deployment_summary.svg",
    "generate_{}_deployment_dag.py",
}
# Of no architecture in the catalogue, with the usual keys.
UNKNOWN_CONFIG = {
    "model_type": "brandnew_moe",
    "architectures": ["BrandNewMoeForCausalLM"],
    "hidden_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "vocab_size": 64000,
    "torch_dtype": "bfloat16",
}
QWEN_CONFIG = {
    **UNKNOWN_CONFIG,
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
CLUSTER = """
name: two-of-ours
num_nodes: 2
gpus_per_node: 4
device:
  name: own-card
  architecture: generic
  memory: 96 GB
  memory_bandwidth: 2 TB/s
  peak: {bf16: 300 TFLOPS}
  num_sms: 100
  max_clock: 1.8 GHz
  idle_power: 60 W
  max_power: 400 W
tiers:
  - {name: bridge, spans: node, bandwidth: 200 GB/s, counted: one-way, per: gpu, latency: 3 us}
  - {name: ethernet, spans: cluster, bandwidth: 100 Gbit/s, counted: one-way, per: node, latency: 10 us}
"""


def method(folder: Path, name: str = "enhanced") -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / f"{name}_deployment_method.json").read_text())
    return document


def check_that_all_adds_up(folder: Path, num_gpus: int, name: str = "enhanced") -> None:
    """Compare GPU counts, groups and memory in every file of a plan, from the texts alone."""
    document = method(folder, name)
    assert {path.name for path in folder.iterdir()} == {each.format(name) for each in FILES}
    assert document["num_gpus"] == num_gpus
    assert document["cluster"]["num_nodes"] * document["cluster"]["gpus_per_node"] == num_gpus
    ranks: list[int] = []
    for pool in document["pools"]:
        own = pool["strategy"]
        assert own["tp"] * own["attn_dp"] == own["ep"] * own["etp"]
        assert own["tp"] * own["attn_dp"] * own["pp"] * own["instances"] == pool["num_gpus"]
        everyone = list(range(pool["first_rank"], pool["first_rank"] + pool["num_gpus"]))
        for groups in pool["rank_groups"].values():
            assert sorted(rank for group in groups for rank in group) == everyone
        ranks += everyone
        memory = pool["memory"]
        assert sum(memory["bytes_by_kind"].values()) == memory["total_bytes"] <= memory["capacity_bytes"]
        assert memory["bytes_by_kind"] == pool["projection"]["memory_bytes_per_gpu"]
        if pool["placement"] is not None:
            experts = document["model"]["blocks"][-1]["feed_forward"]["num_experts"]
            assert all(set(row) == set(range(experts)) for row in pool["placement"]["physical_to_logical_map"])
    assert ranks == list(range(num_gpus))
    verification = json.loads((folder / f"{name}_deployment_verification.json").read_text())
    assert verification["summary"]["passed"]
    assert verification["summary"]["num_errors"] == sum(f["severity"] == "error" for f in verification["findings"]) == 0
    drawn = (folder / f"{name}_llm_deployment_comprehensive.dot").read_text()
    assert all(f"{pool['num_gpus']} GPUs" in drawn for pool in document["pools"])


def test_reference_scenario_writes_exactly_the_files_and_they_agree(reference_folder: Path) -> None:
    check_that_all_adds_up(reference_folder, 128)
    document = method(reference_folder)
    assert document["model"]["name"] == "reference-moe-235b"
    assert (reference_folder / "enhanced_llm_deployment_comprehensive.svg").stat().st_size < 3_000_000


def test_reference_scenario_is_audited_against_its_claims(reference_folder: Path) -> None:
    audit = json.loads((reference_folder / "enhanced_deployment_verification.json").read_text())["audit"]
    assert audit["strategy"] == "ep64_tp2"
    assert len(audit["verdicts"]) == sum(audit["num_by_verdict"].values()) > 40
    ranked = [line["strategy"] for line in method(reference_folder)["search"]["ranking"]]
    assert "ep64_tp2" in ranked


@pytest.mark.parametrize(
    ("model", "cluster", "num_gpus"),
    [("deepseek-v3", "h200x32", 32), ("qwen3-235b-a22b", "h100x16", 16), ("mixtral-8x7b", "h100x8", 8)],
)
def test_catalogue_models_get_a_verified_plan(model: str, cluster: str, num_gpus: int, work: Path) -> None:
    done = moiety("plan", model, "--cluster", cluster, "--out", "plan", "--json")
    assert done.code == 0, done.err
    check_that_all_adds_up(work / "plan", num_gpus)
    assert done.out == (work / "plan" / "enhanced_deployment_method.json").read_text()
    verification = json.loads((work / "plan" / "enhanced_deployment_verification.json").read_text())
    assert verification["audit"] is None


def test_a_config_that_is_not_in_the_catalogue_is_planned_from_its_folder(work: Path) -> None:
    folder = work / "own model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(QWEN_CONFIG))
    done = moiety("plan", folder, "--cluster", "h100x8", "--json")
    assert done.code == 0, done.err
    assert done.err == ""
    check_that_all_adds_up(work / "moiety-plan", 8)
    assert json.loads(done.out)["model"]["name"] == "own-model"


def test_an_unknown_architecture_is_planned_with_a_warning(work: Path) -> None:
    (work / "new.json").write_text(json.dumps(UNKNOWN_CONFIG))
    done = moiety("plan", "new.json", "--cluster", "h100x8", "--json")
    assert done.code == 0, done.err
    assert "warning" in done.err
    assert "brandnew_moe" in done.err
    model = json.loads(done.out)["model"]
    assert isinstance(model["num_parameters"], int)
    assert isinstance(model["num_active_parameters"], int)
    assert model["warnings"]


def test_a_cluster_written_by_hand_is_planned(work: Path) -> None:
    (work / "ours.yaml").write_text(CLUSTER)
    done = moiety("plan", "mixtral-8x7b", "--cluster", "ours.yaml", "--out", "plan", "--name", "ours")
    assert done.code == 0, done.err
    check_that_all_adds_up(work / "plan", 8, "ours")
    assert method(work / "plan", "ours")["cluster"]["device"]["name"] == "own-card"


def test_slower_links_between_nodes_make_a_slower_plan(work: Path) -> None:
    (work / "ours.yaml").write_text(CLUSTER)
    (work / "slow.yaml").write_text(CLUSTER.replace("100 Gbit/s", "25 Gbit/s"))
    rates: list[float] = []
    for name in ("ours", "slow"):
        strategy = ("--strategy", "ep8_tp1", "--out", name)
        assert moiety("plan", "mixtral-8x7b", "--cluster", f"{name}.yaml", *strategy).code == 0
        rates.append(method(work / name)["projection"]["throughput_tokens_per_s"])
    assert rates[1] < rates[0]


def test_a_pinned_strategy_is_planned_and_ranked(work: Path) -> None:
    done = moiety("plan", "--strategy", "ep64_tp2", "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    own = document["pools"][0]["strategy"]
    assert (own["ep"], own["tp"], own["instances"]) == (64, 2, 1)
    assert document["search"]["chosen_by"] == "user"
    assert [line["strategy"] for line in document["search"]["ranking"] if not line["why_not"]] == ["ep64_tp2"]
    check_that_all_adds_up(work / "moiety-plan", 128)


@pytest.mark.parametrize("name", DtypePolicy.model_fields)
def test_every_format_of_a_plan_can_be_set_also_one_that_its_file_leaves_out(name: str) -> None:
    value = True if name == "block_scales" else "fp16"
    assert getattr(changed_options(Options(), [f"dtypes.{name}={value}"]).dtypes, name) == value


def test_options_set_on_the_command_line_are_in_the_plan(work: Path) -> None:
    done = moiety(
        *("plan", "olmoe-1b-7b", "--cluster", "h100x2", "--json", "--engine", "vllm", "--concurrency", "8"),
        *("--set", "two_batch_overlap=false", "--set", "all_to_all=flat", "--set", "dtypes.kv_cache=fp8"),
        *("--redundant-experts", "8", "--input-tokens", "100", "--output-tokens", "50", "--strategy", "ep2"),
    )
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document["engine"] == "vllm"
    assert document["provenance"]["calibration"] == "serving-2026-11"
    assert moiety("verify", "moiety-plan", "--quiet").code == 0  # it finds the constants by that name
    options, workload = document["options"], document["workload"]
    assert (options["two_batch_overlap"], options["all_to_all"], options["dtypes"]["kv_cache"]) == (
        False,
        "flat",
        "fp8",
    )
    assert (workload["concurrency"], workload["input_tokens"], workload["output_tokens"]) == (8, 100, 50)
    assert len(document["pools"][0]["placement"]["physical_to_logical_map"][0]) == 64 + 8
    check_that_all_adds_up(work / "moiety-plan", 2)


def test_a_routing_dump_reaches_the_plan(work: Path) -> None:
    counts = [[(1 + expert) * 10 for expert in range(8)] for _ in range(32)]
    (work / "routing.json").write_text(json.dumps({"counts": counts}))
    arguments = ("plan", "mixtral-8x7b", "--cluster", "h100x8", "--json", "--strategy", "ep8_tp1")
    uneven = moiety(*arguments, "--routing", "routing.json", "--out", "uneven")
    assert uneven.code == 0, uneven.err
    even = moiety(*arguments, "--out", "even")
    shares = json.loads(uneven.out)["expert_shares"]
    assert shares[0] == pytest.approx([(1 + expert) / 36 for expert in range(8)])
    rates = [json.loads(each.out)["projection"]["throughput_tokens_per_s"] for each in (uneven, even)]
    assert rates[0] < rates[1]


def test_the_same_input_gives_the_same_bytes(small_folder: Path, work: Path) -> None:
    """In a process of its own, so that hashing has another seed."""
    done = moiety_process("plan", "mixtral-8x7b", "--cluster", "h100x8", "--quiet", "--out", "again", cwd=work)
    assert done.code == 0, done.err
    assert done.out == done.err == ""
    first = {path.name: path.read_bytes() for path in small_folder.iterdir() if "_trace" not in path.name}
    second = {path.name: path.read_bytes() for path in (work / "again").iterdir()}
    assert first == second


def test_the_generator_script_draws_the_same_files(small_folder: Path, work: Path) -> None:
    script = small_folder / "generate_enhanced_deployment_dag.py"
    subprocess.run([sys.executable, script, "--out", work], check=True, capture_output=True)
    drawn = {path.name for path in work.iterdir()}
    assert len(drawn) == 4
    for name in drawn:
        assert (work / name).read_bytes() == (small_folder / name).read_bytes()


def test_quiet_prints_nothing_and_json_nothing_else(work: Path) -> None:
    quiet = moiety("plan", "olmoe-1b-7b", "--cluster", "h100x1", "--quiet")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")
    loud = moiety("plan", "olmoe-1b-7b", "--cluster", "h100x1", "--json")
    assert loud.err == ""
    assert json.loads(loud.out) == method(work / "moiety-plan")


def test_tables_tell_the_whole_story(work: Path) -> None:
    done = moiety("plan", "--out", "plan")
    assert done.code == 0, done.err
    shown = " ".join(done.out.split())  # however the lines were broken
    for words in (
        "reference-moe-235b: 235.4 B parameters, 22.9 B active",
        "128 GPUs, 16 nodes x 8",
        "Chosen as the fastest",
        "module division of a layer: 64 experts",
        "expert weights",
        "Projection",
        "rests on",
        "baseline",
        "original",
        "Ranking",
        "the claimed strategy",
        "Options",
        "experts-divide-over-ep",
        "Pareto front",
        "Expert placement",
        "120-127",
        "Assumed, not known",
        "Verification passed",
        "Audit of",
        "generate_enhanced_deployment_dag.py",
    ):
        assert words in shown, words
    assert (work / "plan").is_dir()


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_tables_keep_to_the_width_of_the_terminal(columns: int, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    done = moiety("plan", "olmoe-1b-7b", "--cluster", "h100x2")
    assert done.code == 0
    assert max(len(line.rstrip()) for line in done.out.splitlines()) <= columns
    for words in ("expert weights", "total", "the plan's strategy with overlap", "ep2_tp1"):
        assert re.search(words.replace(" ", r"\s+"), done.out), words
    assert (work / "moiety-plan").is_dir()


def test_a_plan_that_was_written_is_read_back_equal(reference_folder: Path) -> None:
    plan, path = load_plan(str(reference_folder))
    again, _ = load_plan(str(path))
    assert plan == again
    assert plan.name == "enhanced"


def test_a_graphviz_that_does_not_load_is_one_message_and_no_file(work: Path) -> None:
    (work / "broken").mkdir()
    (work / "broken" / "pygraphviz.py").write_text("raise ImportError('libgobject-2.0.so.0: cannot open it')\n")
    done = subprocess.run(
        [sys.executable, "-m", "moiety", "plan", "--out", str(work / "plan")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(work / "broken"), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "drawings are made by Graphviz, which pygraphviz cannot load here: libgobject" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (work / "plan").exists()
