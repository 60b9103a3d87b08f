"""What faults are tried on: a checkpoint, its plan on three ranks, a server of these, rows to train on."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

from tests.cli.command import moiety
from tests.runtime.checkpoints import greedy_continuation, reference_model, save_checkpoint
from tests.serve.servers import VOCABULARY, awaited, served

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tests.serve.servers import Server

NUM_RANKS = 3
PROMPTS = [[5, 9, 11], [100, 2, 50, 4]]
Answer = tuple[list[int], list[int]]
"""A prompt and the tokens that continue it."""


def tiny_checkpoint(folder: Path) -> Path:
    """Save the model that all faults are tried on, and return its folder."""
    return save_checkpoint("qwen3_moe", folder)


def planned(folder: Path, checkpoint: Path, num_ranks: int = NUM_RANKS) -> Path:
    """Write a plan that gives each rank attention and experts of its own, and return its folder."""
    division = ("--cluster", f"local:{num_ranks}", "--strategy", f"tp1_dp{num_ranks}_ep{num_ranks}")
    copies = ("--set", f"redundant_experts={-8 % num_ranks}")  # so that 8 experts divide evenly
    load = ("--concurrency", "8", "--input-tokens", "16", "--output-tokens", "16")
    done = moiety("plan", checkpoint, *division, *copies, *load, "--quiet", "--out", folder)
    assert done.code == 0, done.err
    return folder


def answers_of(checkpoint: Path, num_tokens: int, prompts: Sequence[list[int]] = PROMPTS) -> list[Answer]:
    """Return how transformers continues the prompts."""
    model = reference_model(checkpoint)
    return [(prompt, greedy_continuation(model, prompt, num_tokens)) for prompt in prompts]


def rows_file(file: Path) -> Path:
    """Write rows to train on, and return the file."""
    rows = ([(7 * row + 3 * place) % VOCABULARY for place in range(12)] for row in range(6))
    file.write_text("".join(json.dumps({"token_ids": row}) + "\n" for row in rows))
    return file


def is_at_full_strength(server: Server) -> bool:
    """Return whether every rank of the plan is there and ready."""
    states = [each["state"] for each in server.ranks()]
    return states == ["ready"] * NUM_RANKS


class Fleet:
    """A server that many faults are tried on; where one ends it, the next begins with another.

    `module` is what is called in place of `moiety`.
    """

    def __init__(
        self, plan: Path, checkpoint: Path, *, module: str = "moiety", env: Mapping[str, str] = os.environ
    ) -> None:
        self._plan, self._checkpoint = plan, checkpoint
        self._module, self._env = module, env
        self._stack = ExitStack()
        self._server: Server | None = None

    def server(self) -> Server:
        """Return the server at its full strength."""
        if self._server is None or self._server.process.poll() is not None:
            self.close()
            options = ("--max-restarts", "100", "--quiet")
            server = served(self._plan, self._checkpoint, *options, module=self._module, env=self._env)
            self._server = self._stack.enter_context(server)
        server = self._server
        awaited(lambda: is_at_full_strength(server), within_s=120.0)
        return server

    def close(self) -> None:
        """End the server."""
        self._stack.close()
