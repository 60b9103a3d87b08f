"""Constants of serving engines: what their kernels reach, and what they add to the kernels, by release."""

from __future__ import annotations

import re

from pydantic import Field

from moiety.calibration.calibration import (
    CollectiveConstants,
    Engine,
    EngineOverheads,
    Factor,
    Roofline,
    RooflineKind,
)
from moiety.records import Record

MEMORY_SHARE = 0.95
"""Of a device's memory that engines fill (vLLM, SGLang and TensorRT-LLM: 0.90 to 0.95 of what is free)."""
RESERVE_BYTES = 3_000_000_000
"""Context, captured graphs and activations of a rank."""
_NUMBERS = re.compile(r"([0-9]+)\.([0-9]+)\.([0-9]+)")


class EngineRelease(EngineOverheads):
    """What the releases of an engine from `since` up to but not including `until` add to the device's time."""

    engine: Engine
    since: str | None = None
    """First release, such as `0.15.0`; None: the runs that state no release."""
    until: str | None = None
    """First release that it no longer holds for; None: all that follow."""
    mixes_prefill: bool
    """Chunks of prompts run in the steps that decode; otherwise in steps of their own, while decoding waits."""
    interference: Factor
    """Share of the prompts' computation that is added to the time per output token."""
    data_parallel_slowdown: Factor
    """Times `prefill_slowdown` where attention is data parallel, whose groups wait for one another."""
    wait: Factor
    """Share of the modelled wait for the running step and for the prompts ahead."""
    burst: Factor
    """Share of a whole batch of prompts that a mean request waits for: runs start with all of them at once."""
    burst_growth: Factor
    """What each 64 sequences add to that share, where runs have as many requests whatever the concurrency."""


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


class ServingConstants(Record):
    """The constants of every family; the first family also stands for devices that none was made for."""

    name: str
    families: tuple[ServingFamily, ...] = Field(min_length=1)

    def family(self, architecture: str) -> ServingFamily:
        """Return the family of an architecture."""
        return next((each for each in self.families if architecture in each.architectures), self.families[0])


def release_number(version: str) -> tuple[int, ...] | None:
    """Return the three numbers of a version such as `1.2.0rc6.post3`; None where it starts with none."""
    match = _NUMBERS.match(version)
    return tuple(int(part) for part in match.groups()) if match else None
