"""transformers as a peer: what it can do with the ranks of a benchmark, and how it is fastest at it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import transformers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from moiety.runtime.comm.group import Group

    Generate = Callable[["Case"], tuple[list[list[int]], float]]
    """Returns the new tokens of a case's prompts, and the seconds of what is timed."""

VOCABULARY = 8000
IMPLEMENTATIONS = ("grouped_mm", "eager", "batched_mm")
MOST_COPIED_BYTES = 2**31
LAYOUTS: dict[str, tuple[str, ...]] = {
    "one process": ("whole",),
    "tensor parallel": ("divided",),
    "all-reduce": ("divided", "whole"),
    "all-to-all": ("divided", "whole", "own sequences"),
}
"""Its ways to use ranks, and how the dense layers may lie then; with own sequences they are sharded (FSDP)."""
TRIAL_STEPS, TRIALS = 4, 3
HOPELESS = 2.0
"""Times the best so far at which the first trial of a way is the last."""


@dataclass(frozen=True)
class Case:
    """Prompts to continue, and what is timed: the prompts, where one token follows, or the tokens after the first."""

    name: str
    num_prompts: int
    prompt_tokens: int
    new_tokens: int

    @property
    def is_prefill(self) -> bool:
        """Whether the prompts are what is timed."""
        return self.new_tokens == 1

    @property
    def num_timed(self) -> int:
        """Tokens that the timed part computes."""
        return self.num_prompts * (self.prompt_tokens if self.is_prefill else self.new_tokens - 1)

    def prompts(self) -> torch.Tensor:
        """Return the token ids, [prompts, tokens]."""
        generator = torch.Generator().manual_seed(self.num_prompts)
        return torch.randint(VOCABULARY, (self.num_prompts, self.prompt_tokens), generator=generator)

    def shortened(self, num_steps: int) -> Case:
        """Return the same with at most so many tokens after the first."""
        return replace(self, new_tokens=min(self.new_tokens, 1 + num_steps))


class Stamps(transformers.StoppingCriteria):
    """Stops nothing, but notes when each token was there."""

    def __init__(self) -> None:
        self.at_s: list[float] = []

    def __call__(self, input_ids: torch.Tensor, _scores: object, **_: object) -> torch.Tensor:
        """Return that no sequence ends; on a GPU once the tokens are there."""
        if input_ids.is_cuda:
            torch.cuda.synchronize()
        self.at_s.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def peer_model(folder: str, peer: str, layout: str, num_ranks: int, device: torch.device) -> Any:  # noqa: ANN401 - transformers' class
    """Return transformers' model as it divides it over the ranks of the default process group."""
    load = transformers.AutoModelForCausalLM.from_pretrained
    if peer == "one process":
        return load(folder, dtype="auto").to(device)
    settings: dict[str, Any] = {"fsdp_size" if layout == "own sequences" else "tp_size": num_ranks}
    if peer != "tensor parallel":
        settings |= {"ep_size": num_ranks, "ep_implementation": peer.replace("-", "_")}
    if layout == "whole":  # an empty plan would say so, but 5.23 refuses it
        with torch.device("meta"):
            bare = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(folder))
        settings["tp_plan"] = dict.fromkeys((rule for rule in bare.tp_plan if ".mlp." not in rule), "replicate")
    config = transformers.distributed.DistributedConfig(**settings)
    return load(folder, dtype=torch.float32, distributed_config=config)


def peer_generate(model: Any, implementation: str, layout: str, world: Group) -> Generate:  # noqa: ANN401 - as above
    """Return how transformers generates with one of its experts implementations."""

    def generate(case: Case) -> tuple[list[list[int]], float]:
        model.set_experts_implementation(implementation)
        prompts, stamps = case.prompts().to(model.device), Stamps()
        if layout == "own sequences":
            prompts = prompts[world.index :: world.size]
        start_s = time.perf_counter()
        whole = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=case.new_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            stopping_criteria=[stamps],
        )
        seconds = stamps.at_s[-1] - (start_s if case.is_prefill else stamps.at_s[0])
        tokens = whole[:, case.prompt_tokens :].tolist()
        if layout == "own sequences":
            parts: Any = world.gather_objects(tokens)
            tokens = [parts[number % world.size][number // world.size] for number in range(case.num_prompts)]
        return tokens, seconds

    return generate


def fastest(
    folder: str, peer: str, cases: tuple[Case, ...], world: Group, device: torch.device
) -> dict[str, tuple[str, Generate]]:
    """Return by case how transformers is fastest in one of its ways, in words and to call, as short trials have it."""
    best: dict[str, tuple[float, str, Generate]] = {}
    for layout in LAYOUTS[peer]:
        model = peer_model(folder, peer, layout, world.size, device)
        for case in cases:
            if layout == "own sequences" and case.num_prompts % world.size:
                continue
            for implementation in _implementations(model.config, case):
                generate = peer_generate(model, implementation, layout, world)
                seconds = _trial(generate, case.shortened(TRIAL_STEPS), world, best.get(case.name, (float("inf"),))[0])
                if case.name not in best or seconds < best[case.name][0]:
                    best[case.name] = (seconds, f"{peer}, {layout}, {implementation}", generate)
    return {name: (how, generate) for name, (_, how, generate) in best.items()}


def _implementations(config: Any, case: Case) -> Iterator[str]:  # noqa: ANN401 - transformers' class
    """Yield those worth a trial: `batched_mm` copies an expert's weights for every token that it serves."""
    width = getattr(config, "moe_intermediate_size", config.intermediate_size)
    num_rows = case.num_prompts * case.prompt_tokens * config.num_experts_per_tok
    for implementation in IMPLEMENTATIONS:
        if implementation != "batched_mm" or num_rows * 2 * width * config.hidden_size * 4 <= MOST_COPIED_BYTES:
            yield implementation


def _trial(generate: Generate, case: Case, world: Group, best_s: float) -> float:
    """Return the least seconds of the slowest rank over a few trials."""
    found = float("inf")
    for _ in range(TRIALS):
        found = min(found, *[max(world.gather_objects(generate(case)[1]))])
        if found > HOPELESS * best_s:
            break
    return found
