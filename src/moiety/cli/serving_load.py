"""The requests of `moiety simulate --requests`: how many, when they come, and what they see of a plan's engine."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moiety.errors import InputError
from moiety.files import read_text
from moiety.json_object import unique_keys
from moiety.records import broken_rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moiety.calibration.calibration import Calibration
    from moiety.plan import Plan
    from moiety.sim.arrivals import Arrival
    from moiety.sim.histogram import Histogram
    from moiety.sim.serving import ServingOutcome

QUANTILES = (0.5, 0.9, 0.99)


@dataclass(frozen=True, slots=True)
class ServingLoad:
    """What is asked of a plan: at most one of the three kinds of load; none of them: the workload's own."""

    requests: int
    concurrency: int | None = None
    rate_per_s: float | None = None
    arrivals: str | None = None
    prefix_hits: float = 0.0


@dataclass(frozen=True, slots=True)
class Served:
    """What the requests of one attention group saw, and how many such groups have requests."""

    outcome: ServingOutcome
    num_groups: int
    load: str

    def document(self) -> dict[str, object]:
        """Return the figures for JSON: seconds; rates over all groups."""
        outcome, groups = self.outcome, self.num_groups
        return {
            "load": self.load,
            "num_groups": groups,
            "requests_per_group": outcome.finished,
            **{name: _figures(getattr(outcome, name)) for name in ("ttft", "tpot", "itl", "e2e")},
            "output_tokens_per_s": outcome.throughput_tokens_per_s * groups,
            "goodput_requests_per_s": outcome.goodput_per_s * groups,
            "good_share": outcome.good / max(outcome.finished, 1),
            "preemptions_per_group": outcome.preemptions,
        }


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, strict=True)

    at_s: Annotated[float, Field(ge=0, le=1e9)]
    input_tokens: Annotated[int, Field(gt=0, le=100_000_000)]
    output_tokens: Annotated[int, Field(gt=0, le=100_000_000)]


def check_load(load: ServingLoad) -> None:
    """Raise InputError where more than one kind of load is asked for, or requests come that are not counted."""
    given = {"--concurrency": load.concurrency, "--rate": load.rate_per_s, "--arrivals": load.arrivals}
    named = [name for name, value in given.items() if value is not None]
    if (named or load.prefix_hits) and not load.requests:
        field = (*named, "--prefix-hits")[0]
        raise InputError("says how requests come, but not how many", field=field, remedy="add --requests 1000")
    if len(named) > 1:
        raise InputError("name one load, not several", field=" ".join(named), remedy=f"e.g. {named[0]} alone")


def serve_load(plan: Plan, calibration: Calibration, load: ServingLoad) -> Served:
    """Return what the requests see of the plan's engine: of one attention group, with its share of them.

    Of fewer requests than groups, or fewer in flight, each has a group of its own, and the other groups do nothing.
    """
    from moiety.projection.serving_plan import serving_pools
    from moiety.projection.serving_simulation import serving_engine
    from moiety.sim.arrivals import Lengths, poisson, together
    from moiety.sim.serving import Objective, simulate_serving

    pools = serving_pools(plan, calibration)
    work = plan.workload
    engine = serving_engine(pools.decode, pools.prefill, pools.apart, prefix_hit_rate=load.prefix_hits)
    lengths = Lengths(work.input_tokens, work.output_tokens, work.shortest_share)
    rate, concurrency = load.rate_per_s, load.concurrency
    if rate is concurrency is load.arrivals is None:
        rate, concurrency = work.request_rate_per_s, work.concurrency
    came = [] if load.arrivals is None else _read(load.arrivals, engine.cache_tokens)[: load.requests]
    groups = min(pools.decode.num_groups, len(came) or load.requests, concurrency or load.requests)
    count, share = load.requests // groups, None
    if came:
        requests, said = iter(came[::groups]), f"arrivals of {load.arrivals}"
    elif rate is not None:
        requests, said = poisson(rate / groups, lengths, count=count), f"Poisson, {rate:g} requests/s"
    else:
        share = max(round((concurrency or groups) / groups), 1)
        requests, said = together(lengths, count=count), f"closed loop, {share * groups:,} requests in flight"
    objective = Objective(work.slo.ttft_s, work.slo.tpot_s)
    return Served(simulate_serving(engine, requests, concurrency=share, objective=objective), groups, said)


def _read(path: str, most_tokens: float) -> list[Arrival]:
    """Return the requests of a trace in order of time; raise InputError with the line that is none or cannot be one."""
    from moiety.sim.arrivals import trace

    rows: list[tuple[float, int, int]] = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = _request(line, most_tokens)
        except InputError as error:
            raise error.at(f"{path}:{number}") from None
        rows.append((row.at_s, row.input_tokens, row.output_tokens))
    if not rows:
        remedy = 'a line a request: {"at_s": 0.5, "input_tokens": 100, "output_tokens": 20}'
        raise InputError("holds no request", source=path, remedy=remedy)
    return list(trace(sorted(rows)))


def _request(line: str, most_tokens: float) -> _Line:
    try:
        row = _Line.model_validate(json.loads(line, object_pairs_hook=unique_keys))
    except ValidationError as error:
        first = broken_rule(error)
        raise InputError(first.rule, field=first.field, value=first.value) from None
    except (ValueError, RecursionError):
        raise InputError("is no JSON") from None
    held = row.input_tokens + row.output_tokens
    if held > most_tokens:
        rule = f"is more than the {most_tokens:,.0f} tokens that the cache of an attention group holds"
        raise InputError(rule, field="input_tokens + output_tokens", value=held)
    return row


def _figures(values: Histogram) -> dict[str, float] | None:
    """Return a latency's figures; None where no request has it: the time per output token of one."""
    if not values.count:
        return None
    found: Iterator[tuple[str, float]] = ((f"p{round(100 * q)}_s", values.quantile(q)) for q in QUANTILES)
    return {"mean_s": values.mean, **dict(found)}
