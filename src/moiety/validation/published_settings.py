"""What an engine was set to where the operator of a benchmark published it and rows do not say."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from moiety.calibration.calibration import Engine
from moiety.calibration.serving import release_number
from moiety.dtypes import Dtype
from moiety.package_data import catalog_text
from moiety.projection.admission import Admission
from moiety.records import Record
from moiety.validation.published_names import device_name

if TYPE_CHECKING:
    from moiety.strategy.strategy import Strategy
    from moiety.validation.serving_row import ServingRow

BENCHMARK = "inferencex-settings-2026-04"
GENERATOR = "aiconfigurator-settings-2026-01"
Steps = Annotated[int, Field(ge=0, le=100_000)]


class Runs(Record):
    """Some runs; of what is not named, they had all values."""

    models: tuple[str, ...] = ()
    systems: tuple[str, ...] = ()
    backend: Engine = "vllm"
    precisions: tuple[str, ...] = ()
    lengths: tuple[tuple[int, int], ...] = ()
    """Tokens of prompt and answer."""
    tp: tuple[int, ...] = ()
    ep: tuple[int, ...] = ()
    data_parallel: bool | None = None
    """Whether attention is data parallel."""
    from_concurrency: int = 1
    to_concurrency: int | None = None
    releases: tuple[str | None, ...] = ()
    """Releases of the engine as rows state them, null of those that state none."""
    since: str | None = None
    """First release of the engine."""

    def holds(self, row: ServingRow, model: str, engine: Engine, strategy: Strategy) -> bool:
        """Return whether a row is one of them; others, which have exactly the lengths that they state, are none."""
        system, since = device_name(row.system), release_number(self.since or "")
        return (
            not row.exact_lengths
            and (model in self.models and system in self.systems and engine == self.backend)
            and (not self.precisions or row.precision in self.precisions)
            and (not self.lengths or (row.isl, row.osl) in self.lengths)
            and (not self.tp or strategy.tp in self.tp)
            and (not self.ep or strategy.ep in self.ep)
            and (not self.releases or row.backend_version in self.releases)
            and (self.data_parallel is None or self.data_parallel == (strategy.attn_dp > 1))
            and self.from_concurrency <= (row.concurrency or 1) <= (self.to_concurrency or math.inf)
            and (since is None or (release_number(row.backend_version or "") or ()) >= since)
        )


class RunSetting(Runs):
    """What some runs were started with."""

    poll_steps: Annotated[int, Field(ge=1, le=100_000)] = 1
    balance_steps: Steps = 0
    batch_wait_steps: Steps = 0
    captured_prompts: bool = False
    """Steps that hold prompts replay captured graphs (TensorRT-LLM: `enable_piecewise_cuda_graph`)."""
    one_prompt_a_step: bool = False
    """`max_num_tokens` has room for one prompt beside a token of each request, and no more."""
    mixes_prefill: bool = False
    """Steps that hold prompts decode too, where an engine does not by itself (SGLang: `--enable-mixed-chunk`)."""
    cold_tokens: Annotated[int, Field(ge=1)] | None = None
    """Prompt tokens of a full step (SGLang: `chunked-prefill-size`) of runs without warm-up; None: they had one."""
    kv_cache: Dtype | None = None
    """Format of the cache; None: as `row_dtypes` takes it to be."""
    state: Dtype | None = None
    """Format of the states of linear attention (SGLang: `--mamba-ssm-dtype`); None: FP32, as the models' files say."""
    prompt_growth: Annotated[float, Field(ge=1)] = 1.0
    """Tokens that the engine made of a prompt for each that the client had counted, where their tokenizers differed."""

    @property
    def admission(self) -> Admission:
        """When prompts are taken up."""
        return Admission(self.poll_steps, self.balance_steps, self.batch_wait_steps)


class MemorySetting(Runs):
    """The share of memory that some runs were started with, as their engine takes it."""

    share: Annotated[float, Field(gt=0, le=1)]


NOT_PUBLISHED = RunSetting()
"""Prompts are looked for before every step."""


class DrawnLengths(Record):
    """Labels of lengths (tokens of prompt and answer) that are the most that a run drew, not what each request had."""

    models: tuple[str, ...]
    """Models whose runs drew them."""
    labels: tuple[tuple[int, int], ...]
    shortest_share: Annotated[float, Field(gt=0, le=1)]
    """Lengths are drawn uniformly from this share of the label up to all of it."""
    waves: Annotated[int, Field(ge=2, le=1000)]
    """Requests of a run, over those in flight (`--num-prompts` over `--max-concurrency`)."""

    def holds(self, row: ServingRow, model: str) -> bool:
        """Return whether the lengths of a row were drawn so."""
        return not row.exact_lengths and model in self.models and (row.isl, row.osl) in self.labels


class RunSettings(Record):
    """A catalogue of settings; of each kind the first that holds counts."""

    source: str
    memory: tuple[MemorySetting, ...] = ()
    settings: tuple[RunSetting, ...]


class BenchmarkSettings(RunSettings):
    """Those of a benchmark that draws lengths."""

    drawn: DrawnLengths


def published_settings(
    row: ServingRow, model: str, engine: Engine, strategy: Strategy
) -> tuple[RunSetting, float | None]:
    """Return what the workers of an aggregated row were set to, and the share of memory that they were set to take.

    As far as either was published: NOT_PUBLISHED, and None for the engine's default share.
    """
    catalogues = (_published(), _generated())
    found = [runs for each in catalogues for runs in (*each.settings, *each.memory)]
    held = [each for each in found if each.holds(row, model, engine, strategy)]
    setting = next((each for each in held if isinstance(each, RunSetting)), NOT_PUBLISHED)
    return setting, next((each.share for each in held if isinstance(each, MemorySetting)), None)


def mean_tokens(row: ServingRow, model: str) -> tuple[int, int]:
    """Return the tokens of prompt and answer of a mean request of a row; both must be stated."""
    share = (1 + shortest_share(row, model)) / 2
    return round((row.isl or 1) * share), round((row.osl or 1) * share)


def shortest_share(row: ServingRow, model: str) -> float:
    """Return the share of the longest prompt and answer of a row that the shortest ones are."""
    return _published().drawn.shortest_share if draws_lengths(row, model) else 1.0


def draws_lengths(row: ServingRow, model: str) -> bool:
    """Return whether a row is a run of the benchmark whose settings were published, which draws lengths.

    Runs of others, and offline runs, have all that is stated.
    """
    return _published().drawn.holds(row, model)


def published_waves() -> int:
    """Return the requests of a run over those in flight, as the benchmark has them; runs of others are taken alike."""
    return _published().drawn.waves


def has_published_lengths(row: ServingRow) -> bool:
    """Return whether a row has lengths of the benchmark whose settings were published, whoever ran it."""
    return (row.isl, row.osl) in _published().drawn.labels


@cache
def _published() -> BenchmarkSettings:
    return BenchmarkSettings.model_validate_json(catalog_text("deployments", BENCHMARK, ".json"))


@cache
def _generated() -> RunSettings:
    """Return what the generator of an operator's configurations sets, whoever runs them."""
    return RunSettings.model_validate_json(catalog_text("deployments", GENERATOR, ".json"))
