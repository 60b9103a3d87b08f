"""The plan of a training: the plan's division of the work, for the batch that is trained on."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

from moiety.cost.training_peak import fullest_peaks
from moiety.errors import InputError
from moiety.graph.sharding import dense_shards
from moiety.plan import Schedule
from moiety.projection.load import load_classes
from moiety.projection.project import evaluate
from moiety.projection.scenario import scenario_of
from moiety.sim.sharding import sharding_bytes, sharding_time
from moiety.workload.workload import Workload

if TYPE_CHECKING:
    from moiety.calibration.calibration import Calibration
    from moiety.plan import Plan
    from moiety.projection.project import Evaluation

_FORMATS = "fp32", "bf16"


def check_trainable(plan: Plan, source: str) -> None:
    """Raise InputError for a plan or a model that this run time does not train."""
    stages = plan.pools[0].strategy.pp
    if stages > 1:
        rule = "training executes plans of one pipeline stage"
        remedy = "divide the model by tp, ep and dp (moiety plan ... --strategy S), or fold the plan onto fewer ranks"
        raise InputError(rule, source=source, field="pools[0].strategy.pp", value=stages, remedy=remedy)
    activations = plan.options.dtypes.activations
    if activations not in _FORMATS:
        rule = f"training computes in {' or '.join(_FORMATS)}"
        remedy = "save the checkpoint in BF16 or float32 and plan that"
        raise InputError(rule, source=source, field="options.dtypes.activations", value=activations, remedy=remedy)
    summed = plan.options.dtypes.critical
    if (plan.options.dense_parameter_sharding or plan.options.fully_sharded) and summed not in _FORMATS:
        rule = f"gradients of sharded parameters are summed in {' or '.join(_FORMATS)}"
        remedy = "plan with --set dtypes.critical=fp32"
        raise InputError(rule, source=source, field="options.dtypes.critical", value=summed, remedy=remedy)


def batch_of(plan: Plan, asked: int | None, row_tokens: int) -> int:
    """Return the rows of a step over all attention groups; InputError where the groups cannot share them evenly.

    Not asked for, a plan of training gives the rows of its own step, any other one row for each group.
    """
    pool = plan.pools[0]
    groups = pool.strategy.attn_dp * pool.strategy.instances
    if asked is None:
        planned = pool.schedule.tokens_per_step // row_tokens if pool.role == "training" else 1
        return max(planned, 1) * groups
    if asked % groups:
        rule = f"must be a multiple of {groups}, the attention groups of the plan that share the rows evenly"
        fitting = max(asked // groups, 1) * groups
        raise InputError(rule, field="--batch-size", value=asked, remedy=f"e.g. --batch-size {fitting}")
    return asked


@dataclass(frozen=True, slots=True)
class PlannedSharding:
    """What a step sends for sharded dense parameters by the plan, on a rank."""

    gathered_bytes: int
    scattered_bytes: int
    transfer_s: float
    exposed_s: float
    """In which nothing hides it."""
    step_s: float


def planned_sharding(evaluation: Evaluation) -> PlannedSharding | None:
    """Return what the step of an evaluated plan of training sends for sharded parameters; None if it shards none."""
    outcome = evaluation.phases[0].outcome
    if dense_shards(outcome.graph.layout) == 1:
        return None
    assert outcome.timeline is not None, "the plan was simulated, not estimated"
    return PlannedSharding(
        *sharding_bytes(outcome.graph),
        *astuple(sharding_time(outcome.timeline, outcome.graph)),
        step_s=outcome.step_s,
    )


def planned_peaks(evaluation: Evaluation, calibration: Calibration) -> dict[str, int]:
    """Return the bytes at the moments of a step that can be its peak, on the rank that takes most.

    Its experts get what the placement leads to be expected of the busiest, as its time is predicted.
    """
    plan = evaluation.plan
    pool = plan.pools[0]
    assert pool.memory is not None, "it is evaluated"
    classes = load_classes(scenario_of(plan, calibration), pool.strategy, pool.schedule, pool.placement)
    return fullest_peaks(evaluation.phases[0].outcome.graph, pool.memory, (each.loads for each in classes))


def trained(plan: Plan, calibration: Calibration, *, num_rows: int, row_tokens: int) -> Evaluation:
    """Return the plan as one of training on `num_rows` rows of `row_tokens` a step, in one micro-batch, evaluated anew.

    Its memory then says what a step takes, weights in the format that is computed in, and which layers recompute
    their activations for want of room.
    """
    pool = plan.pools[0]
    rows = num_rows // (pool.strategy.attn_dp * pool.strategy.instances)
    workload = Workload(
        name=f"{num_rows} rows of {row_tokens} tokens",
        kind="training",
        input_tokens=row_tokens,
        tokens_in_flight=num_rows * row_tokens,
    )
    schedule = Schedule(
        num_microbatches=1,
        prefill_tokens=rows * row_tokens,
        prompt_tokens=row_tokens,
        decode_sequences=0,
        context_tokens=0,
    )
    dtypes = plan.options.dtypes
    held = dtypes.model_copy(update={"weights": dtypes.activations, "experts": dtypes.activations})
    changes = {
        "workload": workload,
        "options": plan.options.model_copy(update={"two_batch_overlap": False, "all_to_all": "dedup", "dtypes": held}),
        "pools": (pool.model_copy(update={"role": "training", "schedule": schedule, "measured": ()}),),
        "comparison": (),
        "search": None,
    }
    return evaluate(plan.model_copy(update=changes), calibration)
