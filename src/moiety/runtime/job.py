"""Job: what the ranks of a plan are to do; the same for all of them, and small enough to be handed over as JSON."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from moiety.plan import Plan
from moiety.records import Record
from moiety.runtime.comm.transport import Transport  # pydantic reads it when the program runs

ENTRY = "moiety.runtime.generation:generate"
"""The function that every rank of `moiety run` calls."""

TokenId = Annotated[int, Field(ge=0)]


class Job(Record):
    """A plan, the weights that it runs with, and the prompts that it continues."""

    plan: Plan
    checkpoint: str
    """Folder of the checkpoint, the same on every machine."""
    prompts: tuple[tuple[TokenId, ...], ...] = ()
    max_new_tokens: Annotated[int, Field(gt=0)] = 16
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0: the most likely token (greedy)."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    """0: from all tokens."""
    seed: int = 0
    stop_token_ids: tuple[TokenId, ...] = ()
    """Tokens that end a sequence."""
    transport: Transport = "sockets"
    bench: bool = False
    """Measure what a calibration needs, beside generating."""
    trace: bool = False
    """Record what each rank did when, for a trace."""
    entry: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")] = ENTRY
    """`module:function`: called with the Post of each rank, it returns the rank's report, a JSON object."""

    @property
    def num_ranks(self) -> int:
        """Ranks that the job takes: one a GPU of the plan."""
        return self.plan.num_gpus
