"""Clocks and power caps as they are decided: set on this machine's GPUs where that was asked for, else only told of."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from moiety.errors import InputError, MoietyError
from moiety.gpus.cuda_devices import cuda_uuids
from moiety.gpus.limits import Limit, holding
from moiety.gpus.nvml import open_gpus

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from moiety.control.commands import CapPower, LockClock
    from moiety.control.policy import Deployment
    from moiety.gpus.journal import Journal
    from moiety.gpus.limits import Holder
    from moiety.gpus.nvml import Gpus

_DRY = "nothing is set without --clocks"


class Clocks:
    """Follows what is decided; without a `holder` of GPUs nothing is set."""

    def __init__(self, holder: Holder | None, note: Callable[[str], None]) -> None:
        self._holder, self._note = holder, note
        self._limit: Limit | None = None
        """What was decided last."""
        self._why_not: str | None = None if holder is not None else _DRY

    @property
    def is_set(self) -> bool:
        """Whether the GPUs are limited as was decided."""
        return self._limit is not None and self._why_not is None

    def follow(self, command: LockClock | CapPower) -> None:
        """Set what was decided; where the driver refuses, it is said, and everything is as before the server."""
        self._limit = Limit(*command.limit)
        if self._holder is None:
            return
        try:
            self._holder.set(self._limit)
        except MoietyError as error:
            self._why_not = str(error)
            self._note(f"no clock or power is set: {error}")
        else:
            self._why_not = None

    def document(self) -> dict[str, object] | None:
        """Return what was decided last, as `GET /health` shows it; None before anything was."""
        if self._limit is None:
            return None
        unit = "hz" if self._limit.kind == "clock" else "w"
        found: dict[str, object] = {"kind": self._limit.kind, f"value_{unit}": self._limit.value, "is_set": self.is_set}
        return found if self._why_not is None else {**found, "why_not": self._why_not}


@contextmanager
def clocks_of_gpus(deployment: Deployment, journal: Journal, note: Callable[[str], None]) -> Generator[Clocks]:
    """Give clocks that are set on the GPUs that the ranks take; at the end of the block they are restored.

    Raises GpuError where there is no driver, InputError where the plan is for CPUs, or for more GPUs or others than the
    ranks may take, or another run holds their limits.
    """
    if not deployment.clock_points:
        raise InputError("the plan is for CPUs, whose clocks are left alone", field="--clocks", remedy="leave it out")
    highest = Limit("clock", deployment.clock_points[0].clock_hz)
    with open_gpus() as gpus:
        taken = _taken(gpus, cuda_uuids(), deployment.num_ranks * deployment.gpus_per_rank)
        with holding(gpus, taken, journal) as holder:
            holder.check(highest)
            yield Clocks(holder, note)


def _taken(gpus: Gpus, shown: Sequence[str], num_ranks: int) -> list[int]:
    """Return NVML's indices of the GPUs that ranks take: each the one of its number among those `shown` by CUDA."""
    if len(shown) < num_ranks:
        rule = f"CUDA shows {len(shown)} GPU{'s' * (len(shown) != 1)}, and each of {num_ranks} ranks takes one"
        remedy = "leave it out, or have CUDA_VISIBLE_DEVICES name as many"
        raise InputError(rule, field="--clocks", remedy=remedy)
    for uuid in shown[:num_ranks]:
        if uuid not in gpus.uuids:
            rule = f"{uuid} is a part of a GPU (MIG): a clock is that of the whole one, which is not this run's alone"
            raise InputError(rule, field="--clocks", remedy="leave it out")
    return [gpus.uuids.index(uuid) for uuid in shown[:num_ranks]]
