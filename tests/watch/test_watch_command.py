"""`moiety control watch` as a process beside engines: what it writes, how it ends, and what a kill costs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest

from moiety.cli.control_watch import site_of
from moiety.watch.controller import Controller
from tests.cli.command import moiety, refused
from tests.watch.engines import Engine, listening, pass_dump, stat_dump

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from moiety.watch.known import Round

LAYERS, EXPERTS, WITHIN_S = 32, 8, 60.0


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a plan of 8 experts in 12 slots on 4 GPUs."""
    folder = tmp_path_factory.mktemp("plan")
    load = ("--concurrency", "64", "--input-tokens", "512", "--output-tokens", "128")
    how = ("--strategy", "ep4_tp1", "--set", "redundant_experts=4")
    done = moiety("plan", "mixtral-8x7b", "--cluster", "h100x4", *how, *load, "--quiet", "--out", folder)
    assert done.code == 0, done.err
    return folder


@contextlib.contextmanager
def watching(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "moiety", "control", "watch", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def awaited(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline_s, "it has not come to be"
        time.sleep(0.02)


def advice(folder: Path) -> list[dict[str, Any]]:
    path = folder / "advice.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def placement(folder: Path) -> list[list[int]]:
    return json.loads((folder / "placement.json").read_text())["physical_to_logical_map"]


def drift(folder: Path, first: int, windows: int, *, seed: int, pause_s: float = 0.0) -> None:
    """Write dumps of loads that stay as they are, all of one popularity."""
    shares = np.exp(np.random.default_rng(seed).normal(0.0, 1.0, (LAYERS, EXPERTS)))
    rng = np.random.default_rng(first)
    for at in range(first, first + windows):
        counts = rng.poisson(20_000 * shares / shares.sum(axis=1, keepdims=True))
        stat_dump(folder, counts[None], f"{at:03}")
        time.sleep(pause_s)


def test_run_after_run_it_keeps_a_placement_that_sglang_loads(plan: Path, tmp_path: Path) -> None:
    out, dumps = tmp_path / "out", tmp_path / "dumps"
    dumps.mkdir()
    rounds: list[Round] = []
    with listening(Engine()) as engine:
        site = site_of(str(plan), [engine.address], None, "sglang", 60.0)
        for at in range(20):  # each as a process of its own would: with what the last one left in the folder
            engine.serve(1000)
            drift(dumps, at, 1, seed=1 if at < 10 else 2)
            rounds.append(Controller(site, out, dumps, 5.0).round())
        call = ("control", "watch", plan, "--endpoint", engine.address, "--dumps", dumps, "--out", out, "--once")
        document, shown = json.loads(moiety(*call, "--json").out), moiety(*call)
    assert [each.dumps_read for each in rounds] == [1] * 20
    assert rounds[0].demand_tokens_per_s is None
    assert rounds[-1].demand_tokens_per_s
    assert rounds[-1].tpot_s == pytest.approx(0.02)
    assert sum(each.moves for each in rounds[10:]) > 0
    assert document["dumps_read"] == 0
    assert document["expected_balance"] > document["expected_balance_in_force"]
    told = [each.document() for done in rounds for each in done.advice]
    assert advice(out)[: len(told)] == told
    assert [each["number"] for each in advice(out)] == list(range(1, len(advice(out)) + 1))
    assert "placement" in {each["kind"] for each in told}
    found = placement(out)
    assert (len(found), len(found[0])) == (LAYERS, 12)
    assert all(set(row) == set(range(EXPERTS)) for row in found)
    assert found != json.loads((out / "placement.previous.json").read_text())["physical_to_logical_map"]
    assert (shown.code, "instances that answer" in shown.out) == (0, True)
    assert sorted(each.name for each in out.iterdir()) == [
        ".lock", "advice.jsonl", "placement.json", "placement.previous.json", "state.npz",
    ]  # fmt: skip


def test_files_of_ranks_that_come_in_two_rounds_are_one_window(plan: Path, tmp_path: Path) -> None:
    out, dumps = tmp_path / "out", tmp_path / "dumps"
    dumps.mkdir()
    site, slots = site_of(str(plan), [], None, "sglang", 60.0), np.tile(np.arange(12) % EXPERTS, (LAYERS, 1))
    counts = np.random.default_rng(3).integers(1, 99, (2, LAYERS, 12), dtype=np.int32)
    rounds: list[Round] = []
    for ranks in ((0, 1), (2, 3), (), (0,), ()):
        for rank in ranks:
            pass_dump(dumps, counts, slots, f"{len(rounds) // 3}", rank=rank, first=10 * (len(rounds) // 3))
        rounds.append(Controller(site, out, dumps, 5.0).round())
    assert [each.dumps_awaiting for each in rounds] == [2, 0, 0, 1, 0]
    assert [each.dumps_read for each in rounds] == [0, 4, 0, 0, 1], "where only one rank's file comes, it is enough"
    assert [each.windows for each in rounds] == [0, 1, 1, 1, 2]
    pass_dump(dumps, counts, slots, "2", first=20)
    assert "0, 2 windows known; 1 wait for other ranks' files" in " ".join(
        moiety("control", "watch", plan, "--dumps", dumps, "--out", out, "--once").out.split()
    )


def test_killed_at_any_moment_it_goes_on_without_deciding_anything_twice(plan: Path, tmp_path: Path) -> None:
    calm, harried, dumps = tmp_path / "calm", tmp_path / "harried", tmp_path / "dumps"
    dumps.mkdir()
    quick = ("--dumps", dumps, "--interval", "0.1", "--quiet")
    rng = np.random.default_rng(5)
    for kill in range(4):
        drift(dumps, 4 * kill, 4, seed=1 if kill < 3 else 2)
        with watching(plan, *quick, "--out", harried) as process:
            awaited((harried / "state.npz").exists)
            time.sleep(float(rng.uniform(0.0, 1.5)))  # in the midst of anything
            process.send_signal(signal.SIGKILL)
            process.wait()
        if (harried / "placement.json").exists():
            assert all(set(row) == set(range(EXPERTS)) for row in placement(harried))
        advice(harried)  # every line is whole
    done = moiety("control", "watch", plan, "--dumps", dumps, "--out", harried, "--once", "--json")
    assert done.code == 0, done.err
    told = advice(harried)
    assert [each["number"] for each in told] == list(range(1, len(told) + 1))
    again = moiety("control", "watch", plan, "--dumps", dumps, "--out", harried, "--once", "--json")
    assert json.loads(again.out)["dumps_read"] == 0
    assert json.loads(again.out)["moves"] == 0
    assert not list(harried.glob(".moiety-*"))
    # from nothing, with all of it at once: the same experts, all of them somewhere
    assert moiety("control", "watch", plan, "--dumps", dumps, "--out", calm, "--once", "--quiet").code == 0
    assert np.shape(placement(calm)) == np.shape(placement(harried))


def test_it_runs_beside_engines_that_come_and_go_and_ends_when_asked(plan: Path, tmp_path: Path) -> None:
    out, dumps = tmp_path / "out", tmp_path / "dumps"
    with listening(Engine("vllm")) as first, contextlib.ExitStack() as stack:
        second = stack.enter_context(listening(Engine("vllm")))
        third = stack.enter_context(listening(Engine("vllm")))
        addresses = [word for each in (first, second, third) for word in ("--endpoint", each.address)]
        beside = ("--dumps", dumps, "--out", out, "--interval", "0.2", "--metrics-port", "0")
        with watching(plan, *addresses, *beside) as process:
            assert process.stderr is not None
            metrics = process.stderr.readline().split()[-1]
            awaited((out / "state.npz").exists)
            dumps.mkdir()
            drift(dumps, 0, 3, seed=1, pause_s=0.3)
            awaited(lambda: "moiety_expert_load{" in httpx.get(metrics).text)
            assert 'moiety_instances{status="working"} 3.0' in httpx.get(metrics).text
            stack.close()  # two of three are gone: one after the other, or both in one round
            awaited(lambda: bool({"stand-back", "restart"} & {each["kind"] for each in advice(out)}))
            other = moiety("control", "watch", plan, "--out", out, "--once")
            assert "another controller works in this folder" in refused(other)
            assert httpx.get(metrics.removesuffix("metrics")).status_code == 404
            process.send_signal(signal.SIGTERM)
            printed, errors = process.communicate(timeout=WITHIN_S)
    assert (process.returncode, errors) == (0, "")
    assert len(printed.splitlines()) == len(advice(out))
    assert f"source: look at {second.address}/metrics. Why: " in printed


def test_a_full_disk_stops_nothing_and_what_was_decided_is_written_when_there_is_room(
    plan: Path, tmp_path: Path
) -> None:
    out, dumps = tmp_path / "out", tmp_path / "dumps"
    dumps.mkdir()
    drift(dumps, 0, 1, seed=1)
    with watching(plan, "--dumps", dumps, "--out", out, "--interval", "0.1", "--quiet") as process:
        awaited((out / "state.npz").exists)
        (out / "state.npz").unlink()
        (out / "state.npz").mkdir()  # nothing can be written under that name
        assert process.stderr is not None
        said = process.stderr.readline()
        assert "cannot be written" in said
        assert "Traceback" not in said
        (out / "state.npz").rmdir()
        awaited((out / "state.npz").is_file)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(WITHIN_S) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--endpoint", "localhost:8000"), "is no http address; write it as http://HOST:PORT"),
        (("--to", "sglan"), "did you mean 'sglang'?"),
        (("--interval", "0"), "--interval"),
        (("--dumps", "FILE"), "is a file, not a folder"),
        (("--placement", "FILE"), "JSON"),
        (("--out", "FILE"), "--out: FILE: cannot be written: there is a file of that name"),
    ],
)
def test_what_cannot_be_watched_is_refused(plan: Path, tmp_path: Path, options: tuple[str, str], said: str) -> None:
    file = tmp_path / "file"
    file.write_text("no")
    given = [str(file) if each == "FILE" else each for each in options]
    call = ("control", "watch", plan, "--once", *(() if "--out" in options else ("--out", tmp_path / "out")))
    assert said.replace("FILE", str(file)) in refused(moiety(*call, *given))


def test_to_watch_nothing_for_ever_is_refused(plan: Path, tmp_path: Path) -> None:
    message = refused(moiety("control", "watch", plan, "--out", tmp_path / "out"))
    assert "has nothing to look at; give --endpoint, --dumps" in message
    assert not (tmp_path / "out").exists()


def test_a_damaged_state_is_refused_by_name(plan: Path, tmp_path: Path) -> None:
    (tmp_path / "state.npz").write_bytes(b"PK\x03\x04")
    said = refused(moiety("control", "watch", plan, "--out", tmp_path, "--once"))
    assert "state.npz" in said
    assert "remove the file" in said


def test_other_forms_of_the_placement(plan: Path, tmp_path: Path) -> None:
    for to in ("moiety", "vllm-ascend"):
        call = ("control", "watch", plan, "--out", tmp_path / to, "--to", to, "--once", "--quiet")
        assert moiety(*call).code == 0
    own = json.loads((tmp_path / "moiety" / "placement.json").read_text())
    assert (own["num_gpus"], own["num_logical_experts"]) == (4, EXPERTS)
    ascend = json.loads((tmp_path / "vllm-ascend" / "placement.json").read_text())
    assert ascend["moe_layer_count"] == LAYERS
    layer = ascend["layer_list"][3]
    experts = [expert for device in layer["device_list"] for expert in device["device_expert"]]
    assert experts == own["physical_to_logical_map"][3]
