"""What the README shows is what the command prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.command import moiety

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.usefixtures("work")
def test_the_output_in_the_readme_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "110")
    shown = (
        README.read_text(encoding="utf-8").partition("<!-- plan-output -->")[2].partition("<!-- /plan-output -->")[0]
    )
    lines = [line.rstrip() for line in shown.strip().splitlines() if line.strip() not in {"", "```", "..."}]
    printed = {line.rstrip() for line in moiety("plan").out.splitlines()}
    assert len(lines) > 30
    assert [line for line in lines if line not in printed] == []
