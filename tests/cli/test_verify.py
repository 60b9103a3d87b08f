"""`moiety verify`: findings about a finished plan, and claims audited."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from moiety.package_data import catalog_text
from tests.cli.command import moiety, refused

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("by", ["folder", "file"])
def test_a_plan_that_was_just_made_passes(by: str, small_folder: Path) -> None:
    argument = small_folder if by == "folder" else small_folder / "enhanced_deployment_method.json"
    done = moiety("verify", argument, "--json")
    assert (done.code, done.err) == (0, "")
    document = json.loads(done.out)
    assert document["summary"]["passed"]
    assert document == json.loads((small_folder / "enhanced_deployment_verification.json").read_text())


def test_a_projection_that_was_changed_is_an_error(small_folder: Path, work: Path) -> None:
    stored = json.loads((small_folder / "enhanced_deployment_method.json").read_text())
    for projection in (stored["projection"], stored["pools"][0]["projection"]):
        projection["throughput_tokens_per_s"] *= 2
    (work / "p.json").write_text(json.dumps(stored))
    done = moiety("verify", "p.json", "--json")
    assert done.code == 1
    assert json.loads(done.out)["summary"]["num_errors"] > 0
    assert len(done.err.splitlines()) == 1
    assert moiety("verify", "p.json", "--quiet").err == done.err
    assert "FAILED" in moiety("verify", "p.json").out


def test_a_placement_that_is_gone_is_an_error_not_a_crash(small_folder: Path, work: Path) -> None:
    stored = json.loads((small_folder / "enhanced_deployment_method.json").read_text())
    stored["pools"][0]["placement"] = None
    (work / "p.json").write_text(json.dumps(stored))
    done = moiety("verify", "p.json")
    assert done.code == 1
    assert "placement" in done.err


def test_the_reference_plan_is_audited_against_the_catalogue(reference_folder: Path) -> None:
    done = moiety("verify", reference_folder)
    assert done.code == 0, done.err
    assert "Audit of" in done.out
    assert "does not hold" in done.out


def test_claims_of_a_file_are_audited(reference_folder: Path, work: Path) -> None:
    (work / "claims.yaml").write_text(catalog_text("claims", "reference"))
    own = moiety("verify", reference_folder, "--claims", "claims.yaml", "--json")
    assert own.code == 0, own.err
    assert json.loads(own.out) == json.loads(moiety("verify", reference_folder, "--json").out)


def test_claims_about_another_scenario_are_refused(small_folder: Path, work: Path) -> None:
    (work / "claims.yaml").write_text(catalog_text("claims", "reference"))
    message = refused(moiety("verify", small_folder, "--claims", "claims.yaml"))
    assert "reference-moe-235b" in message
    assert "mixtral-8x7b" in message


@pytest.mark.parametrize("text", ["", "claims: [", "name: x\nstrategy: tp8\nclaims: []\n", "name: x\nclaims: .nan\n"])
def test_claims_that_cannot_be_read_are_refused(text: str, small_folder: Path, work: Path) -> None:
    (work / "claims.yaml").write_text(text)
    assert "claims.yaml" in refused(moiety("verify", small_folder, "--claims", "claims.yaml"))


def test_claims_that_are_not_there_are_refused(small_folder: Path) -> None:
    assert "nowhere.yaml" in refused(moiety("verify", small_folder, "--claims", "nowhere.yaml"))
