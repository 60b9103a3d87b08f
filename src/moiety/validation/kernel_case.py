"""What a row of a measured kernel describes: the work, the constants it is priced by, and what states the result.

A form of row is a pattern of its `model`: general in its sizes, so that other rows of a form are read as well.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from moiety.calibration.catalog import calibration_for
from moiety.cost.roofline import line_seconds, roofline_kind
from moiety.dtypes import BYTES_PER_ELEMENT
from moiety.graph.op import AttentionCore, AttentionShape, Gemm
from moiety.validation.skipped import SkippedRow
from moiety.validation.stated import batch
from moiety.validation.transfer_case import row_device

if TYPE_CHECKING:
    from collections.abc import Callable

    from moiety.calibration.calibration import Roofline, RooflineKind
    from moiety.cluster.device import Device
    from moiety.validation.system_row import SystemRow

_LATENT, _VALUE, _QUERY = 576, 512, 192
"""Elements of a cached latent with its rope part, of those that values are read from, and of a query (DeepSeek)."""
_HEAD = 128
"""Of values, once latents are expanded for prompts."""
_DRAWN_FROM = 0.7
"""DeepGEMM's benchmark draws each expert's rows from 0.7 to 1.3 of the mean and rounds down (its generators.py)."""
_SIZE = re.compile(r"\b(B|H|S|D)=?(\d+)(?:/(\d+))?\b", re.IGNORECASE)
"""Sequences, heads (queries/keys), tokens, elements of a head (queries/values) in an attention kernel's name."""
_HEADS = re.compile(r"\b(\d+)q/(\d+)kv\b")
_TOKENS = re.compile(r"(\d+) tok$")
_TRACED = "deepseek-ai/profile-data"
_ENDLESS = 1e16
_LATENT_HEADS = "128 heads of one latent"
"""What FlashMLA's own figures are of."""
_BACKWARD = ", backward"
_BACKWARD_WORK = 2.5
"""Five products instead of two (FlashAttention-2, Dao 2023)."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel that a row measured."""

    work: Gemm | AttentionCore
    kind: RooflineKind
    device: Device
    microseconds: tuple[str, ...] = ("us",)
    """Metrics of the row that state its time."""
    teraflops: tuple[str, ...] = ("tflops",)
    """Metrics that state its FLOP/s, in units of 10^12."""
    gigabytes: tuple[str, ...] = ()
    """Metrics that state the bytes a second that it moves, in units of 10^9."""
    even_rows: bool = True
    """Whether the groups of a product all have the same rows."""
    heads: str = ""
    """Of attention, as the row has them."""

    @property
    def forward(self) -> bool:
        """Whether it is no backward pass, which has no constants of its own."""
        return not self.heads.endswith(_BACKWARD)

    @property
    def layer(self) -> str:
        """What kernels of a layer share, whatever their batch: matrices and how many; or heads."""
        if isinstance(self.work, Gemm):
            matrices = f"{self.work.groups:g} x " if self.work.experts else ""
            return f"{matrices}{self.work.n} x {self.work.k}"
        return self.heads

    def seconds(self, line: Roofline) -> float:
        """Return its time by a line of its kind."""
        if self.even_rows:
            line = line.model_copy(update={"row_spread": 0.0})
        return line_seconds(self.work, self.device, line)

    def predicted(self) -> dict[str, float]:
        """Return what the catalogue's constants say, for every metric that could state it."""
        seconds = self.seconds(calibration_for(self.device.architecture).roofline[self.kind])
        found = dict.fromkeys(self.microseconds, 1e6 * seconds)
        found |= dict.fromkeys(self.teraflops, 1e-12 * self.work.flops / seconds)
        return found | dict.fromkeys(self.gigabytes, 1e-9 * self.work.bytes / seconds)

    def measured_s(self, row: SystemRow) -> float | None:
        """Return the seconds that the row states; None where it states none."""
        times = [1e-6 * each for name in self.microseconds if (each := row.metric(name))]
        times += [1e-12 * self.work.flops / each for name in self.teraflops if (each := row.metric(name))]
        times += [1e-9 * self.work.bytes / each for name in self.gigabytes if (each := row.metric(name))]
        return next((each for each in times if each > 0), None)


