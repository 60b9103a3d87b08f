"""Plans that several tests look at, made once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cli.command import moiety

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def reference_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the reference scenario's plan."""
    folder = tmp_path_factory.mktemp("reference")
    done = moiety("plan", "--quiet", "--out", folder)
    assert done.code == 0, done.err
    return folder


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a plan of a small model on one node."""
    folder = tmp_path_factory.mktemp("small")
    done = moiety("plan", "mixtral-8x7b", "--cluster", "h100x8", "--quiet", "--out", folder)
    assert done.code == 0, done.err
    return folder


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder that is the current one, in a terminal of 110 columns."""
    monkeypatch.setenv("COLUMNS", "110")
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder
