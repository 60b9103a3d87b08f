"""The files of the DAG drawings: the comprehensive and the summary DAG as DOT and SVG, and the script for them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from moiety.report.comprehensive_dag import comprehensive_dot
from moiety.report.summary_dag import summary_dot
from moiety.report.svg import render_svg

if TYPE_CHECKING:
    from moiety.plan import Plan

__all__ = ["comprehensive_dot", "dag_files", "drawing_files", "generator_script", "render_svg", "summary_dot"]


def dag_files(plan: Plan, name: str) -> dict[str, str]:
    """Return the text of every DAG file by its file name: two drawings as DOT and SVG, and the generator script."""
    return {**drawing_files(plan, name), f"generate_{name}_deployment_dag.py": generator_script(name)}


def drawing_files(plan: Plan, name: str) -> dict[str, str]:
    """Return the text of the four drawings by file name; same plan, same bytes."""
    files: dict[str, str] = {}
    for kind, dot in (("comprehensive", comprehensive_dot(plan)), ("summary", summary_dot(plan))):
        files[f"{name}_llm_deployment_{kind}.dot"] = dot
        files[f"{name}_llm_deployment_{kind}.svg"] = render_svg(dot)
    return files


def generator_script(name: str) -> str:
    """Return a program that draws the four files again from the plan's JSON file beside it."""
    return _SCRIPT.replace("NAME_HERE", json.dumps(name, ensure_ascii=False), 1)


_SCRIPT = '''"""Draw the deployment DAGs again from the plan that lies beside this file. Needs Moiety."""

from __future__ import annotations

import argparse
from pathlib import Path

from moiety.plan import Plan
from moiety.report.dag import drawing_files

NAME = NAME_HERE
HERE = Path(__file__).resolve().parent


def main() -> None:
    """Read the plan, draw it, write DOT and SVG files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plan", nargs="?", type=Path, default=HERE / f"{NAME}_deployment_method.json")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for the files (default: beside this script)")
    arguments = parser.parse_args()
    try:
        plan = Plan.model_validate_json(arguments.plan.read_text(encoding="utf-8"))
        arguments.out.mkdir(parents=True, exist_ok=True)
        for file_name, text in drawing_files(plan, NAME).items():
            path = arguments.out / file_name
            path.write_text(text, encoding="utf-8", newline="\\n")
            print(path)
    except (OSError, ValueError) as error:
        parser.exit(2, f"{arguments.plan}: {error}\\n")


if __name__ == "__main__":
    main()
'''
