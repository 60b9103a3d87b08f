"""Fits: constants come back from times that they made, and the command writes what it prints the errors of."""

from __future__ import annotations

import json
import sys
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from moiety.calibration.catalog import load_calibration
from moiety.calibration.reader import read_calibration
from moiety.calibration.serving import PREFILL_APART
from moiety.cluster.catalog import load_device
from moiety.package_data import catalog_text
from moiety.validation.facts import catalog_facts
from moiety.validation.fit import FITTINGS, main
from moiety.validation.fit_apart import TimedApart, fit_apart
from moiety.validation.fit_kernels import KERNELS_FIT, TimedKernel, fit_kernels, timed_kernels
from moiety.validation.fit_law import Law, dependence, names, prior
from moiety.validation.fit_serving import as_rows, fit_serving, known_rows
from moiety.validation.fitting import FOLDS, every_fold
from moiety.validation.kernel_case import Kernel, dense_product
from moiety.validation.least_squares import minimise
from moiety.validation.predict import ServingPredictor
from moiety.validation.serving_case import serving_case
from moiety.validation.serving_row import ServingRow

if TYPE_CHECKING:
    from numpy.typing import NDArray

CALIBRATION = load_calibration()
APART = {
    "id": "made",
    "model": "deepseek-ai/DeepSeek-V3",
    "system": "gb200",
    "backend": "trtllm",
    "backend_version": "1.2.0",
    "precision": "fp8",
    "mode": "disagg",
    "osl": 256,
    "decode": {"workers": 2, "tp": 8, "moe_ep": 8},
    "draft_tokens": 0,
    "measured": {},
}


def test_a_fit_finds_the_constants_that_made_the_times() -> None:
    line, device = CALIBRATION.roofline["dense_gemm"], load_device("h800")
    shapes = [(m, n, k) for m in (16, 256, 4096) for n in (576, 4096, 24_576) for k in (512, 7168)]
    kernels = [Kernel(dense_product(*shape), "dense_gemm", device) for shape in shapes]
    found = fit_kernels([TimedKernel(each, each.seconds(line), each.layer, "made") for each in kernels])["dense_gemm"]
    assert found.tiles is not None
    assert line.tiles is not None
    assert found.overhead_s == pytest.approx(line.overhead_s, rel=0.03)
    assert found.tiles.step_s == pytest.approx(line.tiles.step_s, rel=0.03)
    assert found.compute_efficiency == pytest.approx(line.compute_efficiency, rel=0.03)
    assert found.memory_efficiency == pytest.approx(line.memory_efficiency, rel=0.03)


def test_one_output_token_tells_a_fit_nothing_of_the_time_per_output_token() -> None:
    rows = (each.row for each in catalog_facts().rows)
    fact = next(row for row in rows if isinstance(row, ServingRow) and row.mode == "agg")
    one = fact.model_copy(update={"osl": 1, "draft_tokens": 0})
    found = as_rows(known_rows([fact, one]))
    assert np.isnan(found.tpot_s).tolist() == [False, True]
    assert not np.isnan(found.ttft_s).any()


def test_constants_that_no_term_has_two_of_are_found_together_as_one_by_one() -> None:
    owner = np.array([0, 1, 0, 1, -1])

    def residuals(point: NDArray[np.float64]) -> NDArray[np.float64]:
        own = np.where(owner < 0, 0.0, point[1:][owner])
        return np.exp(point[0] + own) - np.array([2.0, 5.0, 3.0, 4.0, 1.5])

    start = np.zeros(3)
    depends = np.column_stack([np.ones(5, dtype=bool), owner == 0, owner == 1])
    alone = minimise(residuals, start, rounds=30)
    together = minimise(residuals, start, rounds=30, depends=depends)
    assert together == pytest.approx(alone)
    assert alone == pytest.approx(np.log([1.5, 2.5 / 1.5, 4.5 / 1.5]), abs=1e-3)


def test_a_row_depends_on_its_own_engine_and_release_alone() -> None:
    known = known_rows([each.row for each in catalog_facts().rows])
    table = as_rows([each for each in known if each.family == 0])
    assert table.prompts_alone.any()
    law, depends, (logs, _) = Law(table), dependence(table), prior()
    before = np.stack(law.predict(logs), axis=1)
    for place, name in enumerate(names()):
        moved = logs.copy()
        moved[place] += 0.01
        changed = (np.stack(law.predict(moved), axis=1) != before).any(axis=1)
        assert not (changed & ~depends[:, place]).any(), name


def test_a_family_without_rows_has_what_is_common_to_the_others() -> None:
    rows = [each.row for each in catalog_facts().rows if isinstance(each.row, ServingRow)]
    hopper = [each for each in known_rows(rows) if each.family == 0][:6]
    fitted, (expected, _) = fit_serving(hopper), prior()
    towards = (fitted[1] - expected) * np.sign(fitted[0] - expected)
    assert np.all(towards >= 0)
    assert np.all(np.abs(fitted[1] - expected) <= np.abs(fitted[0] - expected))
    assert np.any(towards > 0)


def test_no_fold_leaves_a_kind_without_kernels() -> None:
    samples = timed_kernels([each.row for each in catalog_facts().rows])
    kinds = {each.kernel.kind for each in samples}
    for split in KERNELS_FIT.splits(samples):
        if not split.name.startswith("a fifth"):
            for left_out in split.folds:
                assert {each.kernel.kind for each in samples if not left_out(each)} == kinds, split.name


