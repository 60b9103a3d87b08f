"""Streams of a server, read by clients that note when each token came."""

from __future__ import annotations

import itertools
import json
import threading
import time
from typing import TYPE_CHECKING, Any

import httpx

from tests.serve.servers import awaited

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.serve.servers import Server

PATIENCE_S = 240.0
"""With which clients wait; no fault may take so long."""


class Stream(threading.Thread):
    """A client that reads the continuation of a prompt to its end."""

    def __init__(self, server: Server, prompt: list[int], max_tokens: int, **more: object) -> None:
        super().__init__(daemon=True)
        self.tokens: list[int] = []
        self.came_s: list[float] = []
        """When, for each piece of the stream."""
        self.error: str | None = None
        self.is_complete = False
        self._server = server
        self._body = {"prompt": prompt, "max_tokens": max_tokens, "stream": True, "return_token_ids": True, **more}
        self.start()

    def run(self) -> None:
        try:
            with self._server.client as client, client.stream("POST", "/v1/completions", json=self._body) as answer:
                for line in answer.iter_lines():
                    self._take(line)
        except httpx.HTTPError as error:
            self.error = repr(error)

    def _take(self, line: str) -> None:
        if line == "data: [DONE]":
            self.is_complete = True
        elif line:
            event: dict[str, Any] = json.loads(line.removeprefix("data: "))
            if "error" in event:
                self.error = event["error"]["message"]
            self.tokens += [token for choice in event.get("choices", ()) for token in choice["token_ids"]]
            self.came_s.append(time.monotonic())

    @property
    def longest_gap_s(self) -> float:
        """Return the longest time from one piece to the next; 0 where there is one."""
        return max((after - before for before, after in itertools.pairwise(self.came_s)), default=0.0)

    def check(self, expected: Sequence[int]) -> None:
        """Wait for the end; assert that every token came once, in order, and nothing went wrong."""
        self.join(PATIENCE_S)
        assert not self.is_alive(), "the stream is frozen"
        assert self.error is None
        assert self.is_complete
        assert self.tokens == expected


def longest_gap_s(
    server: Server, answers: Sequence[tuple[list[int], list[int]]], fault: Callable[[], object], num_streams: int = 4
) -> float:
    """Return the longest gap in streams during a fault that befalls them; each must carry the tokens of its answer."""
    asked = [answers[index % len(answers)] for index in range(num_streams)]
    streams = [Stream(server, prompt, len(tokens)) for prompt, tokens in asked]
    awaited(lambda: all(each.tokens for each in streams))
    fault()
    for each, (_, tokens) in zip(streams, asked, strict=True):
        each.check(tokens)
    return max(each.longest_gap_s for each in streams)
