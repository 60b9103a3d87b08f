"""Wrong input of every kind: one message, exit code 2, nothing written."""

from __future__ import annotations

import json
import resource
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.command import Done, moiety, moiety_process, refused
from tests.cli.test_plan import CLUSTER, QWEN_CONFIG

if TYPE_CHECKING:
    from pathlib import Path

ON_H100 = ("--cluster", "h100x8")


def nothing_but(folder: Path, *names: str) -> None:
    assert {path.name for path in folder.iterdir()} == set(names)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("deepsek-v3", "--cluster", "h200x32"), ("MODEL", "deepsek-v3", "deepseek-v3")),
        (("Qwen/Qwen3-235B-A22B", *ON_H100), ("did you mean 'qwen3-235b-a22b'",)),
        (("nowhere/config.json", *ON_H100), ("nowhere/config.json", "no such file")),
        ((".", *ON_H100), ("holds no config.json",)),
        (("", *ON_H100), ("MODEL",)),
        (("mixtral-8x7b",), ("--cluster", "h200x32")),
        (("mixtral-8x7b", "--cluster", "h10x8"), ("cluster", "h10x8", "did you mean")),
        (("mixtral-8x7b", "--cluster", "h100x9"), ("h100x9", "h100x8", "h100x16")),
        (("mixtral-8x7b", "--cluster", "h100x0"), ("h100x0", "at least 1")),
        (("mixtral-8x7b", "--cluster", "h100x999999999999"), ("1,048,576",)),
        (("mixtral-8x7b", "--cluster", "nowhere.yaml"), ("nowhere.yaml", "no such file")),
        (("mixtral-8x7b", *ON_H100, "--workload", "chatt"), ("workload", "chatt", "did you mean 'chat'")),
        (("mixtral-8x7b", *ON_H100, "--engine", "vlm"), ("--engine", "vlm", "did you mean 'vllm'")),
        (("mixtral-8x7b", *ON_H100, "--strategy", "ep3"), ("ep=3 does not divide num_experts=8; try 1, 2, 4",)),
        (("mixtral-8x7b", *ON_H100, "--strategy", "tp5"), ("strategy", "tp5", "divides 8")),
        (("mixtral-8x7b", *ON_H100, "--strategy", "fast"), ("strategy", "fast", "ep64_tp2")),
        (("mixtral-8x7b", *ON_H100, "--strategy", "ep0"), ("ep0", "not a degree")),
        (("mixtral-8x7b", "--cluster", "h100x16", "--strategy", "ep16"), ("ep=16 does not divide num_experts=8",)),
        (("mixtral-8x7b", *ON_H100, "--set", "two_batch_overlop=no"), ("did you mean 'two_batch_overlap'",)),
        (("mixtral-8x7b", *ON_H100, "--set", "all_to_all=fast"), ("all_to_all", "fast", "hierarchical")),
        (("mixtral-8x7b", *ON_H100, "--set", "arena"), ("--set", "option=value")),
        (("mixtral-8x7b", *ON_H100, "--set", "arena=no", "--set", "arena=yes"), ("arena", "twice")),
        (("mixtral-8x7b", *ON_H100, "--set", "dtypes.kv_cache=fp9"), ("dtypes.kv_cache", "fp9")),
        (("mixtral-8x7b", *ON_H100, "--set", "redundant_experts=-1"), ("redundant_experts", "-1")),
        (("mixtral-8x7b", *ON_H100, "--redundant-experts", "-1"), ("--redundant-experts", "-1", "from 0 to 56")),
        (("mixtral-8x7b", *ON_H100, "--redundant-experts", "9" * 30), ("--redundant-experts",)),
        (("mixtral-8x7b", *ON_H100, "--redundant-experts", "many"), ("--redundant-experts", "integer")),
        (("llama-3.1-8b", *ON_H100, "--redundant-experts", "8"), ("--redundant-experts", "no experts")),
        (("mixtral-8x7b", *ON_H100, "--request-rate", "nan"), ("--request-rate", "nan", "finite")),
        (("mixtral-8x7b", *ON_H100, "--request-rate", "inf"), ("--request-rate", "inf", "finite")),
        (("mixtral-8x7b", *ON_H100, "--request-rate", "-2"), ("--request-rate", "-2")),
        (("mixtral-8x7b", *ON_H100, "--concurrency", "0"), ("--concurrency",)),
        (("mixtral-8x7b", *ON_H100, "--concurrency", "8", "--request-rate", "2"), ("--request-rate", "not both")),
        (("mixtral-8x7b", *ON_H100, "--input-tokens", "-5"), ("--input-tokens",)),
        (("mixtral-8x7b", *ON_H100, "--name", "../up"), ("--name", "../up")),
        (("mixtral-8x7b", *ON_H100, "--name", ""), ("--name",)),
        (("llama-3.1-8b", *ON_H100, "--routing", "any.npz"), ("--routing", "no experts")),
        (("mixtral-8x7b", *ON_H100, "--routing", "nowhere.npz"), ("nowhere.npz", "no such file")),
    ],
)
def test_wrong_arguments(arguments: tuple[str, ...], words: tuple[str, ...], work: Path) -> None:
    message = refused(moiety("plan", *arguments))
    assert all(word in message for word in words), message
    nothing_but(work)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", ("line 1", "not valid JSON")),
        ("[]", ("one JSON object",)),
        ("[" * 100_000, ("brackets",)),
        ('{"a": NaN}', ("NaN",)),
        ('{"hidden_size": 1, "hidden_size": 2}', ("hidden_size", "twice")),
        ('{"a": ' + "9" * 5000 + "}", ("digits",)),
        ("\0", ("binary",)),
    ],
)
def test_a_config_that_is_not_json(text: str, words: tuple[str, ...], work: Path) -> None:
    (work / "config.json").write_text(text)
    message = refused(moiety("plan", "config.json", *ON_H100))
    assert all(word in message for word in ("config.json", *words)), message
    nothing_but(work, "config.json")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", None),
        ("hidden_size", 0),
        ("hidden_size", -2048),
        ("hidden_size", 1e300),
        ("hidden_size", "wide"),
        ("num_hidden_layers", 10**12),
        ("num_attention_heads", 2.5),
        ("num_experts_per_tok", 64),
        ("num_experts", True),
        ("moe_intermediate_size", [768]),
        ("vocab_size", 10**400),
    ],
)
def test_a_config_with_a_missing_or_impossible_field(key: str, value: Any, work: Path) -> None:  # noqa: ANN401
    (work / "config.json").write_text(json.dumps({**QWEN_CONFIG, key: value}))
    message = refused(moiety("plan", "config.json", *ON_H100))
    assert "config.json" in message
    assert key in message
    nothing_but(work, "config.json")


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("num_nodes: 2", "num_nodes: [2", "YAML"),
        ("num_nodes: 2", "", "num_nodes"),
        ("num_nodes: 2", "num_nodes: -2", "num_nodes"),
        ("num_nodes: 2", "num_nodes: 1e30", "num_nodes"),
        ("num_nodes: 2", "num_nodes: .nan", "num_nodes"),
        ("memory: 96 GB", "memory: 96", "needs its unit"),
        ("memory: 96 GB", "memory: -96 GB", "memory"),
        ("memory: 96 GB", "memory: 1e999 GB", "memory"),
        ("memory: 96 GB", "memory: 96 GX", "unit"),
        ("per: node", "per: rack", "per"),
        ("per: node", "pr: node", "did you mean"),
        ("bandwidth: 200 GB/s", "bandwidth: .inf", "bandwidth"),
    ],
)
def test_a_cluster_that_cannot_be(old: str, new: str, word: str, work: Path) -> None:
    (work / "ours.yaml").write_text(CLUSTER.replace(old, new, 1))
    message = refused(moiety("plan", "mixtral-8x7b", "--cluster", "ours.yaml"))
    assert "ours.yaml" in message
    assert word in message
    nothing_but(work, "ours.yaml")


