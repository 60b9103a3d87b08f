"""What happens before the server starts: plan and checkpoint are read, checked, and made into a job of its ranks."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from moiety.cli.plan_file import calibration_of
from moiety.cli.run_checkpoint import stop_tokens
from moiety.cli.run_choice import choose, transport_named
from moiety.errors import InputError
from moiety.runtime.job import SERVING_ENTRY, Job, Serving
from moiety.runtime.tokenizer import Tokenizer
from moiety.serve.intake import Served, Texts

if TYPE_CHECKING:
    from pathlib import Path

    from moiety.calibration.calibration import Calibration
    from moiety.cli.run_choice import Choice
    from moiety.runtime.world import World

DEFAULT_CAPACITY = 4096
"""Tokens of a sequence, where the model has positions for more."""
_LIBRARIES = ("fastapi", "uvicorn", "prometheus_client")


@dataclass(frozen=True, slots=True)
class Wish:
    """What the command line asks of a server."""

    plan: str
    checkpoint: str
    fold: int | None
    transport: str
    dispatch: str | None
    model_name: str | None
    max_model_len: int | None
    max_sequences: int
    max_waiting: int


@dataclass(frozen=True, slots=True)
class Preparation:
    """A server that nothing is known to be wrong with."""

    job: Job
    calibration: Calibration
    """What its plan is evaluated with."""
    served: Served
    notes: tuple[str, ...]
    """What the user should know before it runs."""


def check_server_libraries() -> None:
    """Raise InputError where a library that serves is not installed; none is imported for that."""
    missing = [name for name in _LIBRARIES if find_spec(name) is None]
    if missing:
        rule = f"needs {', '.join(missing)}, which the plain installation leaves out"
        raise InputError(rule, field="moiety serve", remedy="pip install 'moiety[serve]'")


def prepare(wish: Wish, world: World | None) -> Preparation:
    """Return what a command line asks for; raise InputError for the first thing that is wrong with it."""
    if world is not None:
        rule = f"this process is rank {world.rank} of {world.size}, and a server starts its ranks itself"
        raise InputError(rule, field="moiety serve", remedy="call it without torchrun or srun, on one machine")
    choice = choose(wish.plan, wish.checkpoint, wish.fold, None, dispatch=wish.dispatch)
    transport = transport_named(wish.transport)
    capacity = _capacity(wish.max_model_len, choice.model.max_position_embeddings)
    texts = _texts(choice.checkpoint.folder)
    folding = choice.folding()
    plan = choice.plan if folding is None else folding.plan
    job = Job(
        plan=plan,
        checkpoint=str(choice.checkpoint.folder.resolve()),
        transport=transport,
        serving=Serving(num_slots=wish.max_sequences, capacity=capacity),
        entry=SERVING_ENTRY,
    )
    served = Served(
        names=_names(wish, choice),
        vocab_size=choice.model.vocab_size,
        capacity=capacity,
        stop_tokens=frozenset(stop_tokens(choice.checkpoint)),
        most_sequences=max(wish.max_waiting, 1),
        texts=texts,
    )
    return Preparation(
        job, calibration_of(plan, str(choice.path)), served, () if folding is None else (folding.sentence(),)
    )


def _capacity(wished: int | None, positions: int | None) -> int:
    if wished is None:
        return min(positions or DEFAULT_CAPACITY, DEFAULT_CAPACITY)
    if positions is not None and wished > positions:
        raise InputError(f"the model has {positions} positions", field="--max-model-len", value=wished)
    return wished


def _names(wish: Wish, choice: Choice) -> tuple[str, ...]:
    """Return what requests may call the model: the name it is given, and what the user knows it by."""
    if wish.model_name is not None:
        return (wish.model_name,)
    return tuple(dict.fromkeys((choice.model.name, choice.plan.model.name, wish.checkpoint)))


def _texts(folder: Path) -> Texts | None:
    return Texts(Tokenizer.load(folder), Tokenizer.load(folder)) if Tokenizer.is_in(folder) else None
