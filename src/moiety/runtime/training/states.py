"""States on disk: the newest one of a training, and the one before it, which is kept for when that is damaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moiety.errors import InputError
from moiety.runtime.training.manifest import whole_state

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class FoundState:
    """A state that is whole."""

    folder: Path
    damage: str | None
    """Why it is not the newest one, in words for the user; None where it is."""


def previous_of(folder: Path) -> Path:
    """Return where the state is kept that `folder` held before."""
    return folder.with_name(f"{folder.name}.previous")


def newest_whole(folder: Path) -> FoundState:
    """Return the newest whole state that was saved to `folder`, all of whose bytes have been compared.

    Raises InputError, with what is wrong with both, where neither it nor the one before it is whole.
    """
    try:
        whole_state(folder)
    except InputError as error:
        newest = error
    else:
        return FoundState(folder, None)
    before = previous_of(folder)
    try:
        manifest = whole_state(before)
    except InputError as error:
        rule = f"{newest}; nor is the state before it whole: {error}"
        raise InputError(rule, field="--resume", value=str(folder), remedy="name another state") from None
    return FoundState(before, f"{newest}; going on from the state before it, {before} of step {manifest.step}")