def test_a_model_that_cannot_fit_names_the_smallest_number_of_gpus_and_that_number_works(work: Path) -> None:
    message = refused(moiety("plan", "deepseek-v3", *ON_H100))
    assert "does not fit 8 GPUs" in message
    enough = int(message.rpartition(" ")[2])
    assert enough > 8
    assert moiety("plan", "deepseek-v3", "--cluster", f"h100x{enough}", "--quiet").code == 0
    assert (work / "moiety-plan").is_dir()


def test_a_pinned_strategy_that_cannot_fit_says_what_fills_the_memory(work: Path) -> None:
    message = refused(moiety("plan", "mixtral-8x7b", *ON_H100, "--strategy", "tp1_x8"))
    assert "fits-the-memory" in message
    assert "GB" in message
    nothing_but(work)


@pytest.mark.parametrize(
    ("counts", "word"),
    [([[1] * 8] * 7, "7 layers"), ([[1] * 9] * 32, "experts"), ([[-1] * 8] * 32, "finite"), ("x", "counts")],
)
def test_a_routing_dump_of_another_model(counts: object, word: str, work: Path) -> None:
    (work / "routing.json").write_text(json.dumps({"counts": counts}))
    message = refused(moiety("plan", "mixtral-8x7b", *ON_H100, "--routing", "routing.json"))
    assert "routing.json" in message
    assert word in message
    nothing_but(work, "routing.json")


