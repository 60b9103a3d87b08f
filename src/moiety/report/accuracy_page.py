"""The accuracy page: what predictions were worth on published rows, the worst groups first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.validation.score import (
    error_percents,
    metric_scores,
    percent,
    plan_choice,
    score_of,
    skipped_reasons,
    training_choice,
    worst_groups,
    worst_ranked,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from moiety.validation.compare import Compared

_WORST, _LEAST_ROWS = 12, 5
_TITLES = {"agg": "prefill and decode on the same GPUs", "disagg": "prefill and decode apart"}
_HEAD = """# Accuracy

Predictions beside published measurements, as shares of the measured value: MAPE is the mean of the errors' sizes, bias
the mean of the errors. Written by

```sh
for what in serving prefill-apart collectives kernels power training; do
  python -m moiety.validation.fit $what ROWS.jsonl ... --cross-validate
done > left-out.txt
moiety validate ROWS.jsonl ... --page docs/accuracy.md --left-out left-out.txt
```

from rows in the format below; nobody edits the figures. The serving constants are fitted on the serving rows that ran
without speculation, on the offline runs (of rows with prefill apart, the time per output token only) and on prefill and
decode measured by themselves, those of deployments with prefill apart on their times to first token, given the others,
those of collectives, kernels, power and training on all of theirs: what they are worth on others stands under "rows
that the fit did not see". The catalogue keeps some of the rows of every kind that is predicted (`moiety validate`
without a file), and a test fails when a change makes their errors worse by more than two points.

"At best" is the rank correlation that a law without error would reach in the same groups: rows that were measured again
(all that is stated the same, the result not) scatter, and values closer together than that have no order to predict
(`validation/noise.py`). Training runs count as measured again in another release of their framework, for which the law
has no constants.

Latencies are predicted in closed form (`projection/serving.py`), those with prefill apart by a run that is played,
steps of prompts and whole answers at a time (`sim/closed_loop.py`); the simulation (`sim/serving.py`) takes the same
steps one by one and is held to the closed form by a test.
"""
_KNOWN = """## What no law here explains

- Rows do not say whether an engine speculated (multi-token prediction), and rows of disaggregated runs mostly not how
  many workers there were: their label has one of each kind, and often the prefill worker's expert degrees for both.
  Both are read where the operator published them (`catalog/deployments/`, InferenceX's configuration from 2025-11 to
  2026-04): TensorRT-LLM 1.2.0rc6.post3 on B200, for instance, always speculated. A disaggregated row that no published
  deployment matches, or several that differ, is incomplete and not predicted. An aggregated one is predicted without
  speculation: some of TensorRT-LLM 1.1.0rc2 and of SGLang ran both ways under one label.
- Nor do they say what format the cache had, and how often the engine took up new prompts (`--scheduler-recv-interval`
  of SGLang, `timeout_iters` and `batch_wait_timeout_iters` of TensorRT-LLM), which is much of the time to first token
  at low load. Where the operator's scripts are published both are read there; other runs are taken to look for prompts
  before every step. With lengths of that operator's benchmark the cache is taken to be quantized where weights are;
  others left it to the engine: TensorRT-LLM follows the checkpoint, vLLM and SGLang cache in the activations' format.
- Labels of runs without a release (2025-10) have the number of GPUs as `tp`. Scripts of TensorRT-LLM divided experts
  and attention by the load; those of GB200 computed prompts apart, and their rows, called aggregated, have the GPUs of
  all workers. Both are read in the scripts, with the sequences and guesses of a rank (`gen_batch_size`,
  `gen_mtp_size`).
- Rows of gpt-oss on H100 under vLLM with 512 in flight contradict themselves: time per token is that of 4 to 64
  sequences in the rows with fewer, and in each of them requests wait for about four answers, as they would on average
  in ten waves that all came at once to an engine with so few slots. How many ran is not stated; they are predicted as
  they are labelled.
