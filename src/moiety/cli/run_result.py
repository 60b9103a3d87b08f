"""What a run came to: its tokens, what was measured beside what the plan predicts, as JSON and as tables."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from moiety.cli.table import table
from moiety.units import format_duration, format_si

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from rich.console import RenderableType

    from moiety.cli.run_bench import BenchResult
    from moiety.cli.run_plan import Folding
    from moiety.plan import Plan
    from moiety.runtime.job import Job
    from moiety.runtime.post import Report

_FIGURES: dict[str, tuple[str, Callable[[float], str]]] = {
    "ttft_s": ("time to first token", format_duration),
    "tpot_s": ("time per output token", format_duration),
    "throughput_tokens_per_s": ("throughput", lambda value: format_si(value, "tokens/s")),
}
"""What is shown of a run and of the plan's projection, and how."""
WEIGHTS = ("dense_weights", "expert_weights", "embedding_and_head")
"""Kinds of the memory plan that a checkpoint fills."""
_MOST_SHOWN = 12
"""Tokens or prompts that a table shows; `--json` has all."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """A finished run."""

    job: Job
    reports: tuple[Report, ...]
    folding: Folding | None = None
    texts: tuple[str | None, ...] = ()
    """The new tokens as text, where the prompt was one."""
    bench: BenchResult | None = None

    @property
    def plan(self) -> Plan:
        """The plan that ran."""
        return self.job.plan

    @property
    def outputs(self) -> list[list[int]]:
        """The new tokens of every prompt."""
        return cast("list[list[int]]", self.reports[0].get("outputs", []))

    @property
    def measured(self) -> dict[str, object]:
        """What the run came to, and what each rank did."""
        whole = cast("dict[str, object]", self.reports[0].get("measured", {}))
        ranks = [
            {"rank": rank, **cast("dict[str, object]", each.get("rank", {}))} for rank, each in enumerate(self.reports)
        ]
        return {**whole, "ranks": ranks}

    def document(self) -> dict[str, object]:
        """Return the run as one JSON document."""
        texts = self.texts or (None,) * len(self.outputs)
        projection = self.plan.projection
        return {
            "plan": self.plan.name,
            "num_ranks": self.job.num_ranks,
            "outputs": [
                {"prompt_token_ids": list(prompt), "token_ids": tokens, **({} if text is None else {"text": text})}
                for prompt, tokens, text in zip(self.job.prompts, self.outputs, texts, strict=True)
            ],
            "measured": self.measured,
            "bench": None if self.bench is None else self.bench.document(),
            "predicted": None if projection is None else projection.model_dump(mode="json"),
            "folded": None if self.folding is None else self.folding.document(),
        }

    @property
    def bench_outcome(self) -> Mapping[str, object]:
        """What the ranks measured for the bench."""
        return cast("Mapping[str, object]", self.reports[0]["bench"])

    def with_bench(self, bench: BenchResult) -> RunResult:
        """Return the run with its bench."""
        return replace(self, bench=bench)

    def with_texts(self, texts: tuple[str | None, ...]) -> RunResult:
        """Return the run with the new tokens' texts."""
        return replace(self, texts=texts)

    def trace_text(self) -> str:
        """Return the ranks' events as one Chrome trace."""
        events = [event for each in self.reports for event in cast("list[object]", each.get("trace", []))]
        return json.dumps({"traceEvents": events}, separators=(",", ":"))


def run_sections(result: RunResult, calibration_file: str | None = None) -> Iterator[RenderableType]:
    """Yield everything that `moiety run` shows, in order."""
    yield outputs_section(result)
    yield figures_section(result)
    if result.bench is not None:
        yield from result.bench.sections()
        yield f"The refitted constants: {calibration_file}; plan with them: moiety plan ... --calibration FILE"
    yield memory_section(result)


def outputs_section(result: RunResult) -> RenderableType:
    """Return the prompts with what they were continued by."""
    texts = result.texts or (None,) * len(result.outputs)
    lines = list(zip(result.job.prompts, result.outputs, texts, strict=True))
    rows = [
        (str(number), _tokens(prompt), repr(text) if text is not None else _tokens(tokens))
        for number, (prompt, tokens, text) in enumerate(lines[:_MOST_SHOWN], 1)
    ]
    notes = [f"and {len(lines) - _MOST_SHOWN} more; --json has all"] if len(lines) > _MOST_SHOWN else []
    plan = result.plan
    title = f"{plan.model.name} on {plan.num_gpus} ranks ({plan.pools[0].strategy.name}): {len(lines)} prompts"
    return table(title, (">prompt", "token ids", "continued by"), rows, notes=notes)


def figures_section(result: RunResult) -> RenderableType:
    """Return what was measured beside what the plan predicts of its own workload."""
    plan, measured = result.plan, result.measured
    rows = [
        (said, _shown(measured.get(key), form), _shown(getattr(plan.projection, key, None), form))
        for key, (said, form) in _FIGURES.items()
    ]
    prompts = [len(prompt) for prompt in result.job.prompts]
    note = f"measured on {len(prompts)} prompts of {min(prompts)} to {max(prompts)} tokens; predicted for the plan's "
    note += f"workload ({plan.workload.name}) on {plan.cluster.name}"
    return table("Measured and predicted", ("figure", ">measured", ">predicted"), rows, notes=[note])


def memory_section(result: RunResult) -> RenderableType:
    """Return each rank's bytes beside the memory plan's, which are those of the fullest GPU."""
    memory = result.plan.pools[0].memory
    planned = {} if memory is None else memory.bytes_by_kind
    weights = sum(planned.get(kind, 0) for kind in WEIGHTS)
    ranks = cast("list[dict[str, object]]", result.measured["ranks"])
    arenas = [cast("Mapping[str, object]", each.get("arena", {})) for each in ranks]
    rows = [
        (
            str(each["rank"]),
            _shown(each.get("weight_bytes"), _bytes),
            _shown(each.get("cache_bytes"), _bytes),
            _shown(arena.get("size_bytes"), _bytes),
        )
        for each, arena in zip(ranks, arenas, strict=True)
    ]
    rows.append(("plan", _bytes(weights), _bytes(planned.get("kv_cache", 0)), ""))
    columns = (">rank", ">weights", ">KV cache", ">arena")
    return table("Memory of each rank", columns, rows, notes=list(dict.fromkeys(map(_of_arena, arenas))))


def _of_arena(arena: Mapping[str, object]) -> str:
    """Return which decode steps were computed in the arena or by CUDA graphs, and what was not, in one sentence."""
    outside = [*cast("list[str]", arena.get("outside", []))]
    if arena.get("obstacle"):
        outside.append(f"a step, as {arena['obstacle']}")
    way = "graphs" if "decode_steps_in_graphs" in arena else "arena"
    done, of = arena.get(f"decode_steps_in_{way}", 0), arena.get("decode_steps", 0)
    said = f"{done} of {of} decode steps {'by CUDA graphs' if way == 'graphs' else 'in the arena'}"
    return f"{said}; other: {'; '.join(outside)}" if outside else said


def _bytes(value: float) -> str:
    return format_si(value, "B")


def _shown(value: object, form: Callable[[float], str]) -> str:
    return form(value) if isinstance(value, (int, float)) else "-"


def _tokens(token_ids: Sequence[int]) -> str:
    shown = " ".join(str(each) for each in token_ids[:_MOST_SHOWN])
    return f"{shown} ... ({len(token_ids)})" if len(token_ids) > _MOST_SHOWN else shown
