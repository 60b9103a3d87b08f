"""`moiety place`: what it writes and prints, what it makes of a previous placement, and what it refuses."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moiety.cli.place_files import gpu_speeds
from moiety.cli.place_machine import machine_of
from moiety.errors import InputError
from moiety.model.catalog import load_catalog_model
from moiety.placement.engine_map import expert_location
from tests.cli.command import Done, moiety, refused

if TYPE_CHECKING:
    from pathlib import Path

LAYERS, TOKENS, EXPERTS, TOP_K = 3, 400, 16, 4
CLUSTER = """
name: racks
num_nodes: 4
gpus_per_node: 2
device: h200
tiers:
  - {name: nvlink, spans: node, bandwidth: 450 GB/s, counted: one-way, per: gpu, latency: 2 us}
  - {name: rail, spans: 4, bandwidth: 50 GB/s, counted: one-way, per: gpu, latency: 5 us}
  - {name: spine, spans: cluster, bandwidth: 12.5 GB/s, counted: one-way, per: gpu, latency: 9 us}
"""


@pytest.fixture
def dump(work: Path) -> Path:
    """Tokens that mostly stay in one of four scattered cliques of experts; expert 15 is never used."""
    rng = np.random.default_rng(0)
    clique = rng.integers(0, 4, size=(LAYERS, TOKENS, 1))
    keys = rng.random((LAYERS, TOKENS, EXPERTS)) - 2.0 * (np.arange(EXPERTS) % 4 == clique)
    keys[..., 15] = 9.0
    np.savez(work / "routing.npz", topk=np.argsort(keys, axis=2)[:, :, :TOP_K].astype(np.int16))
    return work / "routing.npz"


@pytest.fixture
def counts(work: Path) -> Path:
    loads = np.random.default_rng(1).integers(1, 1000, size=(2, LAYERS, EXPERTS))
    (work / "counts.json").write_text(json.dumps({"counts": loads.tolist()}))
    return work / "counts.json"


def placed(*arguments: str | Path) -> dict[str, Any]:
    done = moiety("place", *arguments, "--json")
    assert done.code == 0, done.err
    assert done.err == ""
    document: dict[str, Any] = json.loads(done.out)
    return document


def every_expert_has_a_slot(document: dict[str, Any], experts: int = EXPERTS) -> bool:
    return all(set(row) == set(range(experts)) for row in document["physical_to_logical_map"])


def test_the_json_holds_the_placement_and_its_figures(dump: Path) -> None:
    found = placed(dump, "--experts", "16", "--gpus", "8", "--nodes", "4", "--slots", "24", "--method", "balance")
    assert (found["num_gpus"], found["num_nodes"], found["num_logical_experts"]) == (8, 4, 16)
    assert (found["method"], found["layers"], found["num_slots"]) == ("balance", [0, 1, 2], 24)
    assert all(len(row) == 24 for row in found["physical_to_logical_map"])
    assert every_expert_has_a_slot(found)
    assert found["metrics"]["redundancy"] == 0.5
    assert found["metrics"]["traffic"]["flat_messages"] == TOP_K * 3 / 4
    assert found["compared_with"]["method"] == found["metrics"]["versus"]["name"] == "eplb-global"
    gain = found["metrics"]["gpu_balance"]["mean"] - found["compared_with"]["metrics"]["gpu_balance"]["mean"]
    assert found["metrics"]["versus"]["balance_gain"] == pytest.approx(gain)
    assert found["migration"] is None
    assert set(found["seconds"]) == {"read", "solve", "compare", "measure"}


def test_the_balance_is_that_of_the_map_that_is_written(counts: Path) -> None:
    found = placed(counts, "--gpus", "4", "--slots", "20", "--out", "map.json")
    written = json.loads((counts.parent / "map.json").read_text())
    loads = np.array(json.loads(counts.read_text())["counts"], dtype=float)
    values: list[float] = []
    for window in loads:
        for row, load in zip(written["physical_to_logical_map"], window, strict=True):
            copies = np.bincount(row, minlength=EXPERTS)
            gpus = (load[row] / copies[row]).reshape(4, -1).sum(axis=1)
            values.append(float(gpus.mean() / gpus.max()))
    assert found["metrics"]["gpu_balance"]["mean"] == pytest.approx(np.mean(values))
    assert found["metrics"]["gpu_balance"]["worst_layer"] == pytest.approx(min(values))


def test_the_default_method_places_for_traffic(dump: Path) -> None:
    found = placed(dump, "--gpus", "4", "--nodes", "2", "--slots", "16")
    assert found["method"] == "joint"
    assert found["metrics"]["versus"]["remote_nodes_below_cover"] > 0.2


def test_defaults_are_eight_gpus_of_one_node_and_the_fewest_slots(dump: Path) -> None:
    found = placed(dump, "--method", "balance")
    assert (found["num_gpus"], found["num_nodes"], found["num_slots"]) == (8, 1, 16)
    assert found["num_logical_experts"] == 15
    assert placed(dump, "--method", "balance", "--gpus", "16")["num_nodes"] == 2
    assert placed(dump, "--method", "balance", "--gpus", "6")["num_nodes"] == 1


def test_counts_alone_give_no_traffic_and_it_is_said(counts: Path) -> None:
    assert placed(counts)["metrics"]["traffic"] is None
    done = moiety("place", counts)
    assert done.code == 0
    assert "not known: the dump has counts" in done.out
    assert "Traffic between nodes" not in done.out


def test_tables_state_baseline_redundancy_and_balance_beside_each_reduction(dump: Path) -> None:
    done = moiety("place", dump, "--gpus", "8", "--nodes", "4", "--slots", "24", "--method", "balance")
    assert done.code == 0, done.err
    text = " ".join(done.out.split())
    assert "24 a layer, 3 a GPU; 9 copies (60.0% redundancy)" in text
    assert "at 60.0% redundancy, balance" in text
    for rule in ("copies taken evenly", "copies at home first, then evenly", "this serving rule"):
        assert f"eplb-global with one message a node, {rule} (same slots, balance" in text
    assert "flat dispatch, one copy an expert: 3.000 remote messages" in text


def test_quiet_prints_nothing(dump: Path) -> None:
    assert moiety("place", dump, "--method", "balance", "--quiet", "--out", "x.json") == Done(0, "", "")
    assert (dump.parent / "x.json").exists()


def test_windows_cut_the_trace(dump: Path) -> None:
    found = placed(dump, "--method", "balance", "--windows", "5", "--compare", "none")
    assert found["routing"] == {"source": str(dump), "num_windows": 5, "num_tokens": TOKENS, "top_k": TOP_K}
    assert len(found["metrics"]["gpu_balance"]["by_window"]) == 5
    assert found["compared_with"] is None
    done = moiety("place", dump, "--method", "balance", "--windows", "5")
    assert "worst of 5 windows" in done.out


def test_sglang_gets_its_one_key_with_a_row_for_every_layer_of_the_model(work: Path) -> None:
    shape = load_catalog_model("deepseek-v2-lite")
    assert shape.moe is not None
    loads = np.random.default_rng(0).integers(1, 99, size=(shape.num_moe_layers, shape.moe.num_experts))
    np.savez(work / "r.npz", counts=loads)
    done = moiety("place", "r.npz", "--model", "deepseek-v2-lite", "--to", "sglang", "--out", "s.json", "--json")
    written = json.loads((work / "s.json").read_text())
    assert list(written) == ["physical_to_logical_map"]
    assert written["physical_to_logical_map"] == [
        list(range(64)),
        *json.loads(done.out)["physical_to_logical_map"],
    ]
    assert json.loads(done.out)["layers"] == list(range(1, 27))
    again = placed("r.npz", "--model", "deepseek-v2-lite", "--previous", "s.json", "--max-moves", "0")
    assert again["physical_to_logical_map"] == written["physical_to_logical_map"][1:]


def test_a_dump_of_every_layer_is_placed_where_the_model_has_experts(work: Path) -> None:
    loads = np.random.default_rng(0).integers(1, 99, size=(27, 64))
    loads[0] = 0
    np.savez(work / "all.npz", counts=loads)
    np.savez(work / "moe.npz", counts=loads[1:])
    whole, part = (placed(name, "--model", "deepseek-v2-lite") for name in ("all.npz", "moe.npz"))
    assert whole["physical_to_logical_map"] == part["physical_to_logical_map"]
    done = moiety("place", "all.npz", "--json")
    assert "layers without any token" in done.err
    assert len(json.loads(done.out)["layers"]) == 27


@given(slots=st.integers(4, 12), data=st.data())
def test_sglang_rows_without_a_model_are_the_map(slots: int, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.permutations([each % 4 for each in range(slots)]), min_size=1, max_size=3))
    assert expert_location(np.array(rows), None) == {"physical_to_logical_map": rows}


def test_few_moves_from_a_previous_placement(counts: Path, dump: Path) -> None:
    first = placed(counts, "--gpus", "4", "--slots", "20", "--nodes", "2", "--out", "first.json")
    same = ("--previous", "first.json", "--experts", "16", "--method", "balance")
    found = json.loads(moiety("place", dump, *same, "--max-moves", "2", "--expert-bytes", "10 MB", "--json").out)
    moves = found["migration"]
    old, new = (np.array(each["physical_to_logical_map"]) for each in (first, found))
    assert (found["num_gpus"], found["num_nodes"], found["method"]) == (4, 2, "migration")
    assert moves["moves_per_layer"] == (old != new).sum(axis=1).tolist()
    assert 0 < max(moves["moves_per_layer"]) <= 2
    assert moves["bytes"] == 10e6 * moves["num_copies"] > 0
    assert moves["network_bytes"] <= moves["bytes"]
    assert moves["seconds"] is None
    assert found["metrics"]["gpu_balance"]["mean"] > moves["before"]["gpu_balance"]["mean"]
    for each in moves["moves"]:
        assert old[each["layer"], each["source_slot"]] == new[each["layer"], each["slot"]] == each["expert"]
    anew = placed(dump, *same)
    assert anew["method"] == "balance"
    assert anew["migration"]["moves"] is None
    assert anew["metrics"]["gpu_balance"]["mean"] >= found["metrics"]["gpu_balance"]["mean"]
    assert "part in it" in moiety("place", dump, *same, "--max-moves", "2").err


def test_what_moves_is_shown_in_bytes_and_seconds_over_the_links(work: Path, counts: Path) -> None:
    (work / "racks.yaml").write_text(CLUSTER)
    on = ("--cluster", "racks.yaml", "--slots", "16", "--expert-bytes", "1e9")
    first = placed(counts, *on, "--method", "linear", "--out", "first.json")
    assert (first["num_gpus"], first["num_nodes"]) == (8, 4)
    found = placed(counts, *on, "--previous", "first.json", "--max-moves", "2")["migration"]
    assert found["seconds"] >= found["network_bytes"] / 8 / 50e9
    done = moiety("place", counts, *on, "--previous", "first.json", "--max-moves", "2")
    assert "From the previous placement" in done.out
    assert "time on the links" in done.out
    assert "node distances 1 to 4" in done.out


def test_a_cluster_gives_gpus_nodes_and_distances(work: Path) -> None:
    (work / "racks.yaml").write_text(CLUSTER)
    machine = machine_of(gpus=None, nodes=None, cluster="racks.yaml", model=None, expert_bytes=None, previous=None)
    distance = machine.node_distance()
    assert distance is not None
    assert distance.tolist() == [[0, 1, 4, 4], [1, 0, 4, 4], [4, 4, 0, 1], [4, 4, 1, 0]]
    alike = machine_of(gpus=32, nodes=4, cluster="h200x32", model=None, expert_bytes=None, previous=None)
    assert alike.node_distance() is None


def test_a_slot_count_beyond_the_memory_names_the_most_that_fit_and_these_do(work: Path) -> None:
    np.savez(work / "v3.npz", counts=np.ones((58, 256)))
    on = ("v3.npz", "--cluster", "h200x32", "--model", "deepseek-v3", "--method", "linear", "--compare", "none")
    message = refused(moiety("place", *on, "--slots", "4096"))
    assert "--slots = 4096" in message
    most = int(message.split("at most ")[1].split()[0])
    assert most % 32 == 0
    assert placed(*on, "--slots", str(most))["num_slots"] == most
    refused(moiety("place", *on, "--slots", str(most + 32)))
    message = refused(moiety("place", *on, "--cluster", "l40sx8"))
    assert "more GPUs are needed" in message


def test_slow_gpus_get_less(counts: Path) -> None:
    (counts.parent / "speeds.txt").write_text("1 1\n1, 0.5\n")
    listed, read = (
        placed(counts, "--gpus", "4", "--slots", "20", "--gpu-speed", speeds) for speeds in ("1,1,1,.5", "speeds.txt")
    )
    assert listed["physical_to_logical_map"] == read["physical_to_logical_map"]
    plain = placed(counts, "--gpus", "4", "--slots", "20")
    assert plain["physical_to_logical_map"] != listed["physical_to_logical_map"]


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=9), st.sampled_from([",", " ", ", ", "\n"]))
def test_speeds_are_read_as_written(speeds: list[float], between: str) -> None:
    assert gpu_speeds(between.join(map(repr, speeds)), len(speeds)).tolist() == speeds


def test_the_picture_is_drawn_with_the_map(dump: Path) -> None:
    where = ("--gpus", "8", "--nodes", "4", "--slots", "24", "--method", "balance")
    done = moiety("place", dump, *where, "--out", "new/m.json", "--picture", "new/p.svg", "--layer", "1")
    assert done.code == 0, done.err
    assert {path.name for path in (dump.parent / "new").iterdir()} == {"m.json", "p.svg"}
    svg = (dump.parent / "new" / "p.svg").read_text()
    assert "eplb-global, copies taken evenly" in svg
    assert "layer 1, one of 3" in svg
    again = moiety("place", dump, *where, "--previous", "new/m.json", "--picture", "q.svg", "--quiet")
    assert again.code == 0, again.err
    assert "previous placement" in (dump.parent / "q.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere.npz",), ("nowhere.npz", "no such file")),
        (("counts.json", "--method", "ballance"), ("--method", "did you mean 'balance'")),
        (("counts.json", "--compare", "eplp"), ("--compare", "did you mean 'eplb'")),
        (("counts.json", "--to", "sglan", "--out", "x"), ("--to", "did you mean 'sglang'")),
        (("counts.json", "--to", "sglang"), ("--to", "--out")),
        (("counts.json", "--gpus", "0"), ("--gpus",)),
        (("counts.json", "--gpus", "9" * 40), ("--gpus",)),
        (("counts.json", "--gpus", "1000000"), ("GPUs", "16,384")),
        (("counts.json", "--gpus", "8", "--nodes", "3"), ("--nodes = 3", "--gpus is 8")),
        (("counts.json", "--slots", "18"), ("--slots = 18", "try 16 or 24")),
        (("counts.json", "--slots", "8"), ("--slots = 8", "cannot hold 16 experts", "at least 16")),
        (("counts.json", "--slots", "2000000000"), ("--slots", "1,048,576")),
        (("counts.json", "--slots", "many"), ("--slots", "integer")),
        (("counts.json", "--groups", "3"), ("--groups = 3", "16 experts")),
        (("counts.json", "--windows", "2"), ("--windows", "counts")),
        (("counts.json", "--experts", "8"), ("counts.json", "has 16 experts")),
        (("counts.json", "--gpu-speed", "1,2"), ("--gpu-speed", "8 positive numbers")),
        (("counts.json", "--gpu-speed", "1,1,1,1,1,1,1,-1"), ("--gpu-speed", "8 positive numbers")),
        (("counts.json", "--gpu-speed", "1,1,1,1,1,1,1,nan"), ("--gpu-speed", "8 positive numbers")),
        (("counts.json", "--gpu-speed", "1,1,1,1,1,1,1,0"), ("--gpu-speed", "GPU 7 has 0")),
        (("counts.json", "--gpu-speed", "1,1,1,1,1,1,1,1e308"), ("--gpu-speed", "GPU 7 has 1e308")),
        (("counts.json", "--gpu-speed", "1,1,1,1,1,1,1,1e6"), ("--gpu-speed", "10,000 times as fast")),
        (("counts.json", "--gpu-speed", ""), ("--gpu-speed", "numbers or name a file")),
        (("counts.json", "--gpu-speed", "no.txt"), ("no.txt", "no such file")),
        (("counts.json", "--max-moves", "3"), ("--max-moves = 3", "--previous")),
        (("counts.json", "--max-moves", "-3", "--previous", "x"), ("--max-moves",)),
        (("counts.json", "--previous", "no.json"), ("no.json", "no such file")),
        (("counts.json", "--expert-bytes", "44"), ()),
        (("counts.json", "--expert-bytes", "44 MX"), ("--expert-bytes", "unit")),
        (("counts.json", "--expert-bytes", "nan"), ("--expert-bytes", "finite")),
        (("counts.json", "--expert-bytes", "-1 GB"), ("--expert-bytes", "-1 GB")),
        (("counts.json", "--cluster", "h10x8"), ("cluster", "did you mean")),
        (("counts.json", "--cluster", "h200x16", "--gpus", "8"), ("--gpus = 8", "has 16 GPUs")),
        (("counts.json", "--cluster", "h200x16", "--nodes", "4"), ("--nodes = 4", "has 2 innermost")),
        (("counts.json", "--model", "llama-3.1-8b"), ("--model", "no experts")),
        (("counts.json", "--model", "mixtral-8x7b"), ("counts.json", "16 experts, the model 8")),
        (("counts.json", "--layer", "1"), ("--layer", "--picture")),
        (("counts.json", "--picture", "p.png"), ("--picture", ".svg")),
        (("counts.json", "--picture", "p.svg", "--nodes", "2"), ("--picture", "counts only")),
        (("",), ("''", "is a folder")),
        (("counts.json", "--experts", "65537"), ("--experts", "65536")),
        (("counts.json", "--picture", "p.svg", "--compare", "none"), ("--picture", "--compare")),
        (("counts.json", "--picture", "p.svg", "--out", "./p.svg"), ("--picture", "--out")),
        (("counts.json", "--out", "x/"), ("--out", "name a file")),
        (("counts.json", "--out", ".."), ("--out", "name a file")),
        (("counts.json", "--out", ""), ("--out", "name a file")),
        (("counts.json", "--out", "counts.json/x"), ("counts.json", "cannot be written")),
    ],
)
def test_wrong_arguments(arguments: tuple[str, ...], words: tuple[str, ...], counts: Path) -> None:
    done = moiety("place", *arguments)
    if not words:
        assert done.code == 0
        return
    message = refused(done)
    assert all(word in message for word in words), message
    assert [path.name for path in counts.parent.iterdir()] == ["counts.json"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"counts": [[1, 2], [3]]}', ("counts[1]", "1 entries")),
        ('{"counts": [[1, NaN]]}', ("counts", "finite")),
        ('{"counts": [[1, -1]]}', ("counts", "-1")),
        ('{"counts": [[1, 1e999]]}', ("counts", "inf")),
        ('{"counts": [[[0, 0]], [[0, 0]]]}', ("counts", "all 0")),
        ('{"counts": []}', ("counts", "shape")),
        ('{"counts": null}', ("holds no routing",)),
        ('{"counts": [[1, null]]}', ("counts[0][1] = null", "must hold numbers")),
        ('{"counts": [[%s, 1]]}' % 10**30, ("counts[0][0]", "numbers of the usual size")),
        ('{"topk": [[[0, 1]], [[0, -1]]]}', ("topk", "expert -1")),
        ('{"topk": [[[0, 99999999]]]}', ("topk", "99999999")),
        ("[]", ("JSON object",)),
        ("{", ("JSON",)),
        ("", ("JSON",)),
    ],
)
def test_a_dump_that_cannot_be(text: str, words: tuple[str, ...], work: Path) -> None:
    (work / "bad.json").write_text(text)
    message = refused(moiety("place", "bad.json", "--out", "x.json"))
    assert all(word in message for word in ("bad.json", *words)), message
    assert [path.name for path in work.iterdir()] == ["bad.json"]


ROW = list(range(16))


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"physical_to_logical_map": None}, ("physical_to_logical_map", "list of layers")),
        ({"num_gpus": 8}, ("physical_to_logical_map", "no placement")),
        ({"physical_to_logical_map": [ROW] * 2}, ("2 layers", "3")),
        ({"physical_to_logical_map": [ROW, ROW, ROW[1:]]}, ("[2]", "15 slots")),
        ({"physical_to_logical_map": [ROW, ROW, [*ROW[1:], 1]]}, ("[2]", "expert 0")),
        ({"physical_to_logical_map": [[*ROW[:15], 99]] * 3}, ("100 experts", "16")),
        ({"physical_to_logical_map": [[*ROW[:15], -1]] * 3}, ("[0][15]", "-1")),
        ({"physical_to_logical_map": [[*ROW[:15], 1.5]] * 3}, ("[0][15]", "1.5")),
        ({"physical_to_logical_map": [[*ROW[:15], True]] * 3}, ("[0][15]",)),
        ({"physical_to_logical_map": [[*ROW[:15], 10**30]] * 3}, ("[0][15]",)),
        ({"physical_to_logical_map": [[*ROW, 3]] * 3}, ("17 slots", "8 GPUs")),
        ({"physical_to_logical_map": [ROW, []]}, ("list of layers",)),
        ({"physical_to_logical_map": "x"}, ("list of layers",)),
        ({"physical_to_logical_map": [ROW] * 3, "num_gpus": 4}, ("num_gpus", "4 GPUs, not 8")),
        ({"physical_to_logical_map": [ROW] * 3, "num_gpus": "4"}, ("num_gpus",)),
        ({"physical_to_logical_map": [ROW] * 3, "num_logical_experts": 20}, ("20 experts", "16")),
        ({"physical_to_logical_map": [ROW] * 3, "num_logical_experts": 12}, ("num_logical_experts = 12", "expert 15")),
        ({"physical_to_logical_map": [ROW] * 3, "num_gpus": 8, "num_nodes": 3}, ("num_nodes = 3", "8 GPUs")),
        ({"physical_to_logical_map": [ROW] * 3, "expert_tp": 2}, ("expert_tp = 2", "share")),
    ],
)
def test_a_previous_placement_that_does_not_fit(document: object, words: tuple[str, ...], counts: Path) -> None:
    (counts.parent / "previous.json").write_text(json.dumps(document))
    message = refused(moiety("place", counts, "--gpus", "8", "--previous", "previous.json", "--out", "x.json"))
    assert all(word in message for word in ("previous.json", *words)), message
    assert not (counts.parent / "x.json").exists()


def test_a_previous_placement_with_other_slots_is_refused(counts: Path) -> None:
    placed(counts, "--slots", "24", "--out", "first.json")
    message = refused(moiety("place", counts, "--slots", "32", "--previous", "first.json"))
    assert "first.json" in message
    assert "24 slots, not 32" in message


@settings(max_examples=30)
@given(st.text(max_size=12))
def test_any_text_for_speeds_is_read_or_refused(text: str) -> None:
    try:
        found = gpu_speeds(text, 2)
    except InputError:
        return
    assert found.shape == (2,)
    assert (found > 0).all()


def test_what_the_answer_rests_on_is_noted(dump: Path, work: Path) -> None:
    wide = moiety("place", dump, "--gpus", "63", "--nodes", "63", "--json")
    assert wide.code == 0
    assert "63 nodes are too many" in wide.err
    assert json.loads(wide.out)["metrics"]["traffic"]["all_homes"] is True
    assert "too many" not in moiety("place", dump, "--gpus", "63", "--nodes", "63", "--method", "balance").err
    loads = [[[1, 2], [0, 0]], [[0, 0], [0, 0]], [[2, 1], [0, 0]]]
    (work / "gaps.json").write_text(json.dumps({"counts": loads}))
    gaps = moiety("place", "gaps.json", "--gpus", "2")
    assert gaps.code == 0
    assert "layers without any token, placed as if all experts were alike: 1\n" in gaps.err
    assert "windows without any token, taken as the mean of the others: 1\n" in gaps.err


def test_a_terminal_sees_progress(counts: Path) -> None:
    leader, follower = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "moiety", "place", counts.name, "--json"],
        cwd=counts.parent,
        stdout=subprocess.PIPE,
        stderr=follower,
        check=True,
        timeout=60,
    )
    os.close(follower)
    assert b"placing the experts of counts.json" in os.read(leader, 100_000)
    os.close(leader)
    assert json.loads(done.stdout)["num_gpus"] == 8


def test_the_command_starts_without_arrays(work: Path) -> None:
    """`moiety plan` and `moiety --version` do not pay for what places experts."""
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, moiety.cli.main; print(*sys.modules)"],
        cwd=work,
        capture_output=True,
        check=True,
        text=True,
    ).stdout.split()
    assert "moiety.cli.place" in loaded
    assert not {"numpy", "numba", "moiety.placement.methods.table"} & set(loaded)
