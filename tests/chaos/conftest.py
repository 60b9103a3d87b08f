"""What all faults are tried on, and how their recoveries are noted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.chaos.recoveries import recorder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.chaos.cluster import Answer
    from tests.chaos.recoveries import Recover

LONG = 120
"""Tokens of a stream that a fault befalls: more than come before it is over."""


@pytest.fixture
def recover(record_property: Callable[[str, object], None]) -> Recover:
    """Return what notes a recovery, and holds it to its bar."""
    return recorder(record_property)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the checkpoint of a tiny model."""
    pytest.importorskip("torch")
    from tests.chaos.cluster import tiny_checkpoint  # noqa: PLC0415 - it needs torch

    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoints") / "qwen3")


@pytest.fixture(scope="session")
def plan(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a plan for it on three ranks."""
    from tests.chaos.cluster import planned  # noqa: PLC0415 - as above

    return planned(tmp_path_factory.mktemp("plan"), checkpoint)


@pytest.fixture(scope="session")
def answers(checkpoint: Path) -> list[Answer]:
    """Return prompts, and how transformers continues them."""
    from tests.chaos.cluster import answers_of  # noqa: PLC0415 - as above

    return answers_of(checkpoint, LONG)
