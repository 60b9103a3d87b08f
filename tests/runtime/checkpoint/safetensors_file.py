"""Safetensors files by hand, so that they can be wrong."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def described(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
    """Return what a header says of one tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write_file(file: Path, header: Mapping[str, object] | bytes, data: bytes = b"") -> Path:
    """Write a file with this header, whatever it says, and this data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return file


def write_index(folder: Path, weight_map: object) -> None:
    """Write config.json and an index into the folder."""
    (folder / "config.json").write_text('{"model_type": "mixtral"}')
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
