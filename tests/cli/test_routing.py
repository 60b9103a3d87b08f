"""`moiety routing`: the statistics of a dump, and synthetic routing like one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from moiety.workload.routing import read_routing
from moiety.workload.routing_statistics import RoutingStatistics, routing_statistics
from moiety.workload.synthetic_routing import RoutingSize, RoutingTargets, synthesize_from
from tests.cli.command import moiety, refused

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = synthesize_from(RoutingTargets(), RoutingSize(3, 16, 2, 2000, 20))
    path = tmp_path_factory.mktemp("routing") / "trace.npz"
    assert made.topk is not None
    assert made.sequence is not None
    np.savez(path, topk=made.topk, sequence=made.sequence)
    return path


def test_the_statistics_are_shown(dump: Path) -> None:
    done = moiety("routing", "show", dump)
    assert (done.code, done.err) == (0, "")
    statistics = routing_statistics(read_routing(dump.read_bytes(), source="dump"))
    assert statistics.coactivation_lift is not None
    assert f"{statistics.coactivation_lift.mean:.3f}" in done.out
    assert "3 layers, 16 experts, top-2, 2,000 tokens, 20 sequences" in " ".join(done.out.split())


def test_json_is_the_record(dump: Path) -> None:
    document = json.loads(moiety("routing", "show", dump, "--json").out)
    assert document.pop("file") == str(dump)
    assert RoutingStatistics.model_validate(document) == routing_statistics(
        read_routing(dump.read_bytes(), source="dump")
    )


def test_what_a_dump_of_counts_cannot_tell_is_said(tmp_path: Path) -> None:
    (tmp_path / "counts.json").write_text('{"counts": [[1, 2, 3]]}')
    shown = " ".join(moiety("routing", "show", tmp_path / "counts.json").out.split())
    assert "cannot tell: distance between windows" in shown
    assert json.loads(moiety("routing", "show", tmp_path / "counts.json", "--json").out)["top_k"] is None


def test_synthetic_routing_is_written_and_reads_back(dump: Path, tmp_path: Path) -> None:
    sizes = ("--layers", "2", "--experts", "24", "--top-k", "3", "--tokens", "600", "--sequences", "6", "--groups", "4")
    first, second = tmp_path / "new" / "a.npz", tmp_path / "b.npz"
    for path in (first, second):
        done = moiety("routing", "synthesize", "--like", dump, "--out", path, *sizes, "--seed", "9", "--json")
        assert (done.code, done.err) == (0, "")
        assert json.loads(done.out)["synthetic"] is True
    assert first.read_bytes() == second.read_bytes()
    made = read_routing(first.read_bytes(), source="a", num_experts=24)
    assert made.topk is not None
    assert made.topk.shape == (2, 600, 3)
    assert made.sequence is not None
    assert len(np.unique(made.sequence)) == 6


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "moiety routing show FILE"),
        (("show",), "moiety routing show FILE"),
        (("show", "a", "b"), "moiety routing show FILE"),
        (("shwo", "a"), "did you mean 'show'"),
        (("show", "missing.npz"), "there is no such file"),
        (("show", "a.npz", "--layers", "3"), "--layers: takes no options"),
        (("show", "a.npz", "--seed", "3"), "--seed: takes no options"),
        (("show", "a.npz", "--groups", "2"), "--groups: takes no options"),
        (("synthesize",), "--like"),
        (("synthesize", "--like", "a.npz"), "--out"),
        (("synthesize", "--like", "a.npz", "--out", "b.txt"), "must end in .npz"),
        (("synthesize", "--like", "missing.npz", "--out", "b.npz"), "there is no such file"),
        (("synthesize", "--like", "missing.npz", "--out", "/dev/null/b.npz"), "--out: /dev/null: cannot be written"),
        (("synthesize", "--like", "a.npz", "--out", "b.npz", "--layers", "0"), "--layers"),
    ],
)
def test_what_is_not_understood_is_refused(arguments: tuple[str, ...], said: str, work: Path) -> None:
    assert said in refused(moiety("routing", *arguments))
    assert list(work.iterdir()) == []


def test_a_size_that_cannot_be_is_refused_before_anything_is_written(dump: Path, tmp_path: Path) -> None:
    target = tmp_path / "b.npz"
    for option, value, said in (
        ("--top-k", "17", "--top-k = 17"),
        ("--groups", "3", "--groups = 3"),
        ("--layers", "2147483648", "layers x tokens x k"),
    ):
        message = refused(moiety("routing", "synthesize", "--like", dump, "--out", target, option, value))
        assert said in message, message
    assert not target.exists()
