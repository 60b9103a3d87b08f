"""Answers in OpenAI's format: whole ones, and the chunks of streams."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.serve.journal import Entry

Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class Form:
    """How one request is answered."""

    is_chat: bool
    model: str
    with_token_ids: bool
    with_usage: bool
    """Whether a stream ends with the usage."""
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, entries: Sequence[Entry], usage: Json) -> Json:
        """Return the answer that is given at once."""
        choices = [self._choice(index, each) for index, each in enumerate(entries)]
        kind = "chat.completion" if self.is_chat else "text_completion"
        return {**self._head(kind), "choices": choices, "usage": usage}

    def begin(self, index: int) -> Json:
        """Return a chat's first chunk, which says who speaks."""
        choice = {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None}
        return self._chunk([{**choice, "finish_reason": None}])

    def piece(self, index: int, text: str, token_ids: Sequence[int], finish_reason: str | None) -> Json:
        """Return a chunk with what has come since the last one."""
        said: Json = {"delta": {"content": text}} if self.is_chat else {"text": text}
        choice: Json = {"index": index, **said, "logprobs": None, "finish_reason": finish_reason}
        if self.with_token_ids:
            choice["token_ids"] = list(token_ids)
        return self._chunk([choice])

    def end(self, usage: Json) -> Json:
        """Return the chunk with the usage."""
        return {**self._chunk([]), "usage": usage}

    def _choice(self, index: int, entry: Entry) -> Json:
        text = entry.text.text if entry.text is not None else ""
        said: Json = {"message": {"role": "assistant", "content": text}} if self.is_chat else {"text": text}
        choice: Json = {"index": index, **said, "logprobs": None, "finish_reason": entry.finish_reason}
        if self.with_token_ids:
            choice["token_ids"] = list(entry.accepted)
        return choice

    def _chunk(self, choices: list[Json]) -> Json:
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        chunk: Json = {**self._head(kind), "choices": choices}
        return {**chunk, "usage": None} if self.with_usage else chunk

    def _head(self, kind: str) -> Json:
        prefix = "chatcmpl" if self.is_chat else "cmpl"
        return {"id": f"{prefix}-{self.id}", "object": kind, "created": self.created, "model": self.model}


def usage_of(entries: Sequence[Entry], choices_per_prompt: int) -> Json:
    """Return the tokens of a request; a prompt counts once, however many answers it has."""
    prompt = sum(len(each.prompt) for each in entries[::choices_per_prompt])
    completion = sum(len(each.accepted) for each in entries)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
