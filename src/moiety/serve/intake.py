"""Intake: what a request asks for, made into sequences that fit the model and its cache."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moiety.errors import InputError
from moiety.serve.api_error import ApiError
from moiety.serve.journal import Drawing, Entry
from moiety.serve.request import DEFAULT_COMPLETION_TOKENS, prompts_of
from moiety.serve.text import TextSoFar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from moiety.runtime.tokenizer import Tokenizer
    from moiety.serve.request import ChatRequest, CompletionRequest, GenerationRequest


@dataclass(frozen=True, slots=True)
class Texts:
    """A checkpoint's tokenizer, once for each direction: prompts are encoded in a thread while tokens are decoded."""

    encoder: Tokenizer
    decoder: Tokenizer


@dataclass(frozen=True, slots=True)
class Served:
    """The model as requests see it."""

    names: tuple[str, ...]
    """What a request may call it; the first is the one that is listed."""
    vocab_size: int
    capacity: int
    """Tokens that a sequence may have, prompt and answer together."""
    stop_tokens: frozenset[int]
    most_sequences: int
    """Sequences that a request may ask for."""
    texts: Texts | None
    """None where the checkpoint has no tokenizer."""

    def check_name(self, name: str | None) -> None:
        """Raise ApiError (404) for a model that is not served; a request may leave it out."""
        if name is not None and name not in self.names:
            message = f"the model {name[:200]!r} does not exist here; this server has {self.names[0]!r}"
            raise ApiError(message, status=404, kind="not_found_error", param="model", code="model_not_found")

    async def completion(self, request: CompletionRequest, changed: Callable[[], None]) -> list[Entry]:
        """Return the sequences of a completion, `n` for each prompt, in order; raise ApiError for what cannot be."""
        self.check_name(request.model)
        prompts = [
            each if isinstance(each, tuple) else await self._encoded(each, f"prompt[{index}]")
            for index, each in enumerate(prompts_of(request))
        ]
        for each in prompts:
            self._check_tokens(each)
        return self._entries(request, prompts, request.max_tokens or DEFAULT_COMPLETION_TOKENS, changed)

    async def chat(self, request: ChatRequest, changed: Callable[[], None]) -> list[Entry]:
        """Return the sequences of a chat, `n` answers; raise ApiError for what cannot be."""
        self.check_name(request.model)
        encoder = self._texts("messages").encoder
        if not encoder.has_chat_template:
            message = "the checkpoint's tokenizer has no chat template; use /v1/completions"
            raise ApiError(message, param="messages", code="no_chat_template")
        messages = [each.for_template() for each in request.messages]
        try:
            prompt = await asyncio.to_thread(encoder.encode_chat, messages)
        except InputError as error:
            raise ApiError(str(error), param="messages") from None
        room = max(self.capacity - len(prompt), 1)
        return self._entries(request, [prompt], request.max_completion_tokens or request.max_tokens or room, changed)

    async def _encoded(self, text: str, place: str) -> tuple[int, ...]:
        tokens = await asyncio.to_thread(self._texts("prompt").encoder.encode, text)
        if not tokens:
            raise ApiError(f"{place}: comes to no token", param="prompt")
        return tokens

    def _texts(self, param: str) -> Texts:
        if self.texts is None:
            message = f"{param}: the checkpoint has no tokenizer: give prompt as a list of token ids to /v1/completions"
            raise ApiError(message, param=param, code="no_tokenizer")
        return self.texts

    def _check_tokens(self, prompt: Sequence[int]) -> None:
        for token in prompt:
            if not 0 <= token < self.vocab_size:
                message = f"prompt: {token} is no token id; the vocabulary has 0 to {self.vocab_size - 1}"
                raise ApiError(message, param="prompt")

    def _entries(
        self,
        request: GenerationRequest,
        prompts: Sequence[tuple[int, ...]],
        max_tokens: int,
        changed: Callable[[], None],
    ) -> list[Entry]:
        number = (request.n or 1) * len(prompts)
        if number > self.most_sequences:
            message = f"asks for {number} sequences; this server takes {self.most_sequences} at a time"
            raise ApiError(message, param="n" if len(prompts) == 1 else "prompt")
        for each in prompts:
            if len(each) + max_tokens > self.capacity:
                message = (
                    f"the prompt has {len(each)} tokens, with max_tokens = {max_tokens} that makes "
                    f"{len(each) + max_tokens}; a sequence has room for {self.capacity}"
                )
                raise ApiError(message, param="max_tokens", code="context_length_exceeded")
        if request.stops:
            self._texts("stop")
        seed = secrets.randbits(62) if request.seed is None else request.seed
        stop_tokens = frozenset(request.stop_token_ids or ()) | (
            frozenset[int]() if request.ignore_eos else self.stop_tokens
        )
        return [
            Entry(
                prompt,
                max_tokens,
                _drawing(request, seed, index),
                stop_tokens,
                None if self.texts is None else TextSoFar(self.texts.decoder.decode, request.stops),
                changed,
            )
            for prompt in prompts
            for index in range(request.n or 1)
        ]


def _drawing(request: GenerationRequest, seed: int, number: int) -> Drawing:
    if request.is_greedy:
        return Drawing()
    top_p = 1.0 if request.top_p is None else request.top_p
    return Drawing(request.temperature or 0.0, top_p, max(request.top_k or 0, 0), seed, number)
