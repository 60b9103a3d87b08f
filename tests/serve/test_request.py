"""Requests: what asks for something that is not done, or cannot be, is refused by name."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.serve.api_error import ApiError
from moiety.serve.request import ChatRequest, CompletionRequest, prompts_of, read_request

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from([*CompletionRequest.model_fields, "top_pp"])


def refusal(fields: dict[str, object], kind: type[CompletionRequest | ChatRequest] = CompletionRequest) -> ApiError:
    rest = {"prompt": "a"} if kind is CompletionRequest else {"messages": [{"role": "user", "content": "a"}]}
    with pytest.raises(ApiError) as caught:
        read_request(kind, json.dumps({**rest, **fields}).encode())
    assert caught.value.status == 400
    return caught.value


def said(**message: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", **message}]}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", "hot"),
        ("temperature", 2.5),
        ("temperature", float("nan")),
        ("top_p", -0.1),
        ("max_tokens", 0),
        ("max_tokens", 2.5),
        ("max_tokens", True),
        ("n", 0),
        ("n", 129),
        ("seed", 2**63),
        ("stop", ["a", 5]),
        ("stop", ""),
        ("stream", "yes"),
        ("logprobs", 0),
        ("echo", True),
        ("best_of", 3),
        ("suffix", "b"),
        ("logit_bias", {"5": -100}),
        ("presence_penalty", 0.5),
        ("promt", "a"),
        ("stream_options", {"include_usage": True}),
    ],
)
def test_a_field_that_is_wrong_or_not_done_is_named(field: str, value: object) -> None:
    error = refusal({field: value})
    if value != value:  # noqa: PLR0124 - NaN, which is no JSON
        assert error.code == "invalid_json" or error.param == field
    else:
        assert error.param == field


def test_values_that_ask_for_nothing_pass() -> None:
    neutral = {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "echo": False, "best_of": 1}
    request = read_request(CompletionRequest, json.dumps({"prompt": "a", "logprobs": None, **neutral}).encode())
    assert request.is_greedy


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", {"type": "json_object"}),
        ("response_format", {"type": "json_object"}),
        ("top_logprobs", 2),
        ("parallel_tool_calls", True),
        ("store", True),
        ("service_tier", "flex"),
        ("moderation", {}),
        ("prompt_cache_options", {}),
    ],
)
def test_what_chats_cannot_do_is_named(field: str, value: object) -> None:
    error = refusal({field: value}, ChatRequest)
    assert (error.param, error.code) == (field, "unsupported")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (said(content=[{"type": "image_url", "image_url": {"url": "a"}}]), "image_url"),
        (said(content=[{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "a"}]), "refusal"),
        (said(content=5), "messages.1.content: must be a text or a list of parts"),
        (said(tool_calls=[{"id": "a"}]), "messages.1.tool_calls is not supported"),
        (said(tool_call_id="a", content="b"), "messages.1.tool_call_id is not supported"),
        (said(text="a"), "no such field: messages.1.text"),
        ({"max_tokens": 2, "max_completion_tokens": 3}, "max_tokens"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"stop": 5}, "stop: must be a text or a list of texts"),
        ({"stop": ""}, "stop.0: String should have at least 1 character"),
    ],
)
def test_what_is_wrong_inside_a_field_is_said_in_the_callers_words(fields: dict[str, object], named: str) -> None:
    assert named in refusal(fields, ChatRequest).message


def test_answers_that_are_sent_back_and_hints_pass() -> None:
    answer = {"content": "b", "refusal": None, "annotations": [], "audio": None, "tool_calls": None, "name": "c"}
    hints = {"safety_identifier": "a", "prompt_cache_key": "a", "user": "a", "service_tier": "auto", "store": False}
    request = read_request(ChatRequest, json.dumps({**said(**answer), **hints, "stop": "d"}).encode())
    assert request.messages[1].for_template() == {"role": "assistant", "content": "b", "name": "c"}
    assert request.stops == ("d",)


@pytest.mark.parametrize("prompt", [None, 5, [], [[]], ["a", 5], [1.5], [True], [[1], "a", [None]], {"a": 1}])
def test_what_is_no_prompt_is_refused(prompt: object) -> None:
    with pytest.raises(ApiError) as caught:
        prompts_of(read_request(CompletionRequest, json.dumps({"prompt": prompt}).encode()))
    assert (caught.value.status, caught.value.param) == (400, "prompt")


def test_prompts_are_a_text_ids_or_a_list_of_either() -> None:
    for prompt, expected in (
        ("a", ["a"]),
        ([1, 2], [(1, 2)]),
        (["a", "b"], ["a", "b"]),
        ([[1], [2, 3]], [(1,), (2, 3)]),
    ):
        assert prompts_of(read_request(CompletionRequest, json.dumps({"prompt": prompt}).encode())) == expected


@given(
    body=st.binary(max_size=64) | st.dictionaries(FIELDS, JSON, max_size=5).map(lambda each: json.dumps(each).encode())
)
def test_any_body_is_a_request_or_an_error_of_ours(body: bytes) -> None:
    for kind in (CompletionRequest, ChatRequest):
        try:
            request = read_request(kind, body)
            if isinstance(request, CompletionRequest):
                prompts_of(request)
        except ApiError as error:
            assert error.status == 400  # noqa: PT017 - most bodies are refused, some are requests
            json.dumps(error.body(), ensure_ascii=False).encode()
