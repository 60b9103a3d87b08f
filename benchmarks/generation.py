"""Generation beside transformers' own, on the same CPUs or GPU, in the same processes by turns: ours, theirs, ours, ...

One process of two threads, and two or four over loopback of one thread each; random float32 models of 190 M parameters.
Theirs is the fastest that short trials find for the case: of its experts implementations `grouped_mm`, `eager` and
`batched_mm` (not where that would copy more than 2 GiB of weights at once), and of dense layers divided over the ranks,
whole on each, or sharded while each rank has sequences of its own. Tokens must be equal. Bars, on medians of the
rounds' ratios: as fast in one process; on several, decoding with the experts divided and tokens exchanged 1.5 times as
fast as its all-to-all and as fast as its all-reduce.

With --gpu one process has a GPU, and a BF16 model of 1.3 billion parameters: experts of Qwen3-30B-A3B's sizes in two
layers. Two ways to round BF16 tell random weights' tokens apart, so there it is shown how many are equal.

On several processes transformers needs `accelerate`, which nothing else here does; without it they are left out.
Four take 10 GB of memory and six minutes.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch.distributed import PrefixStore, TCPStore, destroy_process_group, init_process_group
from transformers_peer import VOCABULARY, Case, fastest

sys.path.insert(0, str(Path(__file__).parents[1]))

from moiety.plan import Plan
from moiety.runtime.checkpoint.index import Checkpoint
from moiety.runtime.comm.priority import Priority
from moiety.runtime.engine import Engine
from moiety.runtime.model.load import load_model
from moiety.runtime.overlap import Turns
from moiety.runtime.seat import seat_of
from tests.ranks import run_ranks
from tests.runtime.plans import plan_of

if TYPE_CHECKING:
    from transformers_peer import Generate

    from moiety.dtypes import Dtype
    from moiety.runtime.comm.network import Network
    from tests.ranks import Place

THREADS = 2
"""Of a single process; each of several has one."""
COMMON: dict[str, Any] = {
    "hidden_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 2048,
    "initializer_range": 0.05,  # with the usual 0.02 a random model this narrow says one token over and over
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("MixtralConfig", {"intermediate_size": 2048, "num_local_experts": 8, "num_experts_per_tok": 2}),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {"head_dim": 64, "num_experts": 64, "num_experts_per_tok": 8, "moe_intermediate_size": 256},
    ),
}
GPU_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {
            "hidden_size": 2048,
            "num_attention_heads": 32,
            "head_dim": 128,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
            "max_position_embeddings": 8192,
            "initializer_range": 0.02,
        },
    )
}
SHARED_MODEL = "qwen3_moe"
"""The one that several processes run."""


@dataclass(frozen=True)
class Pair:
    """A strategy of ours beside one of transformers' ways, and how many times as fast ours must be."""

    ours: str
    theirs: str
    least: float | None = None
    least_prefill: float | None = None


@dataclass(frozen=True)
class Job:
    """What the ranks measure."""

    folder: str
    plans: dict[str, str]
    """Strategies of ours, and their plans as documents."""
    peers: tuple[str, ...]
    """Of transformers' ways."""
    cases: tuple[Case, ...]
    num_rounds: int
    device: str = "cpu"


@dataclass(frozen=True)
class Measured:
    """What one contestant did in one case, on one rank."""

    how: str
    tokens: list[list[int]]
    seconds: list[float]
    """By round."""


def pairs_of(num_ranks: int) -> tuple[Pair, ...]:
    """Return what is compared on so many ranks."""
    if num_ranks == 1:
        return (Pair("tp1", "one process", 1.0, 1.0),)
    exchanged = f"tp1_dp{num_ranks}_ep{num_ranks}"
    return (
        Pair(f"tp{num_ranks}", "tensor parallel"),
        Pair(exchanged, "all-to-all", 1.5),
        Pair(f"tp{num_ranks}_dp1_ep{num_ranks}", "all-reduce"),
        Pair(exchanged, "all-reduce", 1.0),
    )


