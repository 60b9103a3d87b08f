"""Layout: the shapes that one micro-batch has on one GPU, from the strategy, the schedule and the options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moiety.plan import Options, Schedule
    from moiety.strategy.strategy import Strategy


@dataclass(frozen=True, slots=True)
class Layout:
    """What the graph's builders need to know about a pool; hardware-free."""

    strategy: Strategy
    options: Options
    schedule: Schedule
    training: bool

    @property
    def tokens(self) -> int:
        """Tokens of one micro-batch on each GPU of an attention data-parallel group: its part of each sequence."""
        return self.schedule.tokens_per_microbatch // self.strategy.cp

    @property
    def prompt_tokens(self) -> int:
        """Those of them that belong to prompts, or are trained on."""
        return self.schedule.prefill_tokens // self.strategy.cp

    @property
    def stage_tokens(self) -> int:
        """Tokens of one micro-batch over all attention data-parallel groups of a stage."""
        return self.tokens * self.strategy.attn_dp

    @property
    def routes_tokens(self) -> bool:
        """Whether tokens travel to experts (several attention groups share them) instead of lying there already."""
        return self.strategy.attn_dp > 1 and self.strategy.ep > 1

    def share(self, size: int) -> int:
        """Return the part of a dimension that one tensor-parallel rank holds, at least 1 (replicated KV heads)."""
        return max(size // self.strategy.tp, 1)
