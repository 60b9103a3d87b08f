"""The serving law over many rows at once, as a function of the constants of one family of devices.

The law is that of `projection/serving.py`; a test holds the two together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from moiety.projection.serving import MOST_BURST
from moiety.validation.fit_terms import BESIDE, COLLECTIVE, FIXED, FORMATS, GROUPED, LINES, MOVING, group_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from moiety.calibration.calibration import RooflineKind
    from moiety.validation.fit_terms import RowTerms, StepTerms

ENGINES = ("vllm", "sglang", "tensorrt-llm")
RELEASES: dict[str, tuple[str, ...]] = {
    "vllm": ("0.0.0", "0.15.0"),
    "sglang": ("0.0.0", "0.5.7"),
    "tensorrt-llm": ("0.0.0", "1.1.0", "1.2.0"),
}
"""Releases at which an engine's constants may change; runs that state none are a group of their own."""
MOST_RELEASES = 4

Prior = tuple[float, float]
"""The value that a constant is expected to have, and how far its logarithm may move from there at small cost."""

DEVICE: dict[str, Prior] = {
    "dense_compute": (0.7, 0.5),
    "dense_memory": (0.8, 0.5),
    "grouped_compute": (0.5, 0.25),
    "grouped_memory": (0.75, 0.5),
    "prefill_compute": (0.55, 0.5),
    "gqa_memory": (0.8, 0.5),
    "decode_compute": (0.5, 0.5),
    "mla_memory": (0.7, 0.5),
    "linear": (0.6, 0.5),
    "pass_memory": (0.7, 0.5),
    "link_latency_s": (8e-6, 0.5),
    "link_efficiency": (0.6, 0.5),
    "second_start": (1.0, 0.5),
    "fp8_memory": (0.95, 0.3),
    "fp4_memory": (0.9, 0.3),
    "mxfp4_memory": (0.9, 0.3),
    "fp8_compute": (0.8, 0.5),
    "fp4_compute": (0.8, 0.5),
    "mxfp4_compute": (0.8, 0.5),
    "grouped_fp8_memory": (1.0, 0.2),
    "grouped_fp8_compute": (1.0, 0.3),
    "block_fp8_memory": (1.0, 0.3),
}
"""Of formats, what products with such weights reach of the others'; of grouped FP8, what these reach of dense FP8, and
of FP8 in blocks, what dense products with a scale a block reach of those with one scale: in memory traffic only, for
with many rows they compute as fast (fitted too, that came out as 0.94 and 0.98)."""
ENGINE: dict[str, Prior] = {
    "kernel_slowdown": (1.0, 0.2),
    "step_overhead_s": (1e-3, 1.0),
    "op_gap_s": (1.5e-6, 1.0),
    "eager_gap_s": (5e-6, 1.0),
    "moe_layer_gap_s": (15e-6, 1.0),
    "sequence_overhead_s": (8e-6, 1.0),
    "interference": (1.0, 0.3),
    "unshared_prefill": (0.3, 1.0),
    "request_overhead_s": (0.07, 1.0),
    "concurrency_overhead_s": (1e-3, 1.5),
    "prefill_slowdown": (1.0, 0.4),
    "data_parallel_slowdown": (1.0, 0.7),
    "wait": (1.0, 1.0),
    "burst": (0.05, 1.0),
    "burst_growth": (0.01, 1.5),
    "convoy": (4.0, 1.0),
    "cold_step_s": (2.0, 1.0),
    "cold_fp4_step_s": (5.0, 1.0),
}
RELEASE: dict[str, float] = {
    "kernel_slowdown": 0.15,
    "step_overhead_s": 0.5,
    "request_overhead_s": 0.6,
    "prefill_slowdown": 0.4,
    "burst": 0.6,
    "burst_growth": 0.6,
}
"""What a group of releases may differ in from its engine, and how far its logarithm may move at small cost."""
OF_TTFT = frozenset(
    {
        "request_overhead_s",
        "concurrency_overhead_s",
        "prefill_slowdown",
        "data_parallel_slowdown",
        "wait",
        "burst",
        "burst_growth",
        "convoy",
        "cold_step_s",
        "cold_fp4_step_s",
    }
)
_FULL, _NONE = 0.98, 1e-12
_GROUPED_KINDS = [LINES.index(kind) for kind in sorted(GROUPED)]


