"""What a verb that executes is given: a plan and a checkpoint that fit each other, and how many ranks run them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moiety.cli.plan_file import calibration_of, load_plan
from moiety.cli.run_checkpoint import check_same_model, check_scaled_down, model_of
from moiety.cli.run_plan import FOLDED_RANKS, MOST_WHOLE_RANKS, check_runnable, folded, with_exchange
from moiety.cli.verification import refuse_unsound
from moiety.errors import InputError, nearest
from moiety.runtime.attached import check_size
from moiety.runtime.checkpoint.index import Checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from moiety.calibration.calibration import Calibration
    from moiety.cli.run_plan import Folding
    from moiety.model.model import Model
    from moiety.plan import AllToAll, Plan
    from moiety.runtime.comm.transport import Transport
    from moiety.runtime.world import World

_EXCHANGES: dict[str, AllToAll] = {"flat": "flat", "dedup": "dedup", "hierarchical": "hierarchical"}
_TRANSPORTS: dict[str, Transport] = {"sockets": "sockets", "gloo": "gloo", "deep_ep": "deep_ep"}


@dataclass(frozen=True, slots=True)
class Choice:
    """A plan and the checkpoint of its model."""

    plan: Plan
    path: Path
    """The plan's file."""
    calibration: Calibration
    """What the plan was evaluated with."""
    checkpoint: Checkpoint
    model: Model
    """The checkpoint's."""
    num_ranks: int | None
    """Ranks that the plan is folded onto; None where it runs as it is."""

    def folding(self) -> Folding | None:
        """Return the plan folded onto the ranks; None where it runs as it is. Measures this machine."""
        return None if self.num_ranks is None else folded(self.plan, self.num_ranks, self.model)


def choose(plan: str, checkpoint: str, fold: int | None, world: World | None, *, dispatch: str | None = None) -> Choice:
    """Return what a command line names, read and checked; `dispatch` overrides the plan's exchange.

    `world` is what `torchrun` or Slurm started; None: this machine starts as many ranks as the plan takes. Raises
    InputError for the first thing that is wrong.
    """
    found, path = load_plan(plan)
    check_runnable(found, str(path))
    calibration = calibration_of(found, str(path))
    refuse_unsound(found, calibration, str(path))
    if dispatch is not None:
        found = with_exchange(found, _exchange(dispatch), calibration)
    opened = Checkpoint.open(checkpoint)
    model = model_of(opened)
    num_ranks = _num_ranks(found, fold, world)
    if num_ranks is None:
        check_same_model(found.model, model)
    else:
        check_scaled_down(found.model, model)
    if world is not None:
        check_size(world, num_ranks or found.num_gpus)
    return Choice(found, path, calibration, opened, model, num_ranks)


def transport_named(text: str) -> Transport:
    """Return the transport of that name; raise InputError where there is none, or its library is not installed."""
    if text not in _TRANSPORTS:
        raise InputError("no such transport", field="--transport", value=text, remedy=nearest(text, _TRANSPORTS))
    if text == "deep_ep":
        from moiety.runtime.dispatch.deep_ep import check_installed

        check_installed()
    return _TRANSPORTS[text]


def _exchange(text: str) -> AllToAll:
    if text not in _EXCHANGES:
        raise InputError("no such exchange", field="--dispatch", value=text, remedy=nearest(text, _EXCHANGES))
    return _EXCHANGES[text]


def _num_ranks(plan: Plan, fold: int | None, world: World | None) -> int | None:
    """Return how many ranks the plan is folded onto; None where it runs as it is."""
    if fold is not None and fold > plan.num_gpus:
        rule = f"the plan has {plan.num_gpus} ranks, and folding only makes fewer"
        raise InputError(rule, field="--fold", value=fold)
    if fold is None and world is None and plan.num_gpus > MOST_WHOLE_RANKS:
        return FOLDED_RANKS
    return fold