def test_times_to_first_token_with_prefill_apart_give_their_constants_back() -> None:
    made = PREFILL_APART.model_copy(update={"handover_overhead_s": 0.05, "concurrency_overhead_s": 8e-4})
    runs = list[TimedApart]()
    for backend, workers, width, concurrency, tokens in product(
        ("trtllm", "sglang"), (1, 4), (1, 8), (1, 4, 16, 64, 1024), (512, 8192)
    ):
        row = APART | {"backend": backend, "isl": tokens, "concurrency": concurrency}
        row |= {"prefill": {"workers": workers, "tp": 8 // width, "attention_dp": width, "moe_ep": 8}}
        stated = ServingRow.model_validate(row)
        parts = ServingPredictor().apart_parts(serving_case(stated))
        runs.append(TimedApart(stated, parts, parts.ttft_s(made)))
    found = fit_apart(runs)
    for name in ("handover_overhead_s", "group_overhead_s", "handshake_rounds", "concurrency_overhead_s"):
        assert getattr(found, name) == pytest.approx(getattr(made, name), rel=0.1), name


@pytest.mark.parametrize("what", ["kernels", "collectives"])
def test_the_command_replaces_the_constants_in_a_calibration(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, into = tmp_path / "rows.jsonl", tmp_path / "calibration.json"
    rows.write_text(catalog_text("measurements", "facts", ".jsonl"), encoding="utf-8")
    before = catalog_text("calibration", CALIBRATION.name, ".json")
    into.write_text(before, encoding="utf-8")
    assert main([what, str(rows), "--into", str(into)]) == 0
    assert capsys.readouterr().out.startswith(f"{what}, fitted on: ")
    written = read_calibration(into.read_text(encoding="utf-8"), source="written")
    fitting = FITTINGS[what]
    samples = fitting.samples([each.row for each in catalog_facts().rows])
    assert json.loads(fitting.rewritten(before, fitting.fit(samples), samples)) == json.loads(
        into.read_text(encoding="utf-8")
    )
    assert (written.roofline == CALIBRATION.roofline) is (what == "collectives")
    assert written.engines == CALIBRATION.engines


def test_rows_that_cannot_be_read_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    assert main(["kernels", str(empty)]) == 2
    assert "empty.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rows.jsonl/into.json", ("cannot be written", "there is a file of that name")),
        ("made.json/", ("must name a file, not a folder",)),
        (".", ("must name a file, not a folder",)),
        ("p" * 300, ("cannot be written", "name too long")),
    ],
)
def test_a_place_that_cannot_be_written_is_named_by_its_option_before_the_fit(
    name: str, words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(catalog_text("measurements", "facts", ".jsonl").splitlines()[0], encoding="utf-8")
    assert main(["serving", str(rows), "--into", f"{tmp_path}/{name}"]) == 2
    found = capsys.readouterr()
    assert (found.out, found.err.count("\n")) == ("", 1)
    assert all(word in found.err for word in ("--into", *words)), found.err
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that takes no files, even root's")
def test_a_file_that_cannot_be_written_after_the_fit_names_its_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(catalog_text("measurements", "facts", ".jsonl").splitlines()[0], encoding="utf-8")
    assert main(["serving", str(rows), "--into", "/proc/made/into.json"]) == 2
    assert capsys.readouterr().err.startswith("--into: /proc")


@pytest.mark.parametrize(
    ("what", "text", "words"),
    [
        ("kernels", "junk", ("into.json", "not valid JSON")),
        ("collectives", "{}", ("into.json", "Field required")),
        ("power", "", ("into.json", "not valid JSON")),
        ("serving", "{}", ("into.json", "Field required", "copy of the catalogue's")),
        ("prefill-apart", "", ("into.json", "Invalid JSON", "copy of the catalogue's")),
        ("kernels", None, ("rows.jsonl", "no row tells of what kernels is fitted on", "moiety validate")),
    ],
)
def test_a_file_of_other_constants_and_rows_of_other_things_are_named(
    what: str, text: str | None, words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, into = tmp_path / "rows.jsonl", tmp_path / "into.json"
    rows.write_text(catalog_text("measurements", "facts", ".jsonl").splitlines()[0] + "\n{", encoding="utf-8")
    if text is not None:
        into.write_text(text, encoding="utf-8")
    assert main([what, str(rows), *(("--into", str(into)) if text is not None else ())]) == 2
    found = capsys.readouterr()
    malformed, message = found.err.splitlines()
    assert malformed == f"{rows}:2: is no JSON"
    assert all(word in message for word in words), message
    assert found.out == ""
    assert text is None or into.read_text(encoding="utf-8") == text


def test_a_fit_without_its_library_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(catalog_text("measurements", "facts", ".jsonl"), encoding="utf-8")
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    assert main(["power", str(rows)]) == 2
    assert "pip install 'moiety[fit]'" in capsys.readouterr().err


def test_every_sample_is_left_out_once() -> None:
    folds = every_fold(lambda each: f"{each}")
    assert [sum(left_out(each) for left_out in folds) for each in range(50)] == [1] * 50
    assert all(any(left_out(each) for each in range(50)) for left_out in folds[:FOLDS])
