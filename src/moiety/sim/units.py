"""The order in which a pipeline's stages work on micro-batches: forward only, one forward one backward, interleaved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Unit:
    """A forward or backward pass of one micro-batch through one stage."""

    direction: Literal["forward", "backward"]
    microbatch: int
    part: int = 0
    """Which part of the stage's layers."""


def stage_units(stage: int, num_stages: int, num_microbatches: int, *, training: bool) -> list[Unit]:
    """Return the order in which a stage works: forward only, or one-forward-one-backward (Narayanan et al. 2021)."""
    forward = [Unit("forward", m) for m in range(num_microbatches)]
    if not training:
        return forward
    backward = [Unit("backward", m) for m in range(num_microbatches)]
    warm_up = min(num_stages - stage - 1, num_microbatches)
    return _in_turns(forward, backward, warm_up)


def interleaved_units(stage: int, num_stages: int, num_microbatches: int, parts: int) -> list[Unit]:
    """Return the order in which a stage trains whose layers are `parts` pieces of the model, in turns.

    As Megatron-LM does (Narayanan et al. 2021, section 2.2): groups of as many micro-batches as there are stages go
    through one part after the other; a stage is ahead by twice its distance from the last, and by a group for each
    further part. Micro-batches are a multiple of the stages.
    """
    group = num_stages * parts
    order = [
        ((index % group) // num_stages, index // group * num_stages + index % num_stages)
        for index in range(num_microbatches * parts)
    ]
    forward = [Unit("forward", microbatch, part) for part, microbatch in order]
    backward = [Unit("backward", microbatch, parts - 1 - part) for part, microbatch in order]
    warm_up = min(2 * (num_stages - stage - 1) + (parts - 1) * num_stages, len(order))
    return _in_turns(forward, backward, warm_up)


def _in_turns(forward: list[Unit], backward: list[Unit], warm_up: int) -> list[Unit]:
    """Return all passes: `warm_up` forward, then one forward and one backward by turns, then backward what is left."""
    paired = zip(forward[warm_up:], backward, strict=False)
    left = backward[len(forward) - warm_up :]
    return [*forward[:warm_up], *(unit for pair in paired for unit in pair), *left]