def cases_of(num_ranks: int, num_steps: int, *, on_gpu: bool) -> tuple[Case, ...]:
    """Return the cases of so many ranks; `num_steps` is how many tokens follow the first."""
    if on_gpu:
        decoded = (Case(f"decode, {n} sequences", n, 128, 1 + num_steps) for n in (1, 16, 64))
        return (Case("prefill 4 x 2048", 4, 2048, 1), *decoded)
    many = 16 if num_ranks == 1 else 4
    return (
        Case("prefill 512", 1, 512, 1) if num_ranks == 1 else Case("prefill 4 x 128", 4, 128, 1),
        Case("decode, 1 sequence", 1, 32, 1 + num_steps),
        Case(f"decode, {many} sequences", many, 32, 1 + num_steps),
    )


def save_model(name: str, num_layers: int, folder: Path, *, on_gpu: bool) -> int:
    """Save a random model of `MODELS`, or `GPU_MODELS`; return how many parameters it has."""
    kind, sizes = (GPU_MODELS if on_gpu else MODELS)[name]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**{**COMMON, **sizes}, num_hidden_layers=num_layers)
    with torch.device("cuda" if on_gpu else "cpu"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if on_gpu else torch.float32)
    model.save_pretrained(folder)
    return sum(each.numel() for each in model.parameters())


def our_generate(rank: int, network: Network, folder: str, document: str) -> Generate:
    """Return how ours generates by a plan."""
    plan, turns = Plan.model_validate_json(document), Turns()
    model = load_model(seat_of(plan, rank), Checkpoint.open(folder), network, turns=turns)
    engine = Engine(model, network, turns)

    def generate(case: Case) -> tuple[list[list[int]], float]:
        prompts = case.prompts().tolist()
        start_s = time.perf_counter()
        tokens = engine.generate(prompts, max_new_tokens=case.new_tokens)
        whole_s = time.perf_counter() - start_s
        return tokens, whole_s if case.is_prefill else sum(engine.times.decode_s)

    return generate


def measure(place: Place, job: Job) -> dict[str, dict[str, Measured]]:
    """Return what every contestant did, by case and by the name of the strategy or of transformers' way."""
    silence_transformers()
    torch.set_num_threads(THREADS if place.num_ranks == 1 else 1)
    device = torch.device(job.device)
    network = place.network(device=device)
    world = network.group(tuple(range(place.num_ranks)), "benchmark", Priority.REDUCTION)
    if place.num_ranks > 1:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        store = PrefixStore("theirs", TCPStore(place.store_host, place.store_port, is_master=False))
        init_process_group("gloo", store=store, rank=place.rank, world_size=place.num_ranks)
    ours = {name: our_generate(place.rank, network, job.folder, document) for name, document in job.plans.items()}
    theirs = {peer: fastest(job.folder, peer, job.cases, world, device) for peer in job.peers}
    found: dict[str, dict[str, Measured]] = {}
    for case in job.cases:
        contestants = {name: (name, generate) for name, generate in ours.items()}
        contestants |= {peer: by_case[case.name] for peer, by_case in theirs.items()}
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        tokens: dict[str, list[list[int]]] = {}
        for turn in range(job.num_rounds + 1):  # the first is short, and not counted
            for name, (_, generate) in contestants.items():
                world.barrier()
                tokens[name], taken_s = generate(case if turn else case.shortened(2))
                seconds[name] += [taken_s] if turn else []
        found[case.name] = {name: Measured(how, tokens[name], seconds[name]) for name, (how, _) in contestants.items()}
    world.barrier()
    if place.num_ranks > 1:
        destroy_process_group()
    network.close()
    return found


