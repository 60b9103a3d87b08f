"""Requests in OpenAI's format: read strictly; what is not done is refused by name rather than ignored."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moiety.errors import nearest
from moiety.serve.api_error import ApiError

MAX_CHOICES = 128
_MAX_STOPS = 16
_INT64 = 2**63
DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's, where a completion does not say; a chat goes on to the end of its room."""
GREEDY_BELOW = 0.01
"""Temperatures below it are taken for 0: what they would draw is the most likely token anyway."""

TokenId = Annotated[int, Field(ge=0)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class StreamOptions(_Strict):
    """What a stream ends with."""

    include_usage: bool = False


class GenerationRequest(_Strict):
    """What completions and chats have in common."""

    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=_INT64)] | None = None
    seed: Annotated[int, Field(ge=-_INT64, lt=_INT64)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=_MAX_STOPS)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=1024)] | None = None
    ignore_eos: bool | None = None
    return_token_ids: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    """Taken and not used, as are the next ones."""
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None

    presence_penalty: Any = None
    """From here on: what is not done. A value that asks for nothing passes."""
    frequency_penalty: Any = None
    logit_bias: Any = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end the answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

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


class ContentPart(_Strict):
    """A part of a message."""

    type: Annotated[str, Field(pattern="^text$")]
    text: str


class Message(_Strict):
    """A message of a chat."""

    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: str | list[ContentPart] | None = None
    name: str | None = None

    @property
    def text(self) -> str:
        """What it says."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class ChatRequest(GenerationRequest):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None

    logprobs: Any = None
    """From here on: what is not done."""
    top_logprobs: Any = None
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    response_format: Any = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    reasoning_effort: Any = None
    web_search_options: Any = None
    verbosity: Any = None


_REFUSED: dict[str, tuple[object, ...]] = {
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
}
"""What is not done, and the values that ask for nothing."""

SomeRequest = TypeVar("SomeRequest", bound=GenerationRequest)


def read_request(kind: type[SomeRequest], body: bytes) -> SomeRequest:
    """Return the request in a body; raise ApiError (400) with the first field that is wrong."""
    try:
        request = kind.model_validate_json(body)
    except ValidationError as error:
        raise _worded(error, kind) from None
    for name, neutral in _REFUSED.items():
        value = getattr(request, name, None)
        if value is not None and not any(type(value) is type(each) and value == each for each in neutral):
            raise ApiError(f"{name} is not supported by this server; leave it out", param=name, code="unsupported")
    if request.stream_options is not None and not request.stream:
        raise ApiError("stream_options needs stream = true", param="stream_options")
    return request


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
    return ApiError(f"{place[:200]}: {first['msg']}" if place else first["msg"], param=field)
