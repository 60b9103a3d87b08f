"""Ledger: what one group's transfers are counted and reported as."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from moiety.runtime.comm.priority import Priority
    from moiety.runtime.comm.traffic import Observer, Traffic


class Ledger:
    """The class, label and tiers of a group; its transfers are counted in `traffic` and told to `observer`."""

    def __init__(
        self,
        label: str,
        priority: Priority,
        tiers: tuple[int, ...],
        own_place: int,
        traffic: Traffic,
        observer: Observer | None,
    ) -> None:
        self.label = label
        self.priority = priority
        self.tiers = tiers
        """The tier between this rank and each member."""
        self.came_s = 0.0
        """When what the group has exchanged last had come here, as the kernel saw it where it says so."""
        self._traffic = traffic
        self._observer = observer
        self._others_by_tier = [0] * traffic.num_tiers
        for place, tier in enumerate(tiers):
            self._others_by_tier[tier] += place != own_place

    def to_every_other(self, size_bytes: int) -> tuple[int, ...]:
        """Return the bytes a tier when every other member is sent as much."""
        return tuple(size_bytes * num_others for num_others in self._others_by_tier)

    def by_tier(self, sent: Iterable[tuple[int, int]]) -> tuple[int, ...]:
        """Return the bytes a tier of what is sent: members, by place, with bytes."""
        sums = [0] * self._traffic.num_tiers
        for place, size_bytes in sent:
            sums[self.tiers[place]] += size_bytes
        return tuple(sums)

    def count(self, tier_bytes: tuple[int, ...]) -> None:
        """Count a transfer."""
        self._traffic.add(self.priority, tier_bytes)

    def record(self, name: str, start_s: float, tier_bytes: tuple[int, ...]) -> None:
        """Count a transfer that ends now, and tell of it."""
        self._traffic.add(self.priority, tier_bytes)
        if self._observer is not None:
            end_s = time.perf_counter()
            self._observer.transferred(f"{self.label} {name}", self.priority, start_s, end_s, tier_bytes)
            self._observer.waited(start_s, end_s, min(max(self.came_s, start_s), end_s))

    def waiting(self, wait: Callable[[], float | None]) -> None:
        """Wait, and tell for how long; `wait` returns when what it waits for had come, where that is known."""
        if self._observer is None:
            wait()
            return
        start_s = time.perf_counter()
        came_s = wait()
        end_s = time.perf_counter()
        self._observer.waited(start_s, end_s, end_s if came_s is None else min(max(came_s, start_s), end_s))

    def teller(self, name: str, start_s: float, tier_bytes: tuple[int, ...]) -> Callable[[float], None] | None:
        """Return what tells of the end of a counted transfer, if anybody wants to hear."""
        observer = self._observer
        if observer is None:
            return None

        def tell(end_s: float) -> None:
            observer.transferred(f"{self.label} {name}", self.priority, start_s, end_s, tier_bytes)

        return tell