def compare(name: str, num_ranks: int, *, quick: bool, on_gpu: bool = False) -> bool:
    """Print the table of one model on so many ranks; return whether its bars hold."""
    num_layers, num_steps, num_rounds = (2, 8, 2) if quick else (7, 32 if num_ranks == 1 else 16, 5)
    if on_gpu:
        num_layers, num_steps, num_rounds = 2, *((16, 2) if quick else (64, 3))
    pairs, cases = pairs_of(num_ranks), cases_of(num_ranks, num_steps, on_gpu=on_gpu)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        num_parameters = save_model(name, num_layers, folder, on_gpu=on_gpu)
        dtype: Dtype = "bf16" if on_gpu else "fp32"
        plans = {each.ours: plan_of(folder, each.ours, 1, num_ranks, dtype=dtype).model_dump_json() for each in pairs}
        peers = tuple(dict.fromkeys(each.theirs for each in pairs))
        job = Job(str(folder), plans, peers, cases, num_rounds, "cuda" if on_gpu else "cpu")
        ranks = run_ranks(measure, num_ranks, job, timeout_s=1800.0)
    threads = f"{THREADS} threads" if num_ranks == 1 else "1 thread each"
    if on_gpu:
        threads = f"one {torch.cuda.get_device_name()}"
    print(
        f"{name}, {num_parameters / 1e6:.0f} M parameters, {num_ranks} process{'' if num_ranks == 1 else 'es'} of "
        f"{threads}; load average {os.getloadavg()[0]:.1f}\n"
        f"  {'':20} {'ours':12} tokens/s  {'theirs':37} tokens/s  ratio (least to most)"
    )
    met = [report(case, pairs, [rank[case.name] for rank in ranks], exact=not on_gpu) for case in cases]
    return all(met)


def report(case: Case, pairs: tuple[Pair, ...], ranks: list[dict[str, Measured]], *, exact: bool) -> bool:
    """Print the lines of a case; return whether its bars hold and, if they must be, the tokens are equal."""
    slowest = {
        name: [max(times) for times in zip(*(rank[name].seconds for rank in ranks), strict=True)] for name in ranks[0]
    }
    speed = {name: case.num_timed / statistics.median(seconds) for name, seconds in slowest.items()}
    equal = len({str(each.tokens) for rank in ranks for each in rank.values()}) == 1
    met = equal or not exact
    for pair in pairs:
        ratios = [theirs / ours for ours, theirs in zip(slowest[pair.ours], slowest[pair.theirs], strict=True)]
        ratio, least = statistics.median(ratios), pair.least_prefill if case.is_prefill else pair.least
        bar = ""
        if least is not None:
            met = met and ratio >= least
            bar = f"bar {least}: {'met' if ratio >= least else 'NOT MET'}"
        print(
            f"  {case.name:20} {pair.ours:12} {speed[pair.ours]:8.1f}  {ranks[0][pair.theirs].how:37} "
            f"{speed[pair.theirs]:8.1f}  {ratio:5.2f} ({min(ratios):.2f} to {max(ratios):.2f})  {bar}".rstrip()
        )
    if not equal:
        first, *others = (each.tokens for each in ranks[0].values())
        same = [
            a == b for other in others for x, y in zip(first, other, strict=True) for a, b in zip(x, y, strict=True)
        ]
        print(f"  {case.name:20} {'TOKENS DIFFER: ' if exact else ''}{sum(same)} of {len(same)} tokens are equal")
    return met


def silence_transformers() -> None:
    """Have transformers print neither hints nor bars of progress."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def main() -> int:
    """Print the tables; return 0 when the bars hold."""
    parser = argparse.ArgumentParser(description="Generation beside transformers' own.")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4], choices=[1, 2, 4], metavar="N")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS), help="of one process")
    parser.add_argument("--gpu", action="store_true", help="one process on a GPU, instead of those on CPUs")
    parser.add_argument("--quick", action="store_true", help="two layers, few tokens: to try the script, not to judge")
    options = parser.parse_args()
    silence_transformers()
    met: list[bool] = []
    if options.gpu:
        if not torch.cuda.is_available():
            print("not measured: no GPU")
            return 0
        met = [compare(name, 1, quick=options.quick, on_gpu=True) for name in GPU_MODELS]
    for num_ranks in options.processes if not options.gpu else ():
        if num_ranks > 1 and importlib.util.find_spec("accelerate") is None:
            print(f"{num_ranks} processes: not measured: transformers needs the package accelerate for them")
            continue
        names = options.models if num_ranks == 1 else [SHARED_MODEL]
        met += [compare(name, num_ranks, quick=options.quick) for name in names]
    if met:
        print(f"bars: {'met' if all(met) else 'NOT MET'}")
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
