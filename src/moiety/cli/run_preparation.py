"""What happens before any rank is started: plan, checkpoint and prompts are read, checked, and made into a job."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moiety.cli.run_checkpoint import stop_tokens
from moiety.cli.run_choice import choose, transport_named
from moiety.cli.run_prompts import check_prompts, made_up_prompts, read_prompts
from moiety.errors import InputError
from moiety.files import read_text
from moiety.runtime.job import Job

if TYPE_CHECKING:
    from pathlib import Path

    from moiety.calibration.calibration import Calibration
    from moiety.cli.run_plan import Folding
    from moiety.cli.run_prompts import Prompt
    from moiety.model.model import Model
    from moiety.plan import Plan
    from moiety.runtime.checkpoint.index import Checkpoint
    from moiety.runtime.tokenizer import Tokenizer
    from moiety.runtime.world import World

_FEWEST_MADE_UP = 4


@dataclass(frozen=True, slots=True)
class Wish:
    """What the command line asks of a run."""

    plan: str
    checkpoint: str
    prompts: str | None
    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    ignore_eos: bool
    dispatch: str | None
    transport: str
    fold: int | None
    bench: bool
    trace: bool


@dataclass(frozen=True, slots=True)
class Preparation:
    """A job that nothing is known to be wrong with, and what its result is shown with."""

    job: Job
    folding: Folding | None
    prompts: tuple[Prompt, ...]
    tokenizer: Tokenizer | None
    notes: tuple[str, ...]
    """What the user should know before it runs."""
    calibration: Calibration
    """What the plan that runs was evaluated with."""
    folder: Path
    """Where the plan's file lies."""

    def texts(self, outputs: list[list[int]]) -> tuple[str | None, ...]:
        """Return the new tokens as text, for the prompts that were texts."""
        return tuple(
            self.tokenizer.decode(tokens) if self.tokenizer is not None and prompt.text is not None else None
            for prompt, tokens in zip(self.prompts, outputs, strict=True)
        )


def prepare(wish: Wish, world: World | None) -> Preparation:
    """Return the job that a command line asks for; raise InputError for the first thing that is wrong with it.

    `world` is what `torchrun` or Slurm started; None: this machine starts as many ranks as the job takes.
    """
    _check_numbers(wish)
    choice = choose(wish.plan, wish.checkpoint, wish.fold, world, dispatch=wish.dispatch)
    checkpoint, model = choice.checkpoint, choice.model
    prompts = None if wish.prompts is None else read_prompts(read_text(wish.prompts), source=wish.prompts)
    tokenizer = _tokenizer(checkpoint, prompts or ())
    prompts = None if prompts is None else _encoded(prompts, tokenizer)
    check_prompts(prompts or (), model, wish.max_new_tokens)
    folding = choice.folding()
    running = choice.plan if folding is None else folding.plan
    _check_cache(running)
    made_up = prompts is None
    if prompts is None:
        prompts = _made_up(running, model, wish)
    job = Job(
        plan=running,
        checkpoint=str(checkpoint.folder.resolve()),
        prompts=tuple(each.token_ids for each in prompts),
        max_new_tokens=wish.max_new_tokens,
        temperature=wish.temperature,
        top_p=wish.top_p,
        top_k=wish.top_k,
        seed=wish.seed,
        stop_token_ids=() if wish.ignore_eos else stop_tokens(checkpoint),
        transport=transport_named(wish.transport),
        bench=wish.bench,
        trace=wish.trace,
    )
    notes = _notes(folding, len(prompts) if made_up else 0)
    used = choice.calibration if folding is None else folding.calibration
    return Preparation(job, folding, prompts, tokenizer, notes, used, choice.path.parent)


def _check_cache(plan: Plan) -> None:
    """Raise InputError for a plan whose KV cache has a format that ranks do not keep."""
    from moiety.runtime.model.kv_cache import cache_dtype

    cache_dtype(plan.options.dtypes.kv_cache)


def _check_numbers(wish: Wish) -> None:
    """Raise InputError for a way of sampling that there is not."""
    if not (math.isfinite(wish.temperature) and wish.temperature >= 0):
        raise InputError("must be 0 (greedy) or more", field="--temperature", value=wish.temperature)
    if not 0 < wish.top_p <= 1:
        raise InputError("must be above 0 and at most 1", field="--top-p", value=wish.top_p)
    if wish.temperature == 0 and (wish.top_p < 1 or wish.top_k):
        field, value = ("--top-k", wish.top_k) if wish.top_k else ("--top-p", wish.top_p)
        rule, remedy = "needs a --temperature above 0: at 0 the most likely token is taken", "e.g. --temperature 0.7"
        raise InputError(rule, field=field, value=value, remedy=remedy)


def _tokenizer(checkpoint: Checkpoint, prompts: tuple[Prompt, ...]) -> Tokenizer | None:
    """Return the checkpoint's tokenizer where a prompt is a text; InputError with its line where there is none."""
    first = next((each for each in prompts if each.text is not None), None)
    if first is None:
        return None
    from moiety.runtime.tokenizer import Tokenizer

    try:
        return Tokenizer.load(checkpoint.folder)
    except InputError as error:
        rule = f"{error.rule} ({error.source})"
        raise InputError(rule, source=first.source, field="text", value=first.text, remedy=error.remedy) from None


def _encoded(prompts: tuple[Prompt, ...], tokenizer: Tokenizer | None) -> tuple[Prompt, ...]:
    """Return the prompts with the token ids of their texts."""
    found: list[Prompt] = []
    for each in prompts:
        if each.text is None or tokenizer is None:
            found.append(each)
            continue
        token_ids = tokenizer.encode(each.text)
        if not token_ids:
            raise InputError("comes to no token", source=each.source, field="text", value=each.text)
        found.append(type(each)(each.source, token_ids, each.text))
    return tuple(found)


def _made_up(plan: Plan, model: Model, wish: Wish) -> tuple[Prompt, ...]:
    """Return prompts of our own, at least one for each attention group; InputError where they have no room."""
    strategy = plan.pools[0].strategy
    number = max(_FEWEST_MADE_UP, strategy.attn_dp * strategy.instances)
    prompts = made_up_prompts(model, number, wish.max_new_tokens, wish.seed)
    check_prompts(prompts, model, wish.max_new_tokens)
    return prompts


def _notes(folding: Folding | None, num_made_up: int) -> tuple[str, ...]:
    notes = [] if folding is None else [folding.sentence()]
    if num_made_up:
        notes.append(f"no --prompts: {num_made_up} prompts of random tokens are made up, the same each time")
    return tuple(notes)
