"""Observation: what one rule of the audit found out about one or several claims."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from moiety.records import Record

Outcome = Literal["confirms", "supports", "contradicts", "conflicts", "doubts", "cannot judge"]


class Observation(Record):
    """One comparison, spelled out in numbers.

    confirms: it is a fact of the inputs. supports: the figures agree. contradicts: they disagree with what the model,
    the cluster or the simulation gives. conflicts: they cannot all be true, whatever the truth is. doubts: possible,
    but beyond what is known. cannot judge: what it would take is not there.
    """

    rule: str
    outcome: Outcome
    claims: tuple[str, ...]
    """Ids of the claims it is about."""
    arithmetic: str
    consistent: dict[str, float] = Field(default_factory=dict)
    """For some of the claims: the value, in the claim's own unit, at which the others would agree with it."""
