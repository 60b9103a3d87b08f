"""What the system says about itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.machine import readings

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_a_container_limit_counts_where_it_is_lower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = readings.available_memory_bytes()
    assert whole is not None
    limit, usage = tmp_path / "memory.max", tmp_path / "memory.current"
    usage.write_text("1000000\n")
    monkeypatch.setattr(readings, "_MEMORY_LIMITS", ((str(limit), str(usage)),))
    limit.write_text("3000000\n")
    assert readings.available_memory_bytes() == 2_000_000
    limit.write_text("max\n")
    assert (readings.available_memory_bytes() or 0) > 2_000_000


def test_what_the_system_does_not_say_is_not_made_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(readings, "Path", lambda _: tmp_path / "absent")
    assert readings.clock_hz() is None
    assert readings.processor_name() == "processor"
    assert readings.num_cores() >= 1
