"""`moiety catalog`: lists, files to copy, and the schema of plans."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from moiety.cluster.catalog import load_cluster, load_device
from moiety.cluster.reader import read_cluster
from moiety.model.catalog import catalog_models, load_catalog_model
from moiety.model.reader import read_model
from moiety.workload.catalog import catalog_workloads, load_workload
from moiety.workload.reader import read_workload
from tests.cli.command import moiety, refused

SCHEMA = Path(__file__).parents[2] / "docs" / "plan.schema.json"


def shown(*arguments: str) -> str:
    done = moiety("catalog", *arguments)
    assert (done.code, done.err) == (0, "")
    return done.out


def test_lists_name_every_entry() -> None:
    text = shown()
    for name in (*catalog_models(), *catalog_workloads(), "h200", "reference-128"):
        assert name in text
    assert "671.0 B" in text
    assert "deepseek-v3" not in shown("clusters")


def test_json_lists_carry_exact_numbers() -> None:
    models = json.loads(shown("models", "--json"))["models"]
    assert {each["name"] for each in models} == set(catalog_models())
    for each in models:
        model = load_catalog_model(each["name"])
        assert each["num_parameters"] == model.num_parameters
        assert each["num_active_parameters"] == model.num_active_parameters


@pytest.mark.parametrize("name", ["deepseek-v3", "gpt-oss-20b", "reference-moe-235b"])
def test_a_model_that_is_shown_reads_back(name: str) -> None:
    assert read_model(shown("show", name), name=name, source=f"catalogue model {name}") == load_catalog_model(name)


@pytest.mark.parametrize("name", ["h200", "h200x32", "gb200x144", "reference-128", "mi300x", "mi300xx16"])
def test_a_cluster_that_is_shown_reads_back(name: str) -> None:
    assert read_cluster(shown("show", name), source="shown", devices=load_device) == load_cluster(name)


@pytest.mark.parametrize("name", catalog_workloads())
def test_a_workload_that_is_shown_reads_back(name: str) -> None:
    assert read_workload(shown("workloads", "show", name), source="shown") == load_workload(name)


def test_a_cluster_that_is_shown_can_be_planned_on(work: Path) -> None:
    (work / "mine.yaml").write_text(shown("show", "h100x2"))
    done = moiety("plan", "olmoe-1b-7b", "--cluster", "mine.yaml", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["num_gpus"] == 2


def test_shown_as_json_it_is_the_same_text() -> None:
    document = json.loads(shown("show", "chat", "--json"))
    assert document == {"kind": "workloads", "name": "chat", "text": shown("show", "chat")}


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("show", "deepsek-v3"), "did you mean 'deepseek-v3'"),
        (("show", "h200x33"), "h200x32"),
        (("clusters", "show", "deepseek-v3"), "catalog"),
        (("show",), "NAME"),
        (("modells",), "did you mean 'models'"),
        (("show", "a", "b"), "catalog show NAME"),
    ],
)
def test_unknown_words_get_the_nearest(arguments: tuple[str, ...], word: str) -> None:
    assert word in refused(moiety("catalog", *arguments))


def test_the_published_schema_is_that_of_this_version() -> None:
    assert SCHEMA.read_text() == shown("schema"), "write it anew: moiety catalog schema > docs/plan.schema.json"


def test_method_files_obey_the_published_schema(reference_folder: Path, small_folder: Path) -> None:
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    for folder in (reference_folder, small_folder):
        document = json.loads((folder / "enhanced_deployment_method.json").read_text())
        validator.validate(document)
        document["num_gpus"] = "many"
        assert not validator.is_valid(document)
