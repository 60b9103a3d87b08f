"""Which layers each pipeline stage holds."""

from __future__ import annotations

import itertools


def stage_layers(num_layers: int, pp: int) -> tuple[range, ...]:
    """Return the layers of each of `pp` stages, as even as possible.

    Layers left over go to the stages before the last, which also computes the output head; the first, with the
    embedding, comes after those.
    """
    whole, rest = divmod(num_layers, pp)
    bounds = [0]
    for stage in range(pp):
        # the last stage also computes the output head, so it is the last to get one layer more
        extra = 1 if rest > 0 and _gets_extra(stage, pp, rest) else 0
        bounds.append(bounds[-1] + whole + extra)
    return tuple(range(low, high) for low, high in itertools.pairwise(bounds))


def held_layers(num_layers: int, pp: int, parts: int) -> tuple[tuple[int, ...], ...]:
    """Return the layers of each of `pp` stages, in ascending order: every `pp`-th of `pp` x `parts` pieces.

    A micro-batch then goes through all stages `parts` times (Narayanan et al. 2021).
    """
    pieces = stage_layers(num_layers, pp * parts)
    return tuple(tuple(itertools.chain(*pieces[stage::pp])) for stage in range(pp))


def _gets_extra(stage: int, pp: int, rest: int) -> bool:
    first = max(pp - 1 - rest, 0)
    return first <= stage < first + rest
