"""Job: what the ranks of a plan are to do; the same for all of them, and small enough to be handed over as JSON."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from moiety.plan import Plan
from moiety.records import Record
from moiety.runtime.comm.transport import Transport  # pydantic reads it when the program runs

ENTRY = "moiety.runtime.generation:generate"
"""The function that every rank of `moiety run` calls."""
TRAINING_ENTRY = "moiety.runtime.training.work:train"
"""The function that every rank of `moiety train` calls."""

SERVING_ENTRY = "moiety.runtime.serving.worker:serve"
"""The function that every rank of `moiety serve` calls."""

TokenId = Annotated[int, Field(ge=0)]


class Training(Record):
    """Steps of fine-tuning, on the rows of a file."""

    data: str
    """JSON Lines file of the rows, the same on every machine."""
    num_steps: Annotated[int, Field(gt=0)]
    learning_rate: Annotated[float, Field(gt=0)]
    batch_size: Annotated[int, Field(gt=0)]
    """Rows of a step, over all attention groups."""
    save: str | None = None
    """Folder for a distributed checkpoint after the last step."""
    keeps_previous: bool = True
    """Whether what `save` holds is kept beside it; False where that is damaged."""
    resume: str | None = None
    """Folder of the distributed checkpoint to go on from."""
    balance_rate: Annotated[float, Field(gt=0)] | None = None
    """What a step moves the router's bias of an expert by, towards equal loads; None: not at all."""


class Serving(Record):
    """Room for the sequences that ranks are given to serve, step by step."""

    num_slots: Annotated[int, Field(gt=0)]
    """Sequences of an attention group that are in flight at a time."""
    capacity: Annotated[int, Field(gt=1)]
    """Tokens of a sequence, prompt and new ones together."""


class Job(Record):
    """A plan, the weights that it runs with, and what is done with them: prompts, steps of training, or serving."""

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
    training: Training | None = None
    """What the ranks of `moiety train` do, which continue no prompts."""
    serving: Serving | None = None
    """What the ranks of `moiety serve` have room for; their sequences come with each step's order."""
    entry: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")] = ENTRY
    """`module:function`: called with the Post of each rank, it returns the rank's report, a JSON object."""

    @property
    def num_ranks(self) -> int:
        """Ranks that the job takes: one a GPU of the plan."""
        return self.plan.num_gpus
