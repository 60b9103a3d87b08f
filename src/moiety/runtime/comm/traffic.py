"""Traffic: the bytes that one rank sent, by class and by tier of the cluster."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Protocol

from moiety.runtime.comm.priority import Priority

if TYPE_CHECKING:
    from moiety.cluster.cluster import LinkTier


class Observer(Protocol):
    """What hears of every transfer that ended; it is called by whichever thread saw the end."""

    def transferred(
        self, name: str, priority: Priority, start_s: float, end_s: float, tier_bytes: tuple[int, ...]
    ) -> None:
        """Take note of a transfer `<label> <operation>`, its times by `time.perf_counter`, and bytes sent by tier."""

    def waited(self, start_s: float, end_s: float, came_s: float) -> None:
        """Take note that the calling thread did nothing but wait for a transfer, which had come at `came_s`."""


def tier_between(tiers: tuple[LinkTier, ...], first: int, second: int) -> int:
    """Return the number of the innermost tier whose domain of consecutive ranks holds both; the last if none does."""
    for index, tier in enumerate(tiers):
        if first // tier.num_gpus == second // tier.num_gpus:
            return index
    return len(tiers) - 1


class Traffic:
    """Bytes of payload that this rank handed to each tier, and the number of transfers, by class."""

    def __init__(self, tier_names: tuple[str, ...]) -> None:
        self._tier_names = tier_names
        self.num_tiers = len(tier_names)
        self._lock = Lock()
        self.reset()

    def reset(self) -> None:
        """Start again from zero."""
        with self._lock:
            self._num_transfers = [0] * len(Priority)
            self._sent_bytes = [[0] * len(self._tier_names) for _ in Priority]

    def add(self, priority: Priority, tier_bytes: tuple[int, ...]) -> None:
        """Count one transfer of `tier_bytes` bytes a tier."""
        with self._lock:
            self._num_transfers[priority] += 1
            sent = self._sent_bytes[priority]
            for tier, size_bytes in enumerate(tier_bytes):
                sent[tier] += size_bytes

    def snapshot(self) -> dict[str, dict[str, int | dict[str, int]]]:
        """Return, for every class by its name in small letters, `num_transfers` and `sent_bytes` by name of tier."""
        with self._lock:
            return {
                priority.name.lower(): {
                    "num_transfers": self._num_transfers[priority],
                    "sent_bytes": dict(zip(self._tier_names, self._sent_bytes[priority], strict=True)),
                }
                for priority in Priority
            }
