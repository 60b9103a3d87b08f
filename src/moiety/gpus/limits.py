"""Limits on GPUs, held for a while: noted, set, and restored on exit; after a crash, by whoever comes next."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from moiety.errors import InputError
from moiety.gpus.journal import Changed
from moiety.gpus.nvml import GpuError

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from moiety.gpus.journal import Journal
    from moiety.gpus.nvml import Gpus


@dataclass(frozen=True, slots=True)
class Limit:
    """A locked SM clock in Hz, or a power cap in watts."""

    kind: Literal["clock", "power"]
    value: float


class Holder:
    """Some GPUs whose limits are one run's to set; `holding` makes it."""

    def __init__(self, gpus: Gpus, indices: Sequence[int], journal: Journal) -> None:
        self._gpus, self.indices, self._journal = gpus, tuple(indices), journal

    def check(self, limit: Limit) -> None:
        """Raise InputError where a GPU does not offer a limit."""
        for index in self.indices:
            _check(self._gpus, index, limit)

    def set(self, limit: Limit) -> None:
        """Set a limit on all of them, in place of one of its kind that was set before.

        Raises InputError for a limit that a GPU does not offer, before any is set, and GpuError where the driver
        refuses; then whatever was set is restored, and where that fails too the journal keeps it.
        """
        self.check(limit)
        before = self._journal.read()
        known = {(each.uuid, each.kind) for each in before}
        fresh = [index for index in self.indices if (self._gpus.uuids[index], limit.kind) not in known]
        changed = (*before, *(_before(self._gpus, index, limit) for index in fresh))
        self._journal.write(changed)
        for done, index in enumerate(self.indices):
            try:
                _set(self._gpus, index, limit)
            except GpuError:
                untouched = {self._gpus.uuids[each] for each in self.indices[done:] if each in fresh}
                kept = (each for each in changed if each.kind != limit.kind or each.uuid not in untouched)
                self._journal.write(tuple(kept))  # what was refused is as it was
                _restore(self._gpus, self._journal)
                raise


@contextmanager
def holding(gpus: Gpus, indices: Sequence[int], journal: Journal) -> Generator[Holder]:
    """Give the right to set limits on some GPUs while the block runs; at its end they are restored.

    Raises InputError while another run has it, GpuError where limits cannot be restored.
    """
    with journal.owned():
        _restore(gpus, journal)  # what a run that crashed has left
        try:
            yield Holder(gpus, indices, journal)
        finally:
            _restore(gpus, journal)


@contextmanager
def held(gpus: Gpus, indices: Sequence[int], limit: Limit, journal: Journal) -> Generator[None]:
    """Hold a limit on some GPUs while the block runs; raises as `Holder.set` does."""
    with holding(gpus, indices, journal) as holder:
        holder.set(limit)
        yield


def restore(gpus: Gpus, journal: Journal) -> tuple[Changed, ...]:
    """Restore what the journal names, and return it; what a GPU refuses stays in the journal, and raises GpuError."""
    with journal.owned():
        return _restore(gpus, journal)


def _restore(gpus: Gpus, journal: Journal) -> tuple[Changed, ...]:
    changed, left = journal.read(), list[Changed]()
    failures = list[str]()
    code = ""
    for each in changed:
        try:
            _put_back(gpus, each)
        except GpuError as error:
            left.append(each)
            failures.append(f"{each.uuid}: {error}")
            code = error.code
    journal.write(tuple(left))
    if failures:
        why = f"{'; '.join(failures)}; {journal.path} keeps them for `moiety control restore`"
        raise GpuError("limits could not be restored", why, code)
    return changed


def _put_back(gpus: Gpus, changed: Changed) -> None:
    if changed.uuid not in gpus.uuids:
        raise GpuError("restoring", "the driver shows no such GPU", "NOT_FOUND")
    index = gpus.uuids.index(changed.uuid)
    if changed.kind == "clock":
        gpus.unlock_clock(index)
    elif changed.before_w is not None:
        gpus.cap_power(index, changed.before_w)


def _before(gpus: Gpus, index: int, limit: Limit) -> Changed:
    before = gpus.power_range(index).now_w if limit.kind == "power" else None
    return Changed(uuid=gpus.uuids[index], kind=limit.kind, before_w=before)


def _set(gpus: Gpus, index: int, limit: Limit) -> None:
    if limit.kind == "clock":
        gpus.lock_clock(index, limit.value)
    else:
        gpus.cap_power(index, limit.value)


def _check(gpus: Gpus, index: int, limit: Limit) -> None:
    """Refuse what the GPU does not offer, before anything is set."""
    remedy = f"it is a {gpus.name(index)}: plan for that device"
    field = f"GPU {index}: {limit.kind}"
    if limit.kind == "clock":
        highest = gpus.highest_clock_hz(index)
        if limit.value > highest:
            rule = f"its SMs run at {highest / 1e6:g} MHz at most"
            raise InputError(rule, field=field, value=f"{limit.value / 1e6:g} MHz", remedy=remedy)
        return
    bounds = gpus.power_range(index)
    if not bounds.least_w <= limit.value <= bounds.most_w:
        rule = f"its power limit may be {bounds.least_w:g} to {bounds.most_w:g} W"
        raise InputError(rule, field=field, value=f"{limit.value:g} W", remedy=remedy)