- Rows of SGLang on B200 without a release have five to eight seconds to the first token with FP4 experts, and one or
  two with FP8, wherever the prompts that the run starts with fill a step (`--chunked-prefill-size`, 16,384 and 32,768
  tokens): nobody warmed those runs up, and a step of that size had kernels made. They are predicted so
  (`cold_step_s`, `cold_fp4_step_s`); a few runs found those kernels made already.
- A disaggregated TensorRT-LLM row states Dynamo's release; the engine's is the one in that release's container.
- Guesses are taken to be right with one chance, `draft_acceptance`, fitted on the rows that speculated; published
  shares of first guesses are higher, later guesses of one layer are worse.
- How many routers a disaggregated run had is not stated. Each sends its requests to one decoding worker after the
  other, and where slots are few, several that do not know of each other leave requests waiting at one worker while
  another has room. It is read in the operator's recipes (NVIDIA/srt-slurm: TensorRT-LLM on GB200, and in FP4 on B200);
  elsewhere it is taken to be one.
- Prefill workers that are always busy compute as many prompts as the law has them do in FP4 and, with four attention
  groups, in FP8 under TensorRT-LLM (most within a tenth); with eight groups in FP8 three quarters as many, on Hopper as
  on Blackwell. SGLang's of GB200 and GB300 compute four fifths. On B200 its recipes of 2026-02 switched DeepGEMM off
  (`SGLANG_ENABLE_JIT_DEEPGEMM`): a third as many; those of 2026-03 left each of eight groups room for one request
  (`max-running-requests` 8), which keeps it until its cache was fetched: half. How many tokens a step took
  (`max_num_tokens`, `chunked-prefill-size`) is published too; with it errors grow.
- A few requests in flight waited two seconds under TensorRT-LLM where slots were free (four on B200 in FP8: 2.2 s;
  eight: 0.3 s), and some of the largest loads far longer than half of them (8,192 on GB200: 35 s, 4,096: 5 s). No label
  and no recipe says why; much of the order that is missed in groups is theirs.
- gpt-oss with some hundred sequences of short prompts at a time on Hopper (offline runs): a token of an answer takes
  twice as long there as one of a prompt. On Blackwell it does not.
- Llama-4-Maverick in FP4 (offline runs) is faster than its kernels in the serving rows let expect.
- `moe_tp = moe_ep = n` on n x n GPUs of an aggregated row is read as n GPUs, before anything else is, and so is
  `tp = attention_dp = n` with `moe_ep` n x n; a `tp` that divides neither heads nor experts, or leaves a rank less than
  a block of scales, as that many GPUs with data-parallel attention: the rows agree with rows that say so. Where a label
  leaves no room for one sequence beside the weights, more memory was had than is stated, and the cache is taken to have
  no end.
- Rows that leave out how attention is data parallel (Qwen3-235B under vLLM 0.12 on H200) count GPUs without it: one GPU
  with `moe_tp` 2 is read as the two that its experts are divided over, as it had to be to hold the weights. Other rows
  whose `num_gpus` are no whole number of their workers contradict themselves and are not predicted.
- What an engine's cache gets of the memory is what its release takes by default, or what published scripts set
  (`calibration/engine_memory.py`); beside weights 5 GB are taken to be kept for context, graphs and activations (1 GB
  for context alone under SGLang, whose share leaves room for the rest), which runs near their limit agree with. What
  aiconfigurator generates for TensorRT-LLM says 0.8: with it requests of Qwen3-32B on one H100 wait as long as they
  did. Some had less: as their requests waited, the same in BF16 under SGLang 0.5.8 ran in 0.79 of the memory (by
  default 0.835, which leaves three times as many tokens beside the weights), gpt-oss-120b on one H200 under
  TensorRT-LLM held half of the sequences that the share of its scripts holds. Neither says how it was set.