def names() -> tuple[str, ...]:
    """Return the constants' names in order: of the device, of each engine, of each group of releases."""
    found = list(DEVICE)
    found += [f"{engine}.{name}" for engine in ENGINES for name in ENGINE]
    for engine in ENGINES:
        found += [f"{engine}.{group}.{name}" for group in range(MOST_RELEASES) for name in RELEASE]
    return tuple(found)


def dependence(rows: Rows) -> NDArray[np.bool_]:
    """Return which constants each row's latencies depend on [rows, constants], in the order of `names`."""
    engines = [rows.engine == engine for engine in range(len(ENGINES))]
    groups = [own & (rows.release == group) for own in engines for group in range(MOST_RELEASES)]
    found = [np.ones(len(rows.engine), dtype=np.bool_)] * len(DEVICE)
    found += [own for own in engines for _ in ENGINE]
    found += [own for own in groups for _ in RELEASE]
    return np.stack(found, axis=1)


def prior() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the logarithms of the expected constants and their widths, in the order of `names`."""
    pairs = list(DEVICE.values()) + [pair for _ in ENGINES for pair in ENGINE.values()]
    pairs += [(1.0, width) for _ in ENGINES for _ in range(MOST_RELEASES) for width in RELEASE.values()]
    return np.log([value for value, _ in pairs]), np.array([width for _, width in pairs])


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one family as arrays [rows]; `decode`, `chunk` and `filled` are their steps' terms, each in one table."""

    decode: Steps
    chunk: Steps
    filled: Steps
    engine: NDArray[np.intp]
    release: NDArray[np.intp]
    offered: NDArray[np.float64]
    running: NDArray[np.float64]
    sequences: NDArray[np.float64]
    thrown_out: NDArray[np.float64]
    """Answers' times that a mean sequence waits after its first token."""
    chunks: NDArray[np.float64]
    filled_chunks: NDArray[np.float64]
    mixtures: NDArray[np.float64]
    captured_prompts: NDArray[np.bool_]
    prompts_alone: NDArray[np.bool_]
    """Prompts by themselves: what stands for a step that decodes is one of theirs."""
    admission_steps: NDArray[np.float64]
    equal_lengths: NDArray[np.bool_]
    cold: NDArray[np.bool_]
    fp4_experts: NDArray[np.bool_]
    concurrency: NDArray[np.float64]
    output_tokens: NDArray[np.float64]
    groups: NDArray[np.float64]
    """Attention groups of a worker."""
    mixes: NDArray[np.bool_]
    whole_prompts: NDArray[np.bool_]
    tpot_s: NDArray[np.float64]
    """Measured; not a number where it was not."""
    ttft_s: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Steps:
    """The terms of a step of every row: `row` [terms] says whose, `count` how often, `kind` which of `table`.

    `part` and `stream` are those of `StepTerms`; `table` is the rest of it, every different term once.
    """

    row: NDArray[np.intp]
    count: NDArray[np.float64]
    part: NDArray[np.intp]
    stream: NDArray[np.intp]
    kind: NDArray[np.intp]
    table: NDArray[np.float64]
    kernels: NDArray[np.float64]


def steps_of(rows: Sequence[RowTerms], which: Literal["decode", "chunk", "filled"]) -> Steps:
    """Return the steps of many rows in one table."""
    steps: list[StepTerms] = [getattr(row, which) for row in rows]
    sizes = [len(step.terms) for step in steps]
    terms = np.concatenate([step.terms for step in steps])
    table, kind = np.unique(terms[:, 3:], axis=0, return_inverse=True)
    return Steps(
        row=np.repeat(np.arange(len(steps)), sizes),
        count=terms[:, 0],
        part=terms[:, 1].astype(np.intp),
        stream=terms[:, 2].astype(np.intp),
        kind=kind.reshape(-1),
        table=table,
        kernels=np.array([step.kernels for step in steps], dtype=np.float64),
    )