def predict_kernel(row: SystemRow) -> dict[str, float]:
    """Return what the cost model says of a kernel's row; raise SkippedRow with the reason where it says nothing."""
    return {name: value for kernel in kernels_of(row) for name, value in kernel.predicted().items()}


def kernels_of(row: SystemRow) -> tuple[Kernel, ...]:
    """Return the kernels that a row measured; raise SkippedRow where it does not say what they are."""
    for pattern, read in _FORMS:
        match = pattern.match(row.model)
        if match:
            return read(row, match)
    raise SkippedRow(_missing(row))


def _missing(row: SystemRow) -> str:
    """Return what a row of no known form does not state."""
    if _TRACED in row.source:
        exchanged = "DeepEP" in row.model
        return "a transfer traced in a step waits for others too" if exchanged else "one time for several products"
    if "sparse" in row.model:
        return "how many queries and sequences a sparse attention kernel had is not stated"
    if "peak" in row.model:
        return "a peak over all sizes of a kernel"
    return f"kernels named {row.model!r} are not known"


def _dense(row: SystemRow, match: re.Match[str]) -> tuple[Kernel, ...]:
    m, n, k = (int(part) for part in match.groups())
    return (Kernel(dense_product(m, n, k), "dense_gemm", row_device(row)),)


def dense_product(m: int, n: int, k: int) -> Gemm:
    """Return the product that the measured kernels compute: FP8 operands, a result in BF16."""
    return Gemm(m, n, k, "fp8", "bf16")


def _expert_pair(row: SystemRow, match: re.Match[str]) -> tuple[Kernel, ...]:
    """Return the two products of a GPU's experts, of which each gets `tokens_per_expert` rows on average."""
    experts, hidden, width = (int(part) for part in match.groups()[:3])
    each = row.metric("tokens_per_expert")
    if each is None or each < 1:
        raise SkippedRow("tokens_per_expert is not stated, or below 1")
    kind = _line(match[4]) if match[4] else None
    filled = experts * min((2 - _DRAWN_FROM - 1 / each) / (2 - 2 * _DRAWN_FROM), 1.0)
    made: list[Kernel] = []
    for name, columns, depth in (("up_us", 2 * width, hidden), ("down_us", hidden, width)):
        work = Gemm(each * experts, columns, depth, "fp8", "bf16", filled, experts=True)
        made.append(Kernel(work, kind or roofline_kind(work), row_device(row), (name,), (), even_rows=False))
    return tuple(made)


def _expert_group(row: SystemRow, match: re.Match[str]) -> tuple[Kernel, ...]:
    groups, rows, columns, depth = (int(part) for part in match.groups()[:4])
    work = Gemm(groups * rows, columns, depth, "fp8", "bf16", groups, experts=True)
    return (Kernel(work, _line(match[5]), row_device(row)),)


def _line(layout: str) -> RooflineKind:
    """Return the constants of a layout of rows: each expert's after the other's, or in a place of its own, masked."""
    return "grouped_gemm_prefill" if layout in {"contiguous", "prefill"} else "grouped_gemm_decode"


def _gqa_decode(row: SystemRow, match: re.Match[str]) -> tuple[Kernel, ...]:
    heads, kv_heads, dim = (int(part) for part in match.groups())
    sequences, seen = batch(row), _length(row)
    flops = 4.0 * sequences * seen * heads * dim
    moved = 2.0 * (2 * sequences * seen * kv_heads * dim + 2 * sequences * heads * dim)
    work = AttentionCore("decode", "gqa", flops, moved, "bf16")
    return (Kernel(work, "attention_decode_gqa", row_device(row), heads=f"{heads}q/{kv_heads}kv d{dim}"),)


def _mla_decode(row: SystemRow, match: re.Match[str]) -> tuple[Kernel, ...]:
    heads, sequences, seen = int(match[1]), batch(row), _length(row)
    flops = 2.0 * sequences * seen * heads * (_LATENT + _VALUE)
    moved = BYTES_PER_ELEMENT["bf16"] * (sequences * seen * _LATENT + sequences * heads * (_LATENT + _VALUE))
    work = AttentionCore("decode", "mla", flops, moved, "bf16")
    return (Kernel(work, "attention_decode_mla", row_device(row), heads=f"{heads} heads of one latent"),)


