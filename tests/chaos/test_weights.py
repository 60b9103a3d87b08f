"""Weights on disk that are cut short or overwritten: one message, before any rank starts."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("fastapi", reason="serving is an extra")

from tests.cli.command import moiety, refused

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("verb", ["serve", "run", "train"])
def test_damaged_weights_are_refused(
    verb: str, plan: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = "moiety.runtime.fork_server_process.subprocess.Popen"
    monkeypatch.setattr(started, lambda *_, **__: pytest.fail("a rank starts"))
    damaged = tmp_path / "model"
    shutil.copytree(checkpoint, damaged)
    file = damaged / "model.safetensors"
    content = file.read_bytes()
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"token_ids": [1, 2, 3]}\n')
    more = ("--data", rows, "--steps", "1") if verb == "train" else ()
    for damage, words in (
        (content[: len(content) // 2], "is truncated"),
        (content[:5], "is truncated"),
        (b"\xff" * 64 + content[64:], "is not a safetensors file"),
        (content[:8] + b"\x00" + content[9:], "not valid JSON"),
    ):
        file.write_bytes(damage)
        message = refused(moiety(verb, plan, "--checkpoint", damaged, *more))
        assert message.startswith(str(file))
        assert words in message
        assert "fetch it again" in message
