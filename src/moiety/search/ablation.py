"""Ablation: what each option is worth alone, and what the plan loses without it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.plan import DtypePolicy
from moiety.records import Record
from moiety.search.options import OPTIMISATIONS, baseline_options
from moiety.search.planner import with_options

if TYPE_CHECKING:
    from moiety.calibration.calibration import Calibration
    from moiety.plan import Options, Plan

_WIDEST = DtypePolicy(
    weights="fp32", experts="fp32", activations="fp32", kv_cache="fp32", dispatch="fp32", combine="fp32"
)
_GRADED = {"placement": "linear", "virtual_stages": 1, "fully_sharded": False}
"""Options that are plain in most plans: they are judged where they are not."""
_OFF = {name: off for name, (off, _) in OPTIMISATIONS.items()} | _GRADED | {"dtypes": _WIDEST}
_ON = {name: on for name, (_, on) in OPTIMISATIONS.items()}


class OptionWorth(Record):
    """What one option does to a plan's throughput and memory, as ratios (1: nothing)."""

    option: str
    setting: str
    throughput_alone: float | None
    """Throughput with only this option on, relative to all off; None where the plan leaves it off or it is a format."""
    throughput_without: float
    """Throughput without it, relative to all on."""
    memory_without_bytes: int
    """Change of the fullest GPU's memory when it is taken away."""
    fits_without: bool


def ablate(plan: Plan, calibration: Calibration) -> tuple[OptionWorth, ...]:
    """Return the worth of every option of an evaluated plan, in the order of the options.

    An option that the plan leaves off is judged the other way round: `without` is then with it. Formats that are
    already the widest have no other side and are left out, and so are linear placement, stages
    in one part and instances that share out nothing.
    """
    assert plan.projection is not None, "the plan is evaluated"
    whole = plan.projection.throughput_tokens_per_s
    memory = _fullest(plan)
    bare_options = baseline_options(plan.options)
    bare = with_options(plan, bare_options, calibration).plan
    assert bare.projection is not None, "variants are evaluated"
    bare_rate = bare.projection.throughput_tokens_per_s
    found: list[OptionWorth] = []
    for name, off in _OFF.items():
        current = getattr(plan.options, name)
        is_on = current != off
        if not is_on and name not in _ON:
            continue
        on = current if name in _GRADED else _ON.get(name)
        other = with_options(plan, _changed(plan.options, name, off if is_on else on), calibration).plan
        assert other.projection is not None, "variants are evaluated"
        alone = None
        if on is not None:
            single = with_options(plan, _changed(bare_options, name, on), calibration).plan
            assert single.projection is not None, "variants are evaluated"
            alone = single.projection.throughput_tokens_per_s / bare_rate
        found.append(
            OptionWorth(
                option=name,
                setting=_said(current, on=is_on),
                throughput_alone=alone,
                throughput_without=other.projection.throughput_tokens_per_s / whole,
                memory_without_bytes=_fullest(other) - memory,
                fits_without=all(pool.memory is not None and pool.memory.fits for pool in other.pools),
            )
        )
    return tuple(found)


def _changed(options: Options, name: str, value: object) -> Options:
    return options.model_copy(update={name: value})


def _fullest(plan: Plan) -> int:
    return max(pool.memory.total_bytes for pool in plan.pools if pool.memory is not None)


def _said(current: object, *, on: bool) -> str:
    if isinstance(current, DtypePolicy):
        return f"{current.experts} experts, {current.activations} activations"
    return ("on" if on else "off") if isinstance(current, bool) else str(current)
