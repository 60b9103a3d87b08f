"""Every strategy that uses a given number of GPUs, legal or not; an illegal one keeps the name of the rule it broke."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moiety.strategy.legality import BrokenRule, broken_rules, divisors
from moiety.strategy.strategy import Strategy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moiety.model.model import Model


@dataclass(frozen=True, slots=True)
class Candidate:
    """A strategy and the rules it breaks."""

    strategy: Strategy
    broken: tuple[BrokenRule, ...]

    @property
    def is_legal(self) -> bool:
        """Whether it breaks none."""
        return not self.broken


def enumerate_strategies(
    model: Model,
    num_gpus: int,
    redundant_experts: int = 0,
    max_instance_gpus: int | None = None,
    *,
    context_parallel: int = 1,
) -> Iterator[Candidate]:
    """Yield every strategy of exactly `num_gpus` GPUs, in a fixed order: all factorisations of the degrees.

    `max_instance_gpus` leaves out instances that are larger. Pipeline stages are enumerated as divisors up to the
    number of layers; expert meshes as all divisors of the stage; sequences that attention groups share in training as
    divisors of those up to `context_parallel`.
    """
    for per_instance in divisors(num_gpus):
        if max_instance_gpus is not None and per_instance > max_instance_gpus:
            continue
        for pp in divisors(per_instance):
            stage = per_instance // pp
            for tp in divisors(stage):
                meshes = divisors(stage) if model.moe is not None else [1]
                shared = [each for each in divisors(stage // tp) if each <= context_parallel]
                for ep, cp in itertools.product(meshes, shared):
                    if model.moe is None and tp * cp != stage:
                        continue
                    strategy = Strategy(
                        tp=tp,
                        pp=pp,
                        attn_dp=stage // tp,
                        ep=ep,
                        etp=stage // ep,
                        instances=num_gpus // per_instance,
                        cp=cp,
                    )
                    yield Candidate(strategy, broken_rules(model, strategy, redundant_experts))
