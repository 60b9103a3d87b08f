"""Folding: the division of a plan for many GPUs, on as few ranks as there are, with as much of it alive as can be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moiety.strategy.legality import broken_rules, divisors
from moiety.strategy.strategy import Strategy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moiety.model.model import Model


@dataclass(frozen=True, slots=True)
class Fold:
    """A plan's division of the work on another number of ranks."""

    strategy: Strategy
    redundant_experts: int
    num_nodes: int
    reasons: tuple[str, ...]
    """What could not be kept, and why."""

    @property
    def gpus_per_node(self) -> int:
        """Ranks of each node."""
        return self.strategy.num_gpus // self.num_nodes


def fold(
    strategy: Strategy, num_ranks: int, model: Model, *, redundant_experts: int = 0, gpus_per_node: int | None = None
) -> Fold:
    """Return `strategy` on `num_ranks` ranks, at most as many as it has, legal for `model`.

    Degrees shrink in this order until their product is `num_ranks`: instances, then pipeline stages, then attention
    data parallelism with expert parallelism, then tensor parallelism with expert tensor parallelism. But as many of
    attn_dp, ep and tp as can stay above 1 do, and where they cannot all, the exchange of tokens (attn_dp and ep) goes
    before tp. A division that the model's sizes do not allow gives way to the next in this order; one with more of
    something than the plan has (instances first) comes last. Each expert rank keeps as many redundant slots as it had,
    as far as the slots divide. The nodes of `gpus_per_node` GPUs (None: all in one) become as few as hold the ranks,
    and at least 2 where the plan spans several.
    """
    assert 0 < num_ranks <= strategy.num_gpus, "a plan is folded onto fewer ranks than it has, or as many"
    candidates = sorted(_divisions(num_ranks), key=lambda each: _standing(strategy, each))
    illegal: tuple[Strategy, str] | None = None
    for each in candidates:
        copies = folded_redundancy(strategy, each, model, redundant_experts)
        broken = broken_rules(model, each, copies)
        if not broken:
            reasons = (*_illegal(illegal), *_lost(strategy, each), *_copies_lost(redundant_experts, copies))
            nodes = folded_nodes(strategy.num_gpus, gpus_per_node or strategy.num_gpus, num_ranks)
            return Fold(each, copies, nodes, (*reasons, *_nodes_lost(strategy, gpus_per_node, nodes)))
        if illegal is None:
            illegal = (each, f"it breaks the rule {broken[0].rule}: {broken[0].reason}")
    raise AssertionError("whole copies of the model, one a rank, are legal for every model")


def folded_redundancy(before: Strategy, after: Strategy, model: Model, redundant_experts: int) -> int:
    """Return redundant slots of a layer: as many on each expert rank as before, and so that all slots divide.

    A rank has no slots for two copies of one expert, so a single expert rank has none.
    """
    moe = model.moe
    if moe is None or redundant_experts == 0 or after.ep == 1:
        return 0
    wanted = moe.num_experts - (-redundant_experts * after.ep // before.ep)
    slots = min(-(-wanted // after.ep), moe.num_experts) * after.ep
    return slots - moe.num_experts


def folded_nodes(num_gpus: int, gpus_per_node: int, num_ranks: int) -> int:
    """Return the fewest nodes of at most `gpus_per_node` ranks each, and at least 2 where the GPUs span several."""
    least = 2 if num_gpus > gpus_per_node else 1
    fitting = (each for each in divisors(num_ranks) if each >= least and num_ranks // each <= gpus_per_node)
    return next(fitting, 1)


def _divisions(num_ranks: int) -> Iterator[Strategy]:
    """Yield every division of `num_ranks` ranks."""
    for instances in divisors(num_ranks):
        for pp in divisors(num_ranks // instances):
            stage = num_ranks // instances // pp
            for tp in divisors(stage):
                for ep in divisors(stage):
                    yield Strategy(tp=tp, pp=pp, attn_dp=stage // tp, ep=ep, etp=stage // ep, instances=instances)


def _standing(before: Strategy, after: Strategy) -> tuple[int, ...]:
    """Return how far a division is from the plan's, the least first."""
    inner = ("tp", "etp", "attn_dp", "ep", "pp")
    grown = sum(getattr(after, name) > getattr(before, name) for name in inner)
    exchanges = before.attn_dp > 1 and before.ep > 1 and not (after.attn_dp > 1 and after.ep > 1)
    return (
        grown,
        int(after.instances > before.instances),
        len(_dead(before, after)),
        int(exchanges),
        *(-degree for degree in (after.tp, after.attn_dp, after.pp, after.instances, after.etp)),
    )


def _dead(before: Strategy, after: Strategy) -> list[str]:
    """Return the axes that the plan divides and the folded one does not."""
    alive = ("attn_dp", "ep", "tp")
    return [name for name in alive if getattr(before, name) > 1 and getattr(after, name) == 1]


def _illegal(found: tuple[Strategy, str] | None) -> Iterator[str]:
    if found is not None:
        yield f"not {described(found[0])}: {found[1]}"


def _lost(before: Strategy, after: Strategy) -> Iterator[str]:
    lost = _dead(before, after) + [
        name for name in ("pp", "instances") if getattr(before, name) > 1 and getattr(after, name) == 1
    ]
    if lost:
        yield f"no longer divided: {', '.join(f'{name}={getattr(before, name)}' for name in lost)}"


def _copies_lost(before: int, after: int) -> Iterator[str]:
    if before and not after:
        yield "a single expert rank holds no copies of its experts"


def _nodes_lost(strategy: Strategy, gpus_per_node: int | None, nodes: int) -> Iterator[str]:
    if nodes == 1 and strategy.num_gpus > (gpus_per_node or strategy.num_gpus):
        yield "one rank spans no nodes"


def described(strategy: Strategy) -> str:
    """Return every degree of a strategy above 1, for people."""
    degrees = {name: getattr(strategy, name) for name in ("tp", "pp", "attn_dp", "ep", "etp", "instances")}
    return " ".join(f"{name}={degree}" for name, degree in degrees.items() if degree > 1) or "one rank"
