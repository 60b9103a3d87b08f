"""Requests in OpenAI's format: read strictly; what is not done is refused by name rather than ignored."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar, cast

from pydantic import BaseModel, BeforeValidator, Field, ValidationError
from pydantic_core import PydanticCustomError

from moiety.errors import nearest
from moiety.runtime.sampling import GREEDY_BELOW
from moiety.serve.api_error import ApiError
from moiety.serve.chat_message import NOT_DONE, Message, Strict

MAX_CHOICES = 128
_MAX_STOPS = 16
_INT64 = 2**63
DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's, where a completion does not say; a chat goes on to the end of its room."""

TokenId = Annotated[int, Field(ge=0)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]


def _listed(value: object) -> object:
    """Return stop strings as a list, one alone too."""
    if value is not None and not isinstance(value, (str, list)):
        raise PydanticCustomError("stop_type", "must be a text or a list of texts")
    return [value] if isinstance(value, str) else cast("object", value)


class StreamOptions(Strict):
    """What a stream ends with."""

    include_usage: bool = False
    include_obfuscation: bool = False
    """Refused: nothing is added to hide how long tokens are."""


class GenerationRequest(Strict):
    """What completions and chats have in common."""

    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=_INT64)] | None = None
    seed: Annotated[int, Field(ge=-_INT64, lt=_INT64)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: Annotated[list[Stop] | None, Field(max_length=_MAX_STOPS), BeforeValidator(_listed)] = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=1024)] | None = None
    ignore_eos: bool | None = None
    return_token_ids: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    """Taken and not used, as are the next ones."""
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, str] | None = None

    store: Any = None
    """From here on: what is not done. A value that asks for nothing passes."""
    service_tier: Any = None
    presence_penalty: Any = None
    frequency_penalty: Any = None
    logit_bias: Any = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end the answer."""
        return tuple(self.stop or ())

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is taken each time: so it is unless a temperature is given."""
        return (self.temperature or 0.0) < GREEDY_BELOW or self.top_p == 0


class CompletionRequest(GenerationRequest):
    """`POST /v1/completions`."""

    prompt: Any
    """A text, token ids, or a list of either; see `prompts_of`."""

    echo: Any = None
    """From here on: what is not done."""
    suffix: Any = None
    best_of: Any = None
    logprobs: Any = None


class ChatRequest(GenerationRequest):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None

    logprobs: Any = None
    """From here on: what is not done."""
    top_logprobs: Any = None
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: Any = None
    functions: Any = None
    function_call: Any = None
    response_format: Any = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    reasoning_effort: Any = None
    web_search_options: Any = None
    verbosity: Any = None
    moderation: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None


_REFUSED: dict[str, tuple[object, ...]] = {
    "store": (False,),
    "service_tier": ("auto", "default"),
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
    "logit_bias": ({},),
    "echo": (False,),
    "suffix": ("",),
    "best_of": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none",),
    "functions": ([],),
    "function_call": ("none",),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "web_search_options": (),
    "verbosity": (),
    "parallel_tool_calls": (),
    "moderation": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
}
"""What is not done, and the values that ask for nothing."""

SomeRequest = TypeVar("SomeRequest", bound=GenerationRequest)


def read_request(kind: type[SomeRequest], body: bytes) -> SomeRequest:
    """Return the request in a body; raise ApiError (400) with the first field that is wrong."""
    try:
        request = kind.model_validate_json(body)
    except ValidationError as error:
        raise _worded(error, kind) from None
    _refuse_what_is_not_done(request, _REFUSED, "")
    if isinstance(request, ChatRequest):
        for index, message in enumerate(request.messages):
            _refuse_what_is_not_done(message, NOT_DONE, f"messages.{index}.")
        if None not in (request.max_tokens, request.max_completion_tokens):
            rule = "max_tokens and max_completion_tokens say the same; give one of them"
            raise ApiError(rule, param="max_completion_tokens")
    if request.stream_options is not None:
        if not request.stream:
            raise ApiError("stream_options needs stream = true", param="stream_options")
        _refuse_what_is_not_done(request.stream_options, {"include_obfuscation": (False,)}, "stream_options.")
    return request


def _refuse_what_is_not_done(asked: Strict, refused: dict[str, tuple[object, ...]], place: str) -> None:
    for name, neutral in refused.items():
        value = getattr(asked, name, None)
        if value is not None and not any(type(value) is type(each) and value == each for each in neutral):
            rule = "is not supported by this server; leave it out"
            raise ApiError(f"{place}{name} {rule}", param=f"{place}{name}", code="unsupported")


def prompts_of(request: CompletionRequest) -> list[str | tuple[int, ...]]:
    """Return the prompts of a completion: texts and token ids; raise ApiError (400) for anything else."""
    value: object = request.prompt
    if isinstance(value, str):
        return [value]
    many = cast("list[object]", value) if isinstance(value, list) else []
    if many and all(isinstance(each, int) for each in many):
        return [_token_ids(many, "prompt")]
    if not many or len(many) > MAX_CHOICES:
        rule = f"must be a text, token ids, or a list of 1 to {MAX_CHOICES} of either"
        raise ApiError(f"prompt: {rule}", param="prompt")
    return [each if isinstance(each, str) else _token_ids(each, f"prompt[{index}]") for index, each in enumerate(many)]


def _token_ids(value: object, place: str) -> tuple[int, ...]:
    tokens = cast("list[object]", value) if isinstance(value, list) else []
    if not tokens:
        raise ApiError(f"{place}: must be a text or a list of at least one token id", param="prompt")
    for index, each in enumerate(tokens):
        if isinstance(each, bool) or not isinstance(each, int):
            raise ApiError(f"{place}[{index}]: must be a whole number, a token id", param="prompt")
    return tuple(cast("list[int]", tokens))


def _worded(error: ValidationError, kind: type[BaseModel]) -> ApiError:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(each) for each in first["loc"])
    field = str(first["loc"][0]) if first["loc"] else None
    if first["type"] == "json_invalid":
        return ApiError(f"the body is no valid JSON: {first['msg']}", code="invalid_json")
    if first["type"] == "extra_forbidden" and field is not None and len(first["loc"]) == 1:
        return ApiError(
            f"no such field: {field[:80]}; {nearest(field, kind.model_fields)}", param=field[:80], code="unknown_field"
        )
    if first["type"] == "extra_forbidden":
        return ApiError(f"no such field: {place[:200]}", param=field, code="unknown_field")
    return ApiError(f"{place[:200]}: {first['msg']}" if place else first["msg"], param=field)
