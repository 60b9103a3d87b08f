"""Parcels: texts of any length through the store, whose server takes 8 MiB a value at most."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage] - torch's own way to export it

_PIECE_CHARACTERS = 1 << 20
"""Of up to 4 bytes."""


def send_parcel(store: Store, key: str, text: str) -> None:
    """Put a text into the store under a key; whoever sees the key finds all of it."""
    pieces = range(0, len(text), _PIECE_CHARACTERS)
    for number, first in enumerate(pieces):
        store.set(f"{key}/{number}", text[first : first + _PIECE_CHARACTERS])
    store.set(key, str(len(pieces)))


def parcel(store: Store, key: str) -> str:
    """Return the text that was put into the store under a key; waits for the key as the store does."""
    num_pieces = int(store.get(key))
    return "".join(store.get(f"{key}/{number}").decode() for number in range(num_pieces))
