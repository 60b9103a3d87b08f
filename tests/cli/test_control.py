"""`moiety control simulate`: a day under the policy, from a plan."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.cli.command import moiety, refused

if TYPE_CHECKING:
    from pathlib import Path


def test_a_day_is_the_same_document_each_time(tmp_path: Path) -> None:
    done = moiety(
        "plan", "mixtral-8x7b", "--cluster", "h100x8", "--strategy", "tp1_dp8_ep2", "--out", tmp_path / "plan"
    )
    assert done.code == 0, done.err
    call = ("control", "simulate", tmp_path / "plan", "--hours", "4", "--fail", "gpu:3@1.2")
    done = moiety(*call, "--json")
    assert done.code == 0, done.err
    assert moiety(*call, "--json").out == done.out
    document = json.loads(done.out)
    assert document["day"]["windows"] == 48
    assert document["day"]["recoveries"][0]["fenced_after_s"] > 0
    assert "gpu:3" in moiety(*call).out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--fail", "gpu:9"), "--fail = 'gpu:9': an instance of the plan has 8 of them"),
        (("--hours", "0.1", "--window", "600"), "--window = 600.0: is longer than the day"),
        (("--hours", "0"), "--hours"),
    ],
)
def test_days_that_cannot_be_are_refused(small_folder: Path, options: tuple[str, ...], said: str) -> None:
    assert said in refused(moiety("control", "simulate", small_folder, *options))
