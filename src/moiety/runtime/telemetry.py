"""Telemetry: what a rank did when, op by op, and what its transfers took; recorded only where somebody asks for it."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch

from moiety.sim.timeline import merge

if TYPE_CHECKING:
    from collections.abc import Callable

    from moiety.runtime.comm.priority import Priority


class Recorder(Protocol):
    """What the parts of a model tell about themselves."""

    @property
    def recording(self) -> bool:
        """Whether the time of every op is wanted now, so that no step may be computed as a whole."""
        ...

    def mark(self, name: str, layer: int = -1) -> None:
        """Say that the op `name` (the graph's word) of a layer has just ended on this rank's compute stream."""
        ...


class Silent:
    """Records nothing."""

    recording = False

    def mark(self, name: str, layer: int = -1) -> None:
        """Do nothing."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A stretch of a rank's time that ends with the end of an op; tiles follow each other without a gap."""

    name: str
    layer: int
    """-1 outside the layers."""
    start_s: float
    end_s: float
    waited_s: float = 0.0
    """Seconds of it in which the rank only waited for transfers."""

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.end_s - self.start_s

    @property
    def busy_s(self) -> float:
        """Seconds of it in which the rank did not wait."""
        return self.seconds - self.waited_s


@dataclass(frozen=True, slots=True)
class Moved:
    """A transfer of this rank, from its start to its end, whatever it did meanwhile."""

    name: str
    priority: int
    start_s: float
    end_s: float
    tier_bytes: tuple[int, ...]


def clock_of(device: torch.device) -> Callable[[], float]:
    """Return a clock in seconds that waits for the device before it is read: a GPU works behind the host's back."""
    if device.type != "cuda":
        return time.perf_counter

    def read() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return read


@dataclass(slots=True)
class Telemetry:
    """A rank's tiles and transfers of the steps since `begin`; also what hears of transfers (`comm.Observer`)."""

    clock: Callable[[], float] = time.perf_counter
    tiles: list[Tile] = field(default_factory=list[Tile])
    moved: list[Moved] = field(default_factory=list[Moved])
    blocked: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    """When this rank waited for a transfer and computed nothing."""
    recording: bool = False
    _last_s: float = 0.0
    _waited_s: float = 0.0
    """Since the last tile."""

    def begin(self) -> None:
        """Forget what was recorded and record from now on."""
        self.tiles, self.moved, self.blocked = [], [], []
        self.recording, self._last_s, self._waited_s = True, self.clock(), 0.0

    def end(self) -> None:
        """Record no more."""
        self.recording = False

    def mark(self, name: str, layer: int = -1) -> None:
        """Add the tile that ends now; see `Recorder`."""
        if self.recording:
            now = self.clock()
            self.tiles.append(Tile(name, layer, self._last_s, now, self._waited_s))
            self._last_s, self._waited_s = now, 0.0

    def transferred(
        self, name: str, priority: Priority, start_s: float, end_s: float, tier_bytes: tuple[int, ...]
    ) -> None:
        """Add a transfer that has ended; may come from any thread."""
        if self.recording:
            self.moved.append(Moved(name, int(priority), start_s, end_s, tier_bytes))

    def waited(self, start_s: float, end_s: float, came_s: float) -> None:
        """Add a wait of the computing thread for a transfer, to the moment at which it goes on."""
        del came_s
        if self.recording:
            self.blocked.append((start_s, end_s))
            self._waited_s += end_s - start_s

    def seconds_by_op(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return the seconds in which the rank was busy, and in which it waited, by op and layer, as `op@layer`."""
        busy: defaultdict[str, float] = defaultdict(float)
        waited: defaultdict[str, float] = defaultdict(float)
        for tile in self.tiles:
            busy[f"{tile.name}@{tile.layer}"] += tile.busy_s
            waited[f"{tile.name}@{tile.layer}"] += tile.waited_s
        return dict(busy), dict(waited)

    def communication(self) -> tuple[float, float]:
        """Return (seconds in which something was on its way, seconds of those in which this rank only waited)."""
        moving = _length([(each.start_s, each.end_s) for each in self.moved])
        return moving, _length(self.blocked)

    def events(self, process: int, tier_names: tuple[str, ...], zero_s: float) -> list[dict[str, object]]:
        """Return Chrome trace events on the lanes of the simulator's trace: compute, and a link for each tier."""
        lanes = ("compute", *(f"link {name}" for name in tier_names))
        found: list[dict[str, object]] = [_meta(process, 0, "process_name", f"rank {process}")]
        found += [_meta(process, lane, "thread_name", name) for lane, name in enumerate(lanes)]
        for tile in self.tiles:
            found.append(
                _event(process, 0, tile.name, "compute", tile.start_s - zero_s, tile.seconds, layer=tile.layer)
            )
        for each in self.moved:
            tier = max((index for index, size in enumerate(each.tier_bytes) if size), default=0)
            length = each.end_s - each.start_s
            event = _event(process, 1 + tier, each.name, "communication", each.start_s - zero_s, length)
            event["args"] = {"bytes": sum(each.tier_bytes), "priority": each.priority}
            found.append(event)
        return found


def _event(
    process: int, lane: int, name: str, category: str, start_s: float, length_s: float, *, layer: int = -1
) -> dict[str, object]:
    micro = 1e6
    return {
        "name": name,
        "cat": category,
        "ph": "X",
        "pid": process,
        "tid": lane,
        "ts": round(max(start_s, 0.0) * micro, 3),
        "dur": round(length_s * micro, 3),
        "args": {"layer": layer} if layer >= 0 else {},
    }


def _meta(process: int, lane: int, kind: str, name: str) -> dict[str, object]:
    return {"name": kind, "ph": "M", "pid": process, "tid": lane, "args": {"name": name}}


def _length(intervals: list[tuple[float, float]]) -> float:
    """Return the length of the union of intervals."""
    return sum(high - low for low, high in merge(intervals))
