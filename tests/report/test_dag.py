"""The DAG files: their names, their SVG, and the script that draws them again."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moiety.report.dag import comprehensive_dot, dag_files, drawing_files, generator_script, render_svg, summary_dot
from tests.report.deployments import DEPLOYMENTS, deployment
from tests.report.dot_graph import read_dot

if TYPE_CHECKING:
    from pathlib import Path

SVG = "{http://www.w3.org/2000/svg}"
MAX_SVG_BYTES = 3_000_000


def test_the_files_have_the_names_of_the_specification() -> None:
    assert list(dag_files(deployment("one-node-ep"), "enhanced")) == [
        "enhanced_llm_deployment_comprehensive.dot",
        "enhanced_llm_deployment_comprehensive.svg",
        "enhanced_llm_deployment_summary.dot",
        "enhanced_llm_deployment_summary.svg",
        "generate_enhanced_deployment_dag.py",
    ]


@pytest.mark.parametrize("name", sorted(DEPLOYMENTS))
@pytest.mark.parametrize("draw", [comprehensive_dot, summary_dot])
def test_svg_shows_every_box_and_arrow_and_stays_small(name: str, draw: object) -> None:
    assert callable(draw)
    dot = draw(deployment(name))
    svg = render_svg(dot)
    assert len(svg.encode()) < MAX_SVG_BYTES
    root = ET.fromstring(svg)  # noqa: S314 - our own text
    groups = [group.get("class") for group in root.iter(f"{SVG}g")]
    graph = read_dot(dot)
    assert groups.count("node") == len(graph.nodes)
    assert groups.count("edge") == len(graph.edges)
    written = {"".join(text.itertext()) for text in root.iter(f"{SVG}text")}
    for facts in graph.nodes.values():
        for line in filter(None, re.split(r"\\[nl]", facts["label"])):
            assert line in written


def test_boxes_in_the_svg_have_the_colours_of_the_dot() -> None:
    svg = render_svg(
        'digraph { graph [bb="0,0,99,99"]; a [shape=box, style=filled, fillcolor="#123456", pos="50,50"] }'
    )
    rule = re.search(r"\.(s\d+)\{fill:#123456;[^}]*\}", svg)
    assert rule
    assert f'<rect class="{rule[1]}"' in svg


def test_rendering_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    render_svg(summary_dot(deployment("one-node-tp")))
    assert capfd.readouterr() == ("", "")


def test_dot_that_is_broken_raises() -> None:
    with pytest.raises(Exception, match=r"."):
        render_svg("digraph {")


def test_same_plan_same_bytes_also_after_json() -> None:
    plan = deployment("training")
    again = type(plan).model_validate_json(plan.model_dump_json())
    assert dag_files(plan, "x") == dag_files(again, "x")


@given(name=st.text(max_size=40))
@settings(max_examples=40)
def test_any_name_is_drawn_as_it_is(name: str) -> None:
    plan = deployment("one-gpu").model_copy(update={"name": name})
    root = ET.fromstring(render_svg(summary_dot(plan)))  # noqa: S314 - our own text
    assert root.tag == f"{SVG}svg"


def run_script(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = folder / "generate_enhanced_deployment_dag.py"
    script.write_text(generator_script("enhanced"), encoding="utf-8")
    return subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, check=False, cwd=folder.parent
    )


@pytest.mark.parametrize("with_arguments", [False, True])
def test_the_script_draws_the_same_files_again(tmp_path: Path, with_arguments: bool) -> None:
    plan = deployment("disaggregated")
    source = tmp_path / ("other.json" if with_arguments else "enhanced_deployment_method.json")
    source.write_text(plan.model_dump_json(indent=2), encoding="utf-8")
    out = tmp_path / "out" if with_arguments else tmp_path
    result = run_script(tmp_path, *([str(source), "--out", str(out)] if with_arguments else []))
    assert (result.returncode, result.stderr) == (0, "")
    for name, text in drawing_files(plan, "enhanced").items():
        assert (out / name).read_bytes() == text.encode()


@pytest.mark.parametrize("text", [None, "{", '{"schema_version": 1}'])
def test_the_script_refuses_what_is_no_plan(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "enhanced_deployment_method.json").write_text(text, encoding="utf-8")
    result = run_script(tmp_path)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "enhanced_deployment_method.json" in result.stderr