def _prompts(row: SystemRow, match: re.Match[str]) -> tuple[Kernel, ...]:
    """Return attention over whole prompts, or its backward pass; sizes stand in the row's name or in its fields."""
    sizes = {name.upper(): (int(first), int(second or 0)) for name, first, second in _SIZE.findall(row.model)}
    latent = "MLA" in row.model
    heads = tuple(map(int, named.groups())) if (named := _HEADS.search(row.model)) else sizes.get("H")
    dims = sizes.get("D") or ((_QUERY, _HEAD) if latent else None)
    tokens = sizes["S"][0] if "S" in sizes else _length(row)
    if heads is None or dims is None:
        raise SkippedRow("heads or their size is not stated")
    sequences = sizes["B"][0] if "B" in sizes else _sequences(row, tokens)
    queries, values = dims[0], dims[1] or dims[0]
    keys = heads[1] or heads[0]
    causal = "causal" in row.model or "prefill" in row.model
    flops = 2.0 * sequences * tokens * (tokens + 1 if causal else 2 * tokens) / 2 * heads[0] * (queries + values)
    moved = 2.0 * sequences * tokens * (heads[0] + keys) * (queries + values)
    shape = AttentionShape(sequences, tokens, heads[0], keys, queries, values, _LATENT if latent else 0, 0, "bf16")
    work = AttentionCore("prefill", "mla" if latent else "gqa", flops, moved, "bf16", shape)
    if match["backward"]:
        work = replace(work, flops=_BACKWARD_WORK * flops, bytes=2 * moved, shape=None)
    return (
        Kernel(
            work,
            "attention_prefill",
            row_device(row),
            ("us", "median_us"),
            ("tflops", "tflops_median", "fa3_tflops"),
            heads=f"{heads[0]}q/{keys}kv d{queries}/{values}" + (_BACKWARD if match["backward"] else ""),
        ),
    )


def _limits(row: SystemRow, match: re.Match[str]) -> tuple[Kernel, ...]:
    """Return attention of as much work as makes everything but one rate of the device small."""
    device = row_device(row)
    computes = AttentionCore("decode", "mla", _ENDLESS, 0.0, "bf16")
    kind: RooflineKind = "attention_decode_mla"
    if match[1] == "MHA prefill":
        computes, kind = replace(computes, phase="prefill", variant="gqa"), "attention_prefill"
    moves = replace(computes, flops=0.0, bytes=_ENDLESS)
    return (
        Kernel(computes, kind, device, (), ("tflops_compute_bound", "tflops_fwd"), heads=_LATENT_HEADS),
        Kernel(moves, kind, device, (), (), ("GBps_memory_bound",), heads=_LATENT_HEADS),
    )


def _sequences(row: SystemRow, tokens: int) -> int:
    """Return the sequences of a batch that is stated by their number, or by the tokens of all."""
    counted = _TOKENS.match(row.batch or "")
    if not tokens:
        raise SkippedRow("the length of the sequences is not stated")
    return int(counted[1]) // tokens if counted else batch(row)


def _length(row: SystemRow) -> int:
    if not row.isl:
        raise SkippedRow("the length of the sequences is not stated")
    return round(row.isl)


_FORMS: tuple[tuple[re.Pattern[str], Callable[[SystemRow, re.Match[str]], tuple[Kernel, ...]]], ...] = (
    (re.compile(r"dense GEMM M(\d+) N(\d+) K(\d+)$"), _dense),
    (re.compile(r"grouped GEMM (\d+) experts h(\d+) i(\d+)(?: \((prefill|decode)\))?$"), _expert_pair),
    (re.compile(r"grouped GEMM G(\d+) M(\d+)/grp N(\d+) K(\d+) \((contiguous|masked)\)$"), _expert_group),
    (re.compile(r"GQA decode (\d+)q/(\d+)kv d(\d+)$"), _gqa_decode),
    (re.compile(r"(?:\S+ )?MLA decode h(\d+)$"), _mla_decode),
    (re.compile(r"FlashMLA dense (decode|MHA prefill)$"), _limits),
    (re.compile(r".*\b(?:attention|MLA|GQA|MHA|FA\d)\b.* (?:prefill|fwd|(?P<backward>bwd))\b(?! peak)"), _prompts),
)
