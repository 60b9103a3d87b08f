"""`--set option=value` and `--strategy`: what the user decides instead of the search."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, cast

from pydantic import ValidationError

from moiety.errors import InputError, nearest
from moiety.records import broken_rule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.model.model import Model
    from moiety.plan import Options
    from moiety.strategy.strategy import Strategy

_EP = re.compile(r"(?:^|_)ep([1-9][0-9]{0,6})(?:_|$)")


def changed_options(options: Options, settings: Sequence[str]) -> Options:
    """Return the options with `two_batch_overlap=false`, `all_to_all=flat`, `dtypes.kv_cache=fp8` and the like applied.

    Raises InputError for an unknown option (with the nearest), one that is given twice, or a value it cannot have.
    """
    fields: dict[str, object] = dict(options.model_dump())
    formats = cast("dict[str, object]", fields["dtypes"])
    known = [name for name in type(options).model_fields if name != "dtypes"]
    known += [f"dtypes.{name}" for name in type(options.dtypes).model_fields]
    seen: set[str] = set()
    for setting in settings:
        name, equals, value = setting.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not value.strip():
            raise InputError("write option=value", field="--set", value=setting, remedy="e.g. two_batch_overlap=false")
        if name not in known:
            raise InputError("no such option", field="--set", value=name, remedy=nearest(name, known))
        if name in seen:
            raise InputError("is given twice", field="--set", value=name)
        seen.add(name)
        if name.startswith("dtypes."):
            formats[name.removeprefix("dtypes.")] = value.strip()
        else:
            fields[name] = value.strip()
    try:
        return type(options).model_validate(fields)
    except ValidationError as error:
        first = broken_rule(error)
        raise InputError(first.rule, field=f"--set {first.field or ''}", value=first.given) from None


def checked_redundancy(num_slots: int, model: Model, num_gpus: int) -> int:
    """Return the number of redundant expert slots; raise InputError for more than a copy of each expert on each GPU."""
    moe = model.moe
    if num_slots and moe is None:
        raise InputError(
            "the model has no experts to copy", field="--redundant-experts", value=num_slots, remedy="leave it out"
        )
    most = moe.num_experts * (num_gpus - 1) if moe is not None else 0
    if not 0 <= num_slots <= most:
        rule = f"must be from 0 to {most:,}: at most a copy of each of the experts on each of the {num_gpus} GPUs"
        raise InputError(rule, field="--redundant-experts", value=num_slots)
    return num_slots


def pinned_strategy(text: str | None, model: Model, num_gpus: int, redundant_experts: int) -> Strategy | None:
    """Return the strategy that the user pins, None where the search chooses.

    Raises InputError; where the experts do not divide over `ep`, it says that before anything about GPU counts.
    """
    if text is None:
        return None
    from moiety.strategy.legality import RULES
    from moiety.strategy.strategy import Strategy, parse_strategy

    degree = _EP.search(text.lower())
    if degree is not None:
        ep = int(degree[1])
        divides = RULES["experts-divide-over-ep"]
        if ep <= num_gpus and (reason := divides(model, Strategy(attn_dp=ep, ep=ep), redundant_experts)):
            raise InputError(f"breaks the rule experts-divide-over-ep: {reason}", field="--strategy", value=text)
    return parse_strategy(text, num_gpus)
