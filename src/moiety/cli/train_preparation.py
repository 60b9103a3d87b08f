"""What happens before any rank trains: plan, checkpoint and rows are read, checked, and made into a job."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moiety.cli.run_choice import choose, transport_named
from moiety.cli.train_plan import batch_of, check_trainable, planned_peaks, planned_sharding, trained
from moiety.errors import InputError
from moiety.files import MAX_DATA_BYTES, check_folder_of, read_text
from moiety.runtime.job import TRAINING_ENTRY, Job, Training
from moiety.runtime.training.balance import BIAS
from moiety.runtime.training.data import read_rows
from moiety.runtime.training.state import METADATA
from moiety.runtime.training.states import newest_whole, previous_of

if TYPE_CHECKING:
    from moiety.cli.run_plan import Folding
    from moiety.cli.train_plan import PlannedSharding
    from moiety.runtime.checkpoint.index import Checkpoint
    from moiety.runtime.world import World

_MOST_RATE = 1e37
"""AdamW's first step divides it by 0.1, and FP32 ends at 3.4e38."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What the command line asks of a training."""

    plan: str
    checkpoint: str
    data: str
    steps: int
    learning_rate: float
    batch_size: int | None
    transport: str
    fold: int | None
    save: str | None
    resume: str | None
    balance_rate: float | None


@dataclass(frozen=True, slots=True)
class Preparation:
    """A job that nothing is known to be wrong with, and what its result is shown with."""

    job: Job
    folding: Folding | None
    notes: tuple[str, ...]
    """What the user should know before it runs."""
    sharding: PlannedSharding | None
    """What a step sends for sharded parameters by the plan; None where it shards none."""
    peaks: dict[str, int]
    """The bytes that the plan has at the moments of a step that can be its peak."""


def prepare(wish: Wish, world: World | None) -> Preparation:
    """Return the job that a command line asks for; raise InputError for the first thing that is wrong with it.

    `world` is what `torchrun` or Slurm started; None: this machine starts as many ranks as the job takes.
    """
    if not 0 < wish.learning_rate <= _MOST_RATE:
        raise InputError(f"must be above 0 and at most {_MOST_RATE:g}", field="--lr", value=wish.learning_rate)
    _check_folders(wish)
    found = None if wish.resume is None else newest_whole(Path(wish.resume).absolute())
    choice = choose(wish.plan, wish.checkpoint, wish.fold, world)
    if choice.num_ranks is None:
        check_trainable(choice.plan, str(choice.path))
    if wish.balance_rate is not None:
        _check_balance(wish.balance_rate, choice.checkpoint)
    rows = read_rows(
        read_text(wish.data, limit=MAX_DATA_BYTES),
        source=wish.data,
        vocab_size=choice.model.vocab_size,
        max_tokens=choice.model.max_position_embeddings,
    )
    folding = choice.folding()
    plan = choice.plan if folding is None else folding.plan
    check_trainable(plan, str(choice.path))
    batch_size = batch_of(plan, wish.batch_size, len(rows[0]))
    calibration = choice.calibration if folding is None else folding.calibration
    evaluation = trained(plan, calibration, num_rows=batch_size, row_tokens=len(rows[0]))
    job = Job(
        plan=evaluation.plan,
        checkpoint=str(choice.checkpoint.folder.resolve()),
        transport=transport_named(wish.transport),
        training=Training(
            data=str(Path(wish.data).resolve()),
            num_steps=wish.steps,
            learning_rate=wish.learning_rate,
            batch_size=batch_size,
            save=_absolute(wish.save),
            keeps_previous=found is None or found.damage is None or _absolute(wish.save) != _absolute(wish.resume),
            resume=None if found is None else str(found.folder),
            balance_rate=wish.balance_rate,
        ),
        entry=TRAINING_ENTRY,
    )
    notes = (None if folding is None else folding.sentence(), None if found is None else found.damage)
    return Preparation(
        job,
        folding,
        tuple(each for each in notes if each is not None),
        planned_sharding(evaluation),
        planned_peaks(evaluation, calibration),
    )


def _check_folders(wish: Wish) -> None:
    """Raise InputError where there is nothing to go on from, or where saving would replace what is no checkpoint."""
    if wish.resume is not None and not any((each / METADATA).is_file() for each in _places(wish.resume)):
        rule = f"holds no {METADATA}, so it is no distributed checkpoint"
        raise InputError(rule, field="--resume", value=wish.resume, remedy="name the folder of an earlier --save")
    if wish.save is None:
        return
    for target in _places(wish.save):
        if (
            target.exists()
            and not (target / METADATA).is_file()
            and not (target.is_dir() and not any(target.iterdir()))
        ):
            rule = "is there and is no distributed checkpoint, which alone would be replaced"
            raise InputError(rule, source=str(target), field="--save", value=wish.save, remedy="name a new folder")
    check_folder_of("--save", Path(wish.save).absolute())


def _places(folder: str) -> tuple[Path, Path]:
    """Return the folder of a state and that of the one before it."""
    target = Path(folder).absolute()
    return target, previous_of(target)


def _check_balance(rate: float, checkpoint: Checkpoint) -> None:
    """Raise InputError for a rate that is none, or a model whose routers have no bias to balance by."""
    if not (math.isfinite(rate) and rate > 0):
        raise InputError("must be above 0", field="--balance-router", value=rate, remedy="e.g. --balance-router 0.001")
    if not any(name.endswith(f".{BIAS}") for name in checkpoint.tensors):
        rule = f"balances routers by their {BIAS}, and this model's have none"
        remedy = "leave it out: only routers like DeepSeek-V3's have one"
        raise InputError(rule, source=str(checkpoint.listing), field="--balance-router", value=rate, remedy=remedy)


def _absolute(folder: str | None) -> str | None:
    return None if folder is None else str(Path(folder).resolve())