- vLLM takes up prompts that fit, and throws sequences out that outgrow the cache together: short prompts with long
  answers wait after their first token (`thrown_out`, held to the steps played one by one). SGLang foresees part of that
  growth, and is taken to foresee it all.
- How many requests a run had, and how many came at once, is not stated. Both make most of the time to first token
  at high concurrency; the constants `burst` and `burst_growth` are what a mean run of an engine's releases did. The one
  benchmark whose scripts are published sent ten times as many requests as were in flight: 0.05 of a batch to wait for,
  whatever the load. There the prompts of a wave come together until lengths drawn from 0.8 to 1 have spread it, 2.4
  times as densely as on average (`arrival_density`), which counts where TensorRT-LLM's attention groups begin prompts
  together.
- TensorRT-LLM does not cut prompts, and where it guessed, its scripts gave a step the tokens of one prompt beside those
  of all requests (`max_num_tokens`): prompts wait for whole steps. With 128 and more requests in flight the waves after
  the first then wait too, which is left out, and so is why a step that checks so many guesses takes a quarter more than
  predicted.
- Where all answers are equally long, requests that began together end together. SGLang, which computes prompts before
  it decodes, then keeps the whole batch together, and the mean request waits for half of it before its first token and
  for the other half after it: so did Qwen3-32B under 0.5.1. The configurations that aiconfigurator has made since
  2026-01-19 tell it to mix (`--enable-mixed-chunk`), which breaks that up: its runs of 0.5.6.post2 and 0.5.8.post1 are
  read so. How many prompts come together where an engine mixes is one fitted constant, `convoy`.
- Prompts that repeat find their prefix in the cache (some vLLM rows of 8B models): the time to first token is then
  far below any prefill.
- DeepSeek-R1 on B300 under SGLang 0.5.10.post1 had prompts five times as long as its labels say: under transformers 5
  the benchmark's client took another tokenizer than the server (InferenceX, pull requests 937 and 1381: 35,921 tokens
  of a prompt of 7,140). They are predicted so (`prompt_growth`); with 128 in flight the cache is full.
- Qwen3.5 in FP8 under SGLang 0.5.9 is predicted to its first token a third too early on B200, and too early with long
  prompts on H200; in BF16 and in FP4 it is not. The scripts switch DeepGEMM off on B200; which kernels computed instead
  is not stated. Runs on B300 under 0.5.9 have the labels of B200's sets, of which those with TP 4 and no expert
  parallelism speculated; no set was published for B300, and they are predicted without.
- GLM-5 in FP4 on B200 (nightly-dev) ran with SGLang's default back ends for attention and experts and without fused
  all-reduce, and took longer than in FP8, which ran with TensorRT-LLM's kernels. It is predicted as if with these.
