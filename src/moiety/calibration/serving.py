"""Constants of serving engines: what their kernels reach, and what they add to the kernels, by release."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field

from moiety.calibration.calibration import (
    CollectiveConstants,
    Engine,
    EngineOverheads,
    Factor,
    Roofline,
    RooflineKind,
    Seconds,
    Sourced,
)
from moiety.calibration.scheduling import agrees_first
from moiety.records import Record

_MEASURED_GROUPS = 16
"""The most attention groups of a worker that computes prompts only, in the rows that `PrefillApart` is fitted on."""
_NUMBERS = re.compile(r"(?:.*:)?v?([0-9]+)\.([0-9]+)(?:\.([0-9]+))?")
"""A release, or the tag of an image that holds it: `lmsysorg/sglang:v0.5.9-cu130`."""


class EngineRelease(EngineOverheads):
    """What the releases of an engine from `since` up to but not including `until` add to the device's time."""

    engine: Engine
    since: str | None = None
    """First release, such as `0.15.0`; None: the runs that state no release."""
    until: str | None = None
    """First release that it no longer holds for; None: all that follow."""


class ServingFamily(Record):
    """The constants for one family of devices."""

    architectures: tuple[str, ...] = Field(min_length=1)
    roofline: dict[RooflineKind, Roofline]
    collectives: CollectiveConstants
    releases: tuple[EngineRelease, ...] = Field(min_length=1)

    def release(self, engine: Engine, version: str) -> EngineRelease:
        """Return the constants of an engine's version; of the runs without one where it names no number."""
        own = [each for each in self.releases if each.engine == engine]
        number = release_number(version)
        for each in own:
            since, until = release_number(each.since or ""), release_number(each.until or "")
            if (number is None) != (since is None):
                continue
            if number is None or since is None or (since <= number and (until is None or number < until)):
                return each
        return own[0] if own else self.releases[0]

    def newest_release(self, engine: Engine) -> EngineRelease:
        """Return the constants of an engine's newest releases."""
        own = [each for each in self.releases if each.engine == engine]
        return next((each for each in own if each.since is not None and each.until is None), self.release(engine, ""))


class PrefillApart(Sourced):
    """What deployments add whose prompts are computed by workers of their own, whatever the device and the release."""

    handover_overhead_s: Seconds
    """Router, and the transfer of a cache set up, of a request alone."""
    group_overhead_s: Seconds
    """What each attention group of the prompt's worker but the first adds: all agree on what a step takes up."""
    handshake_rounds: Factor
    """Times both, where the workers agree on a prompt before it is computed (`calibration.scheduling.agrees_first`)."""
    concurrency_overhead_s: Seconds
    """What each request in flight adds."""

    def request_s(self, engine: Engine, groups: int) -> float:
        """Return what a request alone takes longer by, where the prompts' workers have so many attention groups.

        More of them than were measured count as many as were.
        """
        once_s = self.handover_overhead_s + (min(groups, _MEASURED_GROUPS) - 1) * self.group_overhead_s
        return once_s * (self.handshake_rounds if agrees_first(engine) else 1)


PREFILL_APART = PrefillApart(
    basis="assumed",
    source="expected before any fit",
    handover_overhead_s=0.1,
    group_overhead_s=0.04,
    handshake_rounds=2.0,
    concurrency_overhead_s=4e-4,
)
"""What is expected before any fit."""
NOTHING_APART = PrefillApart(
    basis="assumed",
    source="nothing was measured",
    handover_overhead_s=0.0,
    group_overhead_s=0.0,
    handshake_rounds=1.0,
    concurrency_overhead_s=0.0,
)
"""Of engines that were not measured: the links' time and nothing else."""


class ServingConstants(Record):
    """The constants of every family; the first family also stands for devices that none was made for."""

    name: str
    draft_acceptance: Annotated[float, Field(ge=0, le=1)] = 0.85
    """Share of guessed tokens that are right: fitted; before any fit what is published of first guesses.

    85 to 90 % (DeepSeek-V3, arXiv:2412.19437, section 5.4.3).
    """
    apart: PrefillApart = PREFILL_APART
    families: tuple[ServingFamily, ...] = Field(min_length=1)

    def family(self, architecture: str) -> ServingFamily:
        """Return the family of an architecture."""
        return next((each for each in self.families if architecture in each.architectures), self.families[0])


def release_number(version: str) -> tuple[int, ...] | None:
    """Return the three numbers of a version such as `1.2.0rc6.post3` or `v0.12`; None where it starts with none."""
    match = _NUMBERS.match(version)
    return tuple(int(part or 0) for part in match.groups()) if match else None