class Law:
    """Predicts the rows' latencies from the logarithms of the constants."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._index = {name: position for position, name in enumerate(names())}
        self._kernel_seconds: tuple[bytes, list[NDArray[np.float64]]] | None = None

    def predict(self, logs: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return (TPOT, TTFT) in seconds [rows]."""
        rows, c = self._rows, np.exp(logs)
        slow = self._of(c, "kernel_slowdown")
        fixed = self._of(c, "step_overhead_s") + rows.mixtures * self._of(c, "moe_layer_gap_s")
        each = self._of(c, "sequence_overhead_s") * rows.sequences
        gap, eager_gap = self._of(c, "op_gap_s"), self._of(c, "eager_gap_s")
        decode_kernels, chunk_kernels, filled_kernels = self._step_kernels(c)
        gaps = np.where(rows.prompts_alone, eager_gap, gap) * rows.decode.kernels
        decode = decode_kernels * slow + fixed + gaps + each
        eager = np.where(rows.captured_prompts, gap, eager_gap) * rows.chunk.kernels
        beside = fixed + eager + np.where(rows.mixes, each, 0.0)
        chunk, filled = chunk_kernels * slow + beside, filled_kernels * slow + beside
        added = np.where(rows.mixes, chunk - decode, chunk)
        filled_added = np.where(rows.mixes & ~rows.whole_prompts, filled - decode, filled)
        share = rows.running * rows.chunks / rows.output_tokens
        others = np.maximum(rows.running - 1, 0) / rows.running
        own_share = np.minimum(share, 1.0)
        any_share = 1 - (1 - own_share) ** rows.groups
        seen = 1 + self._of(c, "unshared_prefill") * (any_share / np.maximum(own_share, _NONE) - 1) * (own_share > 0)
        prompt, locked = filled_added * rows.filled_chunks, rows.equal_lengths & ~rows.mixes
        together = np.maximum(1 / np.maximum(rows.filled_chunks, _NONE), 1.0)
        behind = np.maximum(rows.running - together, 0) / 2
        stalled = np.where(locked, behind * prompt / rows.output_tokens, others * share * added * seen)
        tpot = decode + self._of(c, "interference") * stalled
        own = chunk * rows.chunks
        convoy = np.where(rows.equal_lengths, np.minimum(rows.running, self._of(c, "convoy")), 1.0)
        growth = np.where(rows.equal_lengths, self._of(c, "burst_growth") * rows.running / 64, 0.0)
        share_ahead = np.minimum(self._of(c, "burst") + growth, MOST_BURST)
        ahead = share_ahead * rows.running + np.maximum(convoy - 1, 0) / 2
        ahead = np.where(locked, np.maximum((rows.running + together) / 2 - 1, 0), ahead)
        busy = np.where(locked, 0.0, np.minimum(share * added / tpot, _FULL))
        queued = np.minimum(busy / (2 * (1 - busy)), np.maximum(rows.running - 1, 0)) * own
        cold = np.where(rows.fp4_experts, self._of(c, "cold_fp4_step_s"), self._of(c, "cold_step_s"))
        ttft = (
            self._of(c, "request_overhead_s")
            + rows.concurrency * self._of(c, "concurrency_overhead_s")
            + self._of(c, "prefill_slowdown")
            * np.where(rows.groups > 1, self._of(c, "data_parallel_slowdown"), 1)
            * own
            + self._of(c, "wait") * (rows.admission_steps * tpot + queued)
            + ahead * prompt * self._of(c, "interference")
            + np.where(rows.cold, cold, 0.0)
            + (rows.offered / rows.running - 1 - rows.thrown_out) * rows.output_tokens * tpot
        )
        return (1 + rows.thrown_out) * tpot, ttft

    def _of(self, c: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        """Return an engine's constant for each row, times what its group of releases differs by."""
        rows = self._rows
        base = np.array([c[self._index[f"{engine}.{name}"]] for engine in ENGINES])[rows.engine]
        if name not in RELEASE:
            return base
        table = [[c[self._index[f"{e}.{group}.{name}"]] for group in range(MOST_RELEASES)] for e in ENGINES]
        return base * np.array(table)[rows.engine, rows.release]

    def _step_kernels(self, c: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        """Return the kernels' seconds of each step, anew only where a device's constant changed: most are engines'."""
        key = c[: len(DEVICE)].tobytes()
        if self._kernel_seconds is None or self._kernel_seconds[0] != key:
            steps = (self._rows.decode, self._rows.chunk, self._rows.filled)
            self._kernel_seconds = (key, [self._kernels(c, step) for step in steps])
        return self._kernel_seconds[1]

    def _kernels(self, c: NDArray[np.float64], steps: Steps) -> NDArray[np.float64]:
        """Return the seconds of kernels and transfers of each row's step."""
        kind, form, first, second = steps.table.T
        kinds = kind.astype(np.intp)
        compute, memory = self._efficiencies(c)
        reached = compute[kinds] * self._format_shares(c, "compute", kinds, form)
        moved = memory[kinds] * self._format_shares(c, "memory", kinds, form)
        seconds = np.hypot(first / reached, second / moved)
        links = kinds == COLLECTIVE
        start = c[self._index["link_latency_s"]] * first[links]
        wire = second[links] / min(c[self._index["link_efficiency"]], 1.0)
        in_one_shot = (group_size(first[links]) / 2 - 1) * wire
        second_shot = np.minimum(c[self._index["second_start"]] * start, np.maximum(in_one_shot, 0.0))
        seconds[links] = start + wire + np.where(form[links] > 0, second_shot, 0.0)
        spent, num_rows, num_parts = steps.count * seconds[steps.kind], len(steps.kernels), steps.part.max() + 1
        parts = steps.row * num_parts + steps.part
        moving, beside = (
            np.bincount(parts[terms], spent[terms], minlength=num_rows * num_parts).reshape(num_rows, -1)
            for terms in (steps.stream == MOVING, steps.stream == BESIDE)
        )
        hidden = np.minimum(moving, beside).sum(axis=1)
        return np.asarray(np.bincount(steps.row, spent, minlength=num_rows) - hidden, dtype=np.float64)

    def _format_shares(
        self,
        c: NDArray[np.float64],
        what: Literal["compute", "memory"],
        kinds: NDArray[np.intp],
        form: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """Return what the format of the weights leaves of an efficiency, for each term."""
        of_formats = [1.0, *(c[self._index[f"{name}_{what}"]] for name in FORMATS)]
        of_blocks = c[self._index[f"fp8_{what}"]]
        if what == "memory":
            of_blocks *= c[self._index["block_fp8_memory"]]
        shares = np.array([*of_formats, of_blocks])[form.astype(np.intp)]
        grouped_fp8 = np.isin(kinds, _GROUPED_KINDS) & (form == FORMATS.index("fp8") + 1)
        return np.where(grouped_fp8, shares * c[self._index[f"grouped_fp8_{what}"]], shares)

    def _efficiencies(self, c: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return compute and memory efficiency by kind of term; those beyond the rooflines are 1."""
        pairs = roofline_constants({name: float(c[self._index[name]]) for name in DEVICE})
        ones = [1.0] * (FIXED + 1 - len(LINES))
        return np.array([pairs[k][0] for k in LINES] + ones), np.array([pairs[k][1] for k in LINES] + ones)


def roofline_constants(device: dict[str, float]) -> dict[RooflineKind, tuple[float, float]]:
    """Return (compute, memory) efficiency of each roofline from a device's constants: few, so several share one."""
    grouped = (device["grouped_compute"], device["grouped_memory"])
    return {
        "dense_gemm": (device["dense_compute"], device["dense_memory"]),
        "grouped_gemm_decode": grouped,
        "grouped_gemm_prefill": grouped,
        "attention_prefill": (device["prefill_compute"], device["pass_memory"]),
        "attention_decode_gqa": (device["decode_compute"], device["gqa_memory"]),
        "attention_decode_mla": (device["decode_compute"], device["mla_memory"]),
        "attention_linear": (device["linear"], device["linear"]),
        "memory_pass": (1.0, device["pass_memory"]),
    }
