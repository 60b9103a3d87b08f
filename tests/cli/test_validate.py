"""`moiety validate`: rows beside predictions, malformed lines by number, exit codes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from moiety.cli.main import main
from moiety.package_data import catalog_text

if TYPE_CHECKING:
    from pathlib import Path

ROWS = catalog_text("measurements", "facts", ".jsonl").splitlines()
SYSTEM_ROWS: list[dict[str, Any]] = [
    {"id": 1, "kind": "kernel", "tier": "A", "hardware": "H800", "model": "dense GEMM M4096 N7168 K2048", "n_gpus": 1,
     "metrics": {"us": 97.0}},
    {"id": 2, "kind": "kernel", "tier": "A", "hardware": "H800", "model": "GQA decode 32q/8kv d128", "batch": 32,
     "isl": 8192, "metrics": {"us": 350.0}},
    {"id": 3, "kind": "comm", "tier": "A", "hardware": "h100_dgx", "model": "all_reduce", "n_gpus": 8,
     "metrics": {"bytes": 67108864, "us": 350.0, "bottleneck": "NVLink"}},
    {"id": 4, "kind": "latency", "tier": "A", "hardware": "H100", "model": "-", "metrics": {"us": 1.0}},
    {"id": 5, "kind": "e2e", "tier": "B", "hardware": "H100", "model": "-", "metrics": {}},
]  # fmt: skip


def _run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(["validate", *arguments])
    printed = capsys.readouterr()
    return int(left.value.code or 0), printed.out, printed.err


def test_rows_stand_beside_predictions_and_malformed_lines_do_not_stop_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unknown = json.loads(ROWS[1]) | {"model": "acme/unheard-of"}
    data = tmp_path / "rows.jsonl"
    lines = [ROWS[0], "{", json.dumps(json.loads(ROWS[0]) | {"isl": -5}), "", json.dumps(unknown)]
    data.write_text("\n".join(lines), encoding="utf-8")
    code, out, err = _run(capsys, str(data), "--json", "--plot", str(tmp_path / "plot.svg"))
    document = json.loads(out)
    first, second = document["rows"]
    assert code == 0
    assert set(first["predicted"]) == set(first["measured"]) == set(first["error"]) == {"ttft_ms", "tpot_ms"}
    ratio = first["predicted"]["tpot_ms"] / first["measured"]["tpot_ms"]
    assert first["error"]["tpot_ms"] == pytest.approx(ratio - 1)
    assert second["skipped"] == "model 'acme/unheard-of' is not in the catalogue"
    assert "predicted" not in second
    assert [each["line"] for each in document["malformed"]] == [2, 3]
    assert f"{data}:3: isl = -5" in err
    assert document["metrics"]["tpot_ms"]["coverage"] == 0.5
    assert document["metrics"]["tpot_ms"]["mape"] == pytest.approx(abs(first["error"]["tpot_ms"]))
    assert (tmp_path / "plot.svg").read_text(encoding="utf-8").count("<circle") == 3  # two points and the legend's


def test_kernels_and_collectives_are_predicted_and_the_rest_has_a_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in SYSTEM_ROWS), encoding="utf-8")
    code, out, _ = _run(capsys, str(data), "--json")
    rows = json.loads(out)["rows"]
    assert code == 0
    assert [list(row.get("predicted", {})) for row in rows] == [["us"], ["us"], ["us"], [], []]
    assert all(0.5 < row["predicted"]["us"] / row["measured"]["us"] < 2 for row in rows[:3])
    assert rows[3]["skipped"] == "which devices and cards a bare link joins is not stated"
    assert "tier B" in rows[4]["skipped"]


def test_plans_of_serving_rows_are_compared_by_themselves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, plot = tmp_path / "rows.jsonl", tmp_path / "plot.svg"
    run = next(json.loads(each) for each in ROWS if '"mode"' in each and '"backend_version": "0.12.0"' in each)
    guessed = run | {"draft_tokens": 2}
    data.write_text("\n".join(json.dumps(row) for row in (run, guessed, SYSTEM_ROWS[0])), encoding="utf-8")
    code, out, _ = _run(capsys, str(data), "--as-planned", "--json", "--plot", str(plot))
    planned, as_run = json.loads(out), json.loads(_run(capsys, str(data), "--json")[1])
    assert code == 0
    assert (planned["as_planned"], as_run["as_planned"]) == (True, False)
    assert planned["rows"][0]["predicted"] != as_run["rows"][0]["predicted"]
    assert planned["rows"][0]["measured"] == as_run["rows"][0]["measured"]
    assert "guessed tokens" in planned["rows"][1]["skipped"]
    assert planned["rows"][2]["skipped"] == "as planned only serving rows are predicted"
    assert planned["groups"]["version"].keys() == {"0.12.0"}
    assert "planned ttft_ms, upwards" in plot.read_text(encoding="utf-8")
    assert "3 rows, serving runs as `moiety plan` would time them" in _run(capsys, str(data), "--as-planned")[1]


def test_a_page_has_the_errors_of_plans_beside_those_of_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    assert _run(capsys, "--page", str(page), "--quiet")[0] == 0
    _, _, section = page.read_text(encoding="utf-8").partition("## As planned\n")
    (line,) = (each for each in section.splitlines() if each.startswith("| ttft_ms, prefill and decode apart |"))
    planned = json.loads(_run(capsys, "--as-planned", "--json")[1])["groups"]["phase"]["disagg"]["ttft_ms"]
    assert line.split("|")[2:4] == [f" {planned['num_rows']} ", f" {planned['mape']:.0%} "]
    kernels = tmp_path / "kernels.jsonl"
    kernels.write_text(json.dumps(SYSTEM_ROWS[0]), encoding="utf-8")
    assert _run(capsys, str(kernels), "--page", str(page))[0] == 0
    assert "## As planned" not in page.read_text(encoding="utf-8")


def test_without_files_the_catalogues_own_measurements_are_used(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = _run(capsys)
    assert (code, err) == (0, "")
    assert f"{len(ROWS)} rows" in out
    assert "Worst groups in ttft_ms" not in out or "rows" in out
    assert "By backend, the worst first" in out


def test_quiet_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(capsys, "--quiet") == (0, "", "")


def test_a_file_without_rows_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("[1]\n", encoding="utf-8")
    code, out, err = _run(capsys, str(data))
    assert (code, out) == (2, "")
    assert "holds no row of measurements; line 1: is no JSON object" in err
    assert _run(capsys, str(tmp_path / "none.jsonl"))[0] == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--plot", "p.svg", "--page", "."), ("--page", "must name a file, not a folder")),
        (("--plot", "p.svg", "--page", "rows.jsonl/p.md"), ("rows.jsonl", "there is a file of that name")),
        (("--plot", ""), ("--plot", "must name a file")),
        (("--plot", "p" * 300), ("--plot", "cannot be written", "name too long")),
        (("--plot", "p", "--page", "./p"), ("--page", "is the file of --plot too", "name two files")),
        (("--left-out", "rows.jsonl"), ("--left-out", "stands in a page", "--page")),
        (("--as-planned", "--page", "p.md"), ("--page", "errors of plans", "leave --as-planned out")),
    ],
)
def test_files_that_could_not_be_written_are_named_before_the_work(
    arguments: tuple[str, ...],
    words: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text(ROWS[0], encoding="utf-8")
    code, out, err = _run(capsys, "rows.jsonl", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert all(word in err for word in words), err
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_rows_of_several_files_name_theirs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / name / "rows.jsonl" for name in "ab"]
    for path in paths:
        path.parent.mkdir()
        path.write_text(ROWS[0] + "\n" + ROWS[1], encoding="utf-8")
    code, out, _ = _run(capsys, *map(str, paths), "--json")
    found = [(row["file"], row["line"]) for row in json.loads(out)["rows"]]
    assert code == 0
    assert found == [(str(path), line) for path in paths for line in (1, 2)]
