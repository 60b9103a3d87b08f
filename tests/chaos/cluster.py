"""The checkpoint, plans and rows that faults are tried on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.runtime.checkpoints import save_checkpoint
from tests.serve.servers import VOCABULARY, planned

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["planned", "rows_file", "tiny_checkpoint"]


def tiny_checkpoint(folder: Path) -> Path:
    """Save the model that all faults are tried on, and return its folder."""
    return save_checkpoint("qwen3_moe", folder)


def rows_file(file: Path) -> Path:
    """Write rows to train on, and return the file."""
    rows = ([(7 * row + 3 * place) % VOCABULARY for place in range(12)] for row in range(6))
    file.write_text("".join(json.dumps({"token_ids": row}) + "\n" for row in rows))
    return file
