"""`moiety run`: plans executed by real ranks, and everything that is refused before any rank is started."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from safetensors.torch import load_file, save_file

from moiety.cli.run_result import WEIGHTS
from tests.cli.command import moiety, refused
from tests.runtime.checkpoints import (
    OVERFLOWING,
    greedy_continuation,
    reference_model,
    save_checkpoint,
    save_overflowing,
)
from tests.runtime.launched import is_gone

NEW = 5


def planned(folder: Path, model: Path, cluster: str, strategy: str) -> Path:
    load = ("--concurrency", "8", "--input-tokens", "16", "--output-tokens", "16")
    done = moiety("plan", model, "--cluster", cluster, "--strategy", strategy, *load, "--quiet", "--out", folder)
    assert done.code == 0, done.err
    return folder


def test_ids_and_texts_are_continued_as_transformers_does(
    runnable_checkpoint: Path, runnable_folder: Path, work: Path
) -> None:
    lines = [{"token_ids": [5, 9, 11]}, {"text": "w7 w8"}]
    (work / "p.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    command = ("run", runnable_folder, "--checkpoint", runnable_checkpoint, "--prompts", "p.jsonl", "--json")
    done = moiety(*command, "--max-new-tokens", str(NEW), "--trace", "t.json")
    assert (done.code, done.err) == (0, "")
    document: dict[str, Any] = json.loads(done.out)
    oracle = reference_model(runnable_checkpoint)
    expected = [greedy_continuation(oracle, prompt, NEW) for prompt in ([5, 9, 11], [7, 8])]
    assert document["outputs"] == [
        {"prompt_token_ids": [5, 9, 11], "token_ids": expected[0]},
        {
            "prompt_token_ids": [7, 8],
            "token_ids": expected[1],
            "text": " ".join(f"w{token}" for token in expected[1]),
        },
    ]
    measured = document["measured"]
    assert all(measured[key] > 0 for key in ("ttft_s", "tpot_s", "throughput_tokens_per_s"))
    assert [each["rank"] for each in measured["ranks"]] == [0, 1]
    memory = document["predicted"]["memory_bytes_per_gpu"]
    weights = sum(memory[kind] for kind in WEIGHTS)
    for each in measured["ranks"]:
        assert each["weight_bytes"] == pytest.approx(weights, rel=0.05)
        assert each["cache_bytes"] > 0
    assert document["predicted"]["tpot_s"] > 0
    assert document["folded"] is None
    assert json.loads((work / "t.json").read_text())["traceEvents"]


def test_a_plan_is_folded_onto_a_scaled_down_copy(
    reference_folder: Path, tmp_path_factory: pytest.TempPathFactory, work: Path
) -> None:
    copy = save_checkpoint("glm4_moe", tmp_path_factory.mktemp("checkpoints") / "glm4")
    done = moiety("run", reference_folder, "--checkpoint", copy, "--fold", "2", "--max-new-tokens", "2", "--json")
    assert done.code == 0, done.err
    folded = json.loads(done.out)["folded"]
    assert (folded["from"]["num_gpus"], folded["from"]["model"]) == (128, "reference-moe-235b")
    assert (folded["to"]["num_gpus"], folded["to"]["num_nodes"], folded["to"]["model"]) == (2, 2, "glm4")
    assert folded["to"]["degrees"]["ep"] == 2
    first, second = done.err.splitlines()
    assert first.startswith("moiety: rehearsal: the plan of 128 GPUs")
    assert "glm4 stands for reference-moe-235b" in first
    assert "4 prompts of random tokens" in second
    assert list(work.iterdir()) == []


def test_what_a_rank_finds_wrong_is_one_message(runnable_checkpoint: Path, runnable_folder: Path, work: Path) -> None:
    incomplete = work / "incomplete"
    incomplete.mkdir()
    (incomplete / "config.json").write_bytes((runnable_checkpoint / "config.json").read_bytes())
    tensors = load_file(runnable_checkpoint / "model.safetensors")
    norm = tensors.pop("model.norm.weight")
    save_file(tensors, incomplete / "model.safetensors", metadata={"format": "pt"})
    message = refused(moiety("run", runnable_folder, "--checkpoint", incomplete, "--quiet"))
    assert message.startswith(f"{incomplete}/model.safetensors: model.norm.weight: the tensor is missing")
    tensors["model.norm.weight"] = norm * float("nan")
    save_file(tensors, incomplete / "model.safetensors", metadata={"format": "pt"})
    message = refused(moiety("run", runnable_folder, "--checkpoint", incomplete, "--quiet"))
    assert message.startswith(f"{incomplete}/model.safetensors: model.norm.weight: holds values that are not finite")


@pytest.mark.parametrize("drawing", [(), ("--temperature", "1", "--seed", "3")], ids=["greedy", "drawn"])
def test_logits_beyond_the_number_format_are_one_message(drawing: tuple[str, ...], work: Path) -> None:
    checkpoint = save_overflowing(work / "qwen3")
    where = (
        "--cluster",
        "local:2",
        "--strategy",
        "tp1_dp2_ep2",
        "--set",
        "dtypes.activations=fp16",
        "--set",
        "dtypes.dispatch=fp16",
    )
    assert moiety("plan", checkpoint, *where, "--out", work / "plan").code == 0
    (work / "prompts.jsonl").write_text(f'{{"token_ids": [5, 9]}}\n{{"token_ids": [3, {OVERFLOWING}, 7]}}\n')
    command = ("run", work / "plan", "--checkpoint", checkpoint, "--prompts", work / "prompts.jsonl", *drawing)
    message = refused(moiety(*command, "--quiet"))
    assert message.startswith("prompts[1]: the logits of its token 3 are not finite; compute in a format")


def test_a_cache_that_ranks_cannot_keep_is_refused(runnable_checkpoint: Path, work: Path) -> None:
    where = ("--cluster", "local:1", "--strategy", "tp1", "--set", "dtypes.kv_cache=int4", "--quiet")
    assert moiety("plan", runnable_checkpoint, *where, "--out", work / "plan").code == 0
    message = refused(moiety("run", work / "plan", "--checkpoint", runnable_checkpoint))
    assert message.startswith("options.dtypes.kv_cache = int4: is kept in fp32, bf16, fp16, fp8")


def test_tables_show_the_tokens_the_figures_and_the_memory(runnable_checkpoint: Path, work: Path) -> None:
    alone = planned(work / "alone", runnable_checkpoint, "local:1", "tp1")
    command = ("run", alone, "--checkpoint", runnable_checkpoint, "--max-new-tokens", "2", "--rank-output", "logs")
    done = moiety(*command, "--temperature", "0.7", "--top-k", "3", "--seed", "5")
    assert done.code == 0, done.err
    for words in ("4 prompts", "Measured and predicted", "time to first token", "Memory of each rank", "KV cache"):
        assert words in done.out
    assert [path.name for path in (work / "logs").iterdir()] == ["rank-0.log"]


def numbered(rank: int, size: int, port: int, *arguments: str | Path) -> subprocess.Popen[str]:
    """Start the command as one of the ranks that the environment numbers."""
    environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "moiety", "run", *(str(each) for each in arguments)],
        env={**environment, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def test_ranks_that_others_start_print_one_document(runnable_checkpoint: Path, runnable_folder: Path) -> None:
    port = free_port()
    command = (runnable_folder, "--checkpoint", runnable_checkpoint, "--max-new-tokens", "2", "--json")
    ranks = [numbered(rank, 2, port, *command) for rank in (0, 1)]
    (first, first_errors), (second, second_errors) = [rank.communicate(timeout=120) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], first_errors + second_errors
    assert len(json.loads(first)["measured"]["ranks"]) == 2
    assert (second, second_errors) == ("", "")


def test_ranks_that_others_start_must_be_as_many_as_the_plan_has(
    runnable_checkpoint: Path, runnable_folder: Path
) -> None:
    rank = numbered(0, 1, free_port(), runnable_folder, "--checkpoint", runnable_checkpoint)
    out, err = rank.communicate(timeout=120)
    assert (rank.returncode, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("moiety: error: WORLD_SIZE = 1: the plan takes 2 ranks")
    assert "--nproc-per-node 2" in line
    assert "--fold 1" in line


def children(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="utf-8").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == pid:
            found.append(int(path.parent.name))
    return found


def test_an_interrupt_ends_every_rank_with_one_message(runnable_checkpoint: Path, runnable_folder: Path) -> None:
    command = [sys.executable, "-m", "moiety", "run", runnable_folder, "--checkpoint", runnable_checkpoint, "--quiet"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as launcher:
        deadline_s = time.monotonic() + 60
        while len(ranks := [rank for server in children(launcher.pid) for rank in children(server)]) < 2:
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        time.sleep(0.5)
        launcher.send_signal(signal.SIGINT)
        try:
            out, err = launcher.communicate(timeout=60)  # torch, which it is just loading, comes first
        finally:
            launcher.kill()
    assert (launcher.returncode, out) == (130, "")
    assert err == "moiety: error: interrupted: every rank has been ended\n"
    assert all(is_gone(pid) for pid in ranks)
