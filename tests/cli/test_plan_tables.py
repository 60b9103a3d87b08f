"""`moiety plan --tables`: what the plan says of them, and what becomes of it when they are gone."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.command import moiety
from tests.measured_tables import FILES, RELEASE, attention_rows, gemm_rows, moe_rows, parquet, write_folder

if TYPE_CHECKING:
    from pathlib import Path

MIXTRAL = (
    "mixtral-8x7b",
    "--cluster",
    "h100x8",
    "--strategy",
    "tp8",
    "--workload",
    "batch-decode",
    "--concurrency",
    "256",
)
GEMM = f"gemm/{RELEASE}/gemm_perf.parquet"
SHAPES = {
    f"moe/{RELEASE}/moe_perf.parquet": moe_rows(hidden_size=4096, inter_size=14336, num_experts=8, moe_tp_size=8),
    f"attention/{RELEASE}/generation_attention_perf.parquet": attention_rows(4, 1, 128, decode=True),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("systems") / "h100_sxm", SHAPES)


def refused(*arguments: str | Path) -> str:
    done = moiety(*arguments)
    assert done.code == 2
    assert done.err.count("\n") == 1
    return done.err


def test_a_plan_names_its_tables_and_is_worth_nothing_without_them(folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "h100_sxm"
    shutil.copytree(folder, mine)
    done = moiety("plan", *MIXTRAL, "--tables", f"{mine}:{RELEASE}", "--out", tmp_path / "plan")
    assert done.code == 0, done.err
    plan: dict[str, Any] = json.loads((tmp_path / "plan" / "enhanced_deployment_method.json").read_text())
    source, covered = plan["provenance"]["tables"], plan["pools"][0]["tables"]
    assert source["name"] == "aiconfigurator h100_sxm vllm/0.24.0"
    assert source["folder"] == f"{mine}:{RELEASE}"
    assert covered["by_law"] == ["router"]
    assert covered["covered_ops"] == covered["ops"] - 32
    assert f"{covered['covered_ops']} of {covered['ops']} kernels and transfers from tables" in done.out
    assert moiety("verify", tmp_path / "plan").code == 0

    (mine / GEMM).write_bytes(parquet(gemm_rows()[:-1]))
    assert "other tables" in refused("verify", tmp_path / "plan")
    shutil.rmtree(mine)
    gone = refused("simulate", tmp_path / "plan")
    assert "provenance.tables" in gone
    assert str(mine) in gone
    assert "not at hand" in gone


def test_the_same_tables_give_the_same_plan(folder: Path, tmp_path: Path) -> None:
    texts: list[str] = []
    for name in ("one", "other"):
        done = moiety("plan", *MIXTRAL, "--tables", f"{folder}:{RELEASE}", "--out", tmp_path / name, "--json")
        assert done.code == 0, done.err
        texts.append(done.out)
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("argument", "rule"),
    [
        ("nowhere:vllm/0.24.0", "names no folder"),
        ("{folder}", "names no folder"),
        ("{folder}:", "no tables of that release"),
        ("{folder}:vllm/0.24", "did you mean 'vllm/0.24.0'"),
        ("{folder}/gemm:vllm/0.24.0", "FAMILY/ENGINE/RELEASE"),
    ],
)
def test_what_names_no_tables_is_refused(argument: str, rule: str, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan"
    assert rule in refused("plan", *MIXTRAL, "--tables", argument.format(folder=folder), "--out", out)
    assert not out.exists()


def test_tables_of_another_device_and_broken_files_are_refused(folder: Path, tmp_path: Path) -> None:
    elsewhere = [argument.replace("h100x8", "h200x8") for argument in MIXTRAL]
    assert "measured on NVIDIA H100 80GB HBM3" in refused("plan", *elsewhere, "--tables", f"{folder}:{RELEASE}")
    broken = tmp_path / "h100_sxm" / GEMM
    broken.parent.mkdir(parents=True)
    for data in (b"PAR1", parquet(FILES[GEMM])[:-40]):
        broken.write_bytes(data)
        message = refused("plan", *MIXTRAL, "--tables", f"{tmp_path / 'h100_sxm'}:{RELEASE}")
        assert f"{broken}: is not a Parquet table" in message
    broken.write_bytes(parquet([{**row, "latency": 0.0} for row in FILES[GEMM]]))
    assert f"{broken}: row 0 = 0.0: " in refused("plan", *MIXTRAL, "--tables", f"{tmp_path / 'h100_sxm'}:{RELEASE}")