@pytest.mark.parametrize(
    ("out", "named"),
    [("file", "file"), ("file/deep/plan", "file"), ("/dev/null/plan", "/dev/null"), ("/proc/plan", "/proc")],
)
def test_a_folder_that_cannot_be_made_is_named_by_its_option_and_leaves_nothing(
    out: str, named: str, work: Path
) -> None:
    (work / "file").write_text("mine")
    message = refused(moiety("plan", "olmoe-1b-7b", "--cluster", "h100x1", "--out", out))
    assert f"--out: {named}" in message
    assert "cannot be written" in message
    nothing_but(work, "file")


def test_a_file_that_cannot_be_replaced_leaves_all_as_it_was(work: Path) -> None:
    (work / "plan").mkdir()
    (work / "plan" / "enhanced_llm_deployment_summary.svg").mkdir()
    (work / "plan" / "enhanced_deployment_method.json").write_text("old")
    message = refused(moiety("plan", "olmoe-1b-7b", "--cluster", "h100x1", "--out", "plan"))
    assert "--out: plan/enhanced_llm_deployment_summary.svg: cannot be written" in message
    assert "nothing was changed" in message
    nothing_but(work / "plan", "enhanced_llm_deployment_summary.svg", "enhanced_deployment_method.json")
    assert (work / "plan" / "enhanced_deployment_method.json").read_text() == "old"


def test_no_room_on_the_disk_leaves_nothing(small_folder: Path, work: Path) -> None:
    """Files may not grow past what the DOT needs: the SVG meets what a full disk does, in the middle of writing."""
    drawing = small_folder / "enhanced_llm_deployment_comprehensive.dot"
    most = (drawing.stat().st_size + drawing.with_suffix(".svg").stat().st_size) // 2

    message = refused(limited(most, work))
    assert (
        "enhanced_llm_deployment_comprehensive.svg: cannot be written: File too large; nothing was changed" in message
    )
    nothing_but(work)


def test_no_room_for_temporary_files_leaves_nothing(work: Path) -> None:
    message = refused(limited(5_000, work))
    assert "no temporary file can be written: File too large; nothing was changed" in message
    nothing_but(work)


def limited(most_bytes: int, folder: Path) -> Done:
    """Return how planning ends in a process whose files may not grow past so many bytes."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

    return moiety_process("plan", "mixtral-8x7b", *ON_H100, "--out", "plan", cwd=folder, limits=limit)


def test_a_json_call_that_fails_prints_no_json(work: Path) -> None:
    refused(moiety("plan", "mixtral-8x7b", "--cluster", "h100x9", "--json"))
    nothing_but(work)
