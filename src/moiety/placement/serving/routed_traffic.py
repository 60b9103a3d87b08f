"""What the tokens of a trace reach under a placement: the rows that dispatch sends, measured instead of assumed."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Self

from pydantic import Field, model_validator

from moiety.records import Record

_ROUNDING = 1e-6
_LOAD_ROUNDING = 1e-3
Amount = Annotated[float, Field(ge=0)]


class DomainReach(Record):
    """What a token reaches outside its own domain of `num_gpus` GPUs, per token."""

    num_gpus: Annotated[int, Field(gt=0)]
    messages: Amount
    """(token, expert) pairs that are served outside."""
    ranks: Amount
    """Distinct expert ranks outside that serve the token."""
    narrower: Amount
    """Distinct domains of the next narrower kind outside; expert ranks for the narrowest domain."""
    domains: Amount
    """Distinct other domains of this width."""


class RoutedTraffic(Record):
    """Means over the tokens of a trace, a home drawn uniformly from the innermost domains of links, and the MoE layers.

    Copies are chosen by the serving rule (`rule.serve`): at home first, then on the fewest nodes. Domains are
    consecutive GPUs of a stage that one tier of links joins; only those narrower than the stage are listed.
    """

    top_k: Annotated[int, Field(gt=0)]
    """(token, expert) pairs of a token."""
    reached_ranks: Amount
    """Distinct expert ranks that serve a token, near and far."""
    domains: tuple[DomainReach, ...]
    """The narrowest first."""
    num_tokens: Annotated[int, Field(gt=0)]
    """Tokens of the trace."""
    rank_loads: tuple[tuple[Amount, ...], ...] = ()
    """Work that each expert rank really serves relative to the mean, [MoE layers][expert ranks]. Serving near copies
    first spreads it less evenly than equal shares would. Empty where every expert has one copy: then the experts'
    shares say it."""

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        most_messages, most_ranks = float(self.top_k), self.reached_ranks
        if not 0 < most_ranks <= most_messages + _ROUNDING:
            msg = f"a token of {self.top_k} experts cannot reach {most_ranks} ranks"
            raise ValueError(msg)
        if any(not 0 < max(loads, default=0) <= len(loads) + _LOAD_ROUNDING for loads in self.rank_loads):
            msg = "the busiest rank of a layer serves some of its work, and at most all of it"
            raise ValueError(msg)
        for reach in self.domains:
            amounts = (most_messages, reach.messages, reach.ranks, reach.domains)
            beyond = reach.ranks > most_ranks + _ROUNDING or reach.narrower > reach.ranks + _ROUNDING
            if beyond or any(low > high + _ROUNDING for high, low in pairwise(amounts)):
                msg = f"more leaves domains of {reach.num_gpus} GPUs than the experts, ranks or wider domains allow"
                raise ValueError(msg)
            most_messages, most_ranks = reach.messages, reach.ranks
        widths = [reach.num_gpus for reach in self.domains]
        if any(outer % inner or outer == inner for inner, outer in pairwise(widths)):
            msg = f"domains of {widths} GPUs do not lie in each other"
            raise ValueError(msg)
        return self

    @property
    def remote_domains(self) -> float:
        """Distinct innermost domains other than its home that a token reaches: the nodes of a hierarchical dispatch."""
        return self.domains[0].domains if self.domains else 0.0

    def outside(self, num_gpus: int) -> DomainReach | None:
        """Return what leaves domains of that width; None where it was not measured."""
        return next((reach for reach in self.domains if reach.num_gpus == num_gpus), None)


class MeasuredPlacement(Record):
    """A placement method that the plan's is compared with: what the same trace makes of its map."""

    method: str
    balance: Annotated[float, Field(ge=0, le=1)]
    """Mean over max of the work that the expert ranks serve, mean over the layers."""
    traffic: RoutedTraffic