- Dense products of FP8 weights with a scale a block (DeepSeek, MiniMax, GLM-5, Qwen's own FP8 checkpoints) take longer
  with few rows than those with one scale (Llama's): `block_scale_memory_efficiency`. What ModelOpt or an engine
  quantized is taken to have one scale. Dense weights of DeepSeek's FP4 checkpoints count as their FP8 ones.
- Qwen3-235B FP8 on vLLM 0.12 is predicted a fifth to a third too fast where attention is data parallel, and with a few
  long prompts in flight. Its other rows agree with a kernel that goes through the tiles of all experts.
- Runs of Llama-3.1-8B under TensorRT-LLM 1.0.0rc3 have an answer's time over the requests in flight in their time to
  first token, as if one request always waited; those of Qwen3-32B under the same labels do not.
- Runs of one sweep were loaded until they reached a time per token (Llama-3.1-8B and Qwen3-235B on H200): inside
  such a group there is little order to predict.
- DeepSeek's own figures for its dense products and those that InferSim measured of the same kernels on the same H800
  differ by a quarter to a half where few rows are computed: one seems to count what surrounds the kernel. One law
  stands for both, and lies between them. First rows of a sweep are slower than larger ones.
- FlashAttention-3's backward pass reaches four fifths of what its forward pass does; the law prices five products
  instead of two at one rate. FlashMLA's own figures are a sixth above what InferSim measured of latent attention.
- The rows of the masked kernels' benchmark are drawn anew for every run: with one or two experts a GPU it had up to a
  third more or fewer of them than it states.
- Prefill and decode measured by themselves under wide expert parallelism overlap two micro-batches. What that hides was
  measured to be about what the kernels lose that run beside transfers, so both are left out: planned with overlap, the
  same phases would come out a third to a half too fast. How uneven real prompts leave the experts' load after EPLB is
  not stated either, and is taken to be even: of the one pair of rows that tells, that with random experts was a fifth
  faster, which the law does not explain. None states its engine's release, and all stand for the newest; by their dates
  SGLang's had one before 0.5.7, whose runs of other models had slower kernels.
- An MLPerf summary states neither how the model is divided nor how long requests are, and they are not guessed.
- Fused mixture layers (DeepGEMM's MegaMoE) hide their transfers on Blackwell and not on Hopper: one exponent each.
- Small collectives on `h100_dgx` and, less so, on apex's H100 take longer than elsewhere and no longer for a megabyte:
  they are timed from the host. What that takes is fitted for each benchmark beside NCCL's constants (`host_s`), so that
  plans do not pay for it; of a benchmark that is left out it is not known. A100 has one benchmark only, so its
  constants hold it.
- DeepEP's first normal kernels over two nodes reach half of what they reach over four, and of what the second
  version reaches over two. The law has the network alone set the pace, as it does in the other rows.
- On one node dispatch and combine of some hundred tokens hide part of their start-up behind the transfer; the
  law adds both.
- Training rows do not say what was captured in CUDA graphs, whether the all-to-all ran beside another micro-batch, or
  which dispatcher sent the tokens; between two releases one configuration moved by two thirds. All three are read in
  the recipes that the operators published (`catalog/deployments/`, Megatron-Bridge and Megatron-MoE-ModelZoo); a run
  without one is taken to capture and to hide nothing. Six constants stand for all models, devices and releases.
- Runs that exchange tokens beside another micro-batch without a graph of the whole step were slower than those that do
  not, where one node holds all experts: the host, which goes through both micro-batches in turns, is what they wait for
  (`paired_launches`).
- Qwen2-57B-A14B and Mixtral 8x22B (MoE Parallel Folding) train a tenth faster than predicted in every division but one:
  Qwen2 fully sharded, which is a fifth slower. Ranks that share experts gather each other's rows, as their sources
  have it; that orders the divisions, and made the errors larger that others had made up for.
- gpt-oss trains as slowly as if its attention (with sinks) wrote its scores to memory, and is priced so; what its
  kernels do is not published, and those in FP8 since container 26.06 are faster. The operators call what its rows of
  26.06.01 took a known regression, of a grouped product (NVIDIA/cudnn-frontend, issue 256).
- One configuration of Qwen3-30B-A3B on H100 trained 5,113 tokens a second and GPU in container 26.02 and 9,058 in
  26.02.01. The recipe of 26.02.01 has other degrees than its row, and later rows with those degrees are as fast: that
  row is predicted as it is labelled, at the pace of 26.02.
- FP8 with a scale a tensor and NVFP4 read rows once more than MXFP8 before each product, and NVFP4 before container
  26.04 twice more, as Transformer Engine's sources have it; NVFP4 runs of Llama 3 were predicted a tenth too fast
  without that. In the same degrees Llama 3.1 405B is five to eight percent faster with a scale a tensor than in MXFP8
  nonetheless, which the law does not have.
- TFLOP/s and MFU are made of tokens per second by the count of the row's publisher in the row's release
  (`validation/published_flops.py`), which gives what rows state of both to their last digit. Megatron-Bridge until
  26.04 counted neither windows nor gates that are not SiLU (a sixth less for gpt-oss); all its releases take Mamba-2
  to be twice as wide as the model (8 % more for Nemotron 3 Nano), and count no routers. Publishers whose count is not
  known are taken to count as `graph/model_flops.py` does; so are a plan's own figures.
- How many tokens beyond the next a run was trained to predict is read in its recipe (DeepSeek-V3: one; Nemotron 3
  Super, Ultra and 3.5 Lightning: two), and so is what it kept out of a narrow format: the layers of those predictions,
  and in NVFP4 runs of Super its last 14 layers, attention, the latent's projections and what leaves Mamba-2.
- Nemotron 3's runs are among those that the constants are fitted on. Without them the other models err as much when
  left out (8.4 %; 8.3 % with them), left-out devices a little more (9.2 %; 9.1 %), and Nemotron 3 itself 8.4 %. Ultra
  sharded its weights within a rack, which its rows deny. Why Super with tensor parallelism is a fifth slower than
  predicted is not known.
- Some Llama runs moved activations to the host's memory (`cpu_offloading_num_layers` of their recipes), more of them on
  GB200 than on GB300; that is not modelled.
- Rows of one paper that refer to its Table 3 have that table's degrees; how many parts its pipeline stages had is read
  in the framework's references for these models. Llama 3's paper does not say it, and its rows are not predicted.
- TensorRT-LLM's table of release 1.0 labels mixtures by TP alone; its page runs them with data-parallel attention
  (`enable_attention_dp`), and its figures agree with that (with tensor-parallel attention they would be 40 % off).
- Of ML.ENERGY rows the prompt's length is not published: power is predicted at the measured throughput, from the
  law of power alone. Checkpoints in FP8 with a scale a block compute whole tiles of 64 rows for every expert with a
  token, and draw power for the padding; which kernel ran is not stated, and some (Llama 4, with a scale a row) do not.
  Steps with prompts are taken to run at the power limit; their share of the time is what a token takes on average
  beyond the median.
"""
_FORMAT = """## Rows

JSON Lines. A serving row: `id`, `source`, `model`, `system`, `num_gpus`, `backend`, `backend_version`, `precision`,
`mode` (`agg` or `disagg`), `isl`, `osl`, `concurrency`, degrees `tp`, `pp`, `attention_dp`, `moe_tp`, `moe_ep` (in
`prefill` and `decode` where these are apart, with `workers` and `max_sequences`), `draft_tokens`, `frontends` and
`measured` with `ttft_ms` and `tpot_ms`. Any other row: `id`, `kind` (`e2e`, `energy`, `kernel`, `comm`, `latency`,
`overlap`), `tier`, `hardware`, `n_gpus`, `model`, `precision`, `parallel`, `phase`, `isl`, `osl`, `batch`, `metrics`. A
field without a value may be missing, null, NaN or a word for nothing; models, systems, engines and number formats go by
their publishers' names too (`validation/published_names.py`). Unknown keys are let be; a malformed line is reported by
number and does not stop the rest.
"""


_PLANNED = """## As planned

`moiety plan` knows neither a run's release nor what its operator set: it takes the constants of the engine's newest
releases and its defaults. What the same law then errs by, on the serving rows that a plan can be made of
(`moiety validate ROWS.jsonl ... --as-planned` has them by engine, release and so on, and why others were left out):

"""


def accuracy_page(compared: Sequence[Compared], planned: Sequence[Compared], left_out: Sequence[str] = ()) -> str:
    """Return the page in Markdown.

    `planned` are the same rows as plans would have them; `left_out`, the lines that a cross-validated fit printed.
    """
    parts = [_HEAD]
    for phase in sorted({row.group.get("phase", "") for row in compared}):
        rows = [row for row in compared if row.group.get("phase", "") == phase]
        scores = metric_scores(rows)
        if not scores:
            continue
        parts.append(f"## {phase}: {_TITLES[phase]}\n" if phase in _TITLES else f"## {phase}\n")
        for name in scores:
            worst = worst_groups(rows, name, _LEAST_ROWS)[:_WORST]
            cells = [(group, str(score.num_rows), *error_percents(score)) for group, score in worst]
            parts.append(_table((f"worst in {name}", "rows", "MAPE", "median", "bias"), cells))
            if phase in _TITLES:
                ranked = worst_ranked(rows, name)[:_WORST]
                cells = [
                    (each.name, str(each.num_rows), f"{each.spearman:.3f}", percent(each.share_of_missing))
                    for each in ranked
                ]
                parts.append(_table((f"worst ranked in {name}", "rows", "Spearman", "of all that is missing"), cells))
        parts.append(
            _table(
                ("all", "rows", "coverage", "MAPE", "median", "bias", "Spearman in groups", "at best"),
                [
                    (
                        name,
                        str(each.score.num_rows),
                        percent(each.coverage),
                        *error_percents(each.score),
                        "" if each.spearman is None else f"{each.spearman:.3f}",
                        "" if each.attainable is None else f"{each.attainable:.3f}",
                    )
                    for name, each in scores.items()
                ],
            )
        )
    choice = plan_choice(compared)
    if choice is not None:
        parts.append(
            "## Choosing a deployment\n\n"
            f"In {choice.num_groups} groups several deployments were measured under one load. Chosen by predicted "
            f"throughput per GPU, {percent(choice.share_near_best)} are within 5 % of the best measured; the mean loss "
            f"is {percent(choice.mean_loss)}."
            + (
                ""
                if choice.spearman is None
                else " Inside groups of rows that differ in load and degrees only, predicted and measured throughput "
                f"per GPU have a mean rank correlation of {choice.spearman:.3f}."
            )
            + "\n"
        )
    trained = training_choice(compared)
    if trained is not None:
        parts.append(
            f"Of training, in {trained.num_groups} groups one model was trained in several ways (degrees, formats, "
            "micro-batches) on as many GPUs in one release of a framework. Chosen by predicted throughput, "
            f"{percent(trained.share_near_best)} are within 5 % of the best measured; the mean loss is "
            f"{percent(trained.mean_loss)}.\n"
        )
    by_plans = _errors_of_plans(compared, planned)
    if by_plans:
        columns = ("as planned", "rows", "MAPE", "median", "bias", "MAPE of the same rows as they ran")
        parts.append(_PLANNED + _table(columns, by_plans))
    if left_out:
        parts.append(
            "## On rows that the fit did not see\n\n"
            "The constants fitted anew without the rows named; of parts in turn, until each was left out:\n\n"
            + "".join(f"- {line}\n" for line in left_out)
        )
    parts.append(_KNOWN)
    skipped = skipped_reasons(compared)
    if skipped:
        parts.append(
            "## Not predicted\n\n" + _table(("why", "rows"), [(why, str(count)) for why, count in skipped.items()])
        )
    return "\n".join([*parts, _FORMAT])


def _errors_of_plans(compared: Sequence[Compared], planned: Sequence[Compared]) -> list[tuple[str, ...]]:
    """Return a line of errors for each metric of serving rows whose prompts were computed here or there."""
    found: list[tuple[str, ...]] = []
    for phase, title in _TITLES.items():
        pairs = [each for each in zip(compared, planned, strict=True) if each[1].group.get("phase") == phase]
        for name in sorted({name for run, plan in pairs for name in run.error.keys() & plan.error.keys()}):
            both = [
                (run.error[name], plan.error[name])
                for run, plan in pairs
                if name in run.error.keys() & plan.error.keys()
            ]
            score, as_run = (score_of(errors) for errors in ([plan for _, plan in both], [run for run, _ in both]))
            cells = (str(score.num_rows), *error_percents(score), percent(as_run.mape))
            found.append((f"{name}, {title}", *cells))
    return found


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(columns)} |", f"|---{'|---:' * (len(columns) - 1)}|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, ""])
