"""`moiety plan --routing`: a trace of tokens decides the placement, and the page says what that gives."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.cli.command import moiety

if TYPE_CHECKING:
    from pathlib import Path

PLAN = ("plan", "olmoe-1b-7b", "--cluster", "h100x16", "--strategy", "ep16_tp1")
NUM_LAYERS, NUM_EXPERTS, TOP_K = 16, 64, 8


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a trace of two topics, one of even experts, one of odd ones."""
    rng = np.random.default_rng(1)
    topic = rng.integers(2, size=600)
    near = np.where(topic[:, None] == np.arange(NUM_EXPERTS) % 2, 4.0, 0.0)
    noisy = near + rng.gumbel(size=(NUM_LAYERS, 600, NUM_EXPERTS))
    path = tmp_path_factory.mktemp("trace") / "trace.npz"
    np.savez(path, topk=np.argsort(-noisy, axis=2)[:, :, :TOP_K].astype(np.int16))
    return path


@pytest.fixture(scope="module")
def folder(trace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a plan that was made with the trace."""
    out = tmp_path_factory.mktemp("routed") / "plan"
    done = moiety(*PLAN, "--routing", trace, "--out", out)
    assert done.code == 0, done.err
    (out.parent / "page.txt").write_text(done.out)
    return out


def test_the_page_says_what_placement_gives(folder: Path) -> None:
    page = " ".join((folder.parent / "page.txt").read_text().split())
    for words in (
        "Placement by measured routing",
        "joint",
        "eplb-global",
        "linear-placement",
        "measured on 600 tokens",
    ):
        assert words in page, words
    document = json.loads((folder / "enhanced_deployment_method.json").read_text())
    assert document["options"]["placement"] == "joint"
    assert f"{document['projection']['throughput_tokens_per_s']:,.0f}" in page


def test_the_plan_file_is_verified_and_simulated_without_the_trace(folder: Path, tmp_path: Path) -> None:
    done = moiety("verify", folder, "--json")
    assert done.code == 0, done.err
    checks = {each["check"] for each in json.loads(done.out)["findings"]}
    assert {"routed-traffic", "served-loads"} <= checks
    ablated = moiety("simulate", folder, "--ablate", "--gpus", "8", "--json", "--trace", tmp_path / "t.json")
    assert ablated.code == 0, ablated.err
    assert "placement" in {line["option"] for line in json.loads(ablated.out)["ablation"]}
    assert "does not hold the trace" in ablated.err
    assert "does not hold the trace" not in moiety("simulate", folder, "--trace", tmp_path / "t.json").err


def test_a_method_can_be_chosen(trace: Path, tmp_path: Path) -> None:
    done = moiety(*PLAN, "--routing", trace, "--set", "placement=linear", "--json", "--out", tmp_path / "linear")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert "linear-placement" not in {each["name"] for each in document["comparison"]}
    assert document["pools"][0]["placement"]["traffic"]["num_tokens"] == 600


def test_tokens_of_another_router_are_refused(tmp_path: Path) -> None:
    topk = np.tile(np.arange(4), (NUM_LAYERS, 10, 1))
    np.savez(tmp_path / "other.npz", topk=topk)
    done = moiety(*PLAN, "--routing", tmp_path / "other.npz", "--out", tmp_path / "plan")
    assert done.code == 2
    assert "topk" in done.err
    assert "has 4 experts a token, the model's router chooses 8" in done.err


def test_without_routing_the_file_has_no_word_of_it(tmp_path: Path) -> None:
    done = moiety(*PLAN, "--json", "--out", tmp_path / "plan")
    document = json.loads(done.out)
    assert "measured" not in document["pools"][0]
    assert "traffic" not in document["pools"][0]["placement"]
