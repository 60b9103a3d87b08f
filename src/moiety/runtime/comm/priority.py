"""Priority: what a transfer is for; the lower, the more urgent."""

from __future__ import annotations

from enum import IntEnum


class Priority(IntEnum):
    """Classes of traffic. The first two are foreground; the others are bulk, carried in chunks that give way."""

    EXCHANGE = 0
    """Dispatch and combine, and what they need to know first."""
    REDUCTION = 1
    """Tensor-parallel reductions, pipeline sends, token hand-over."""
    PREFETCH = 2
    MIGRATION = 3
    CHECKPOINT = 4

    @property
    def is_bulk(self) -> bool:
        """Whether transfers of the class give way to the foreground."""
        return self >= Priority.PREFETCH
