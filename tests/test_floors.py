"""The floors as written: no room is left out of the rule that planning needs no torch."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_room_but_the_run_time_is_kept_from_torch() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    without_torch = [each for each in contracts if "torch" in each.get("forbidden_modules", ())]
    kept = {name for each in without_torch for name in each["source_modules"]}
    rooms = {
        f"moiety.{path.stem}"
        for path in (ROOT / "src" / "moiety").iterdir()
        if (path.suffix == ".py" or (path / "__init__.py").exists()) and path.stem != "__init__"
    }
    assert kept == rooms - {"moiety.runtime"}
