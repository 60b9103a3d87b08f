"""A live server of two ranks: OpenAI's client, many clients at once, those who leave, and those who send nonsense."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("fastapi", reason="serving is an extra")

import openai
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.checkpoints import greedy_continuation, reference_model
from tests.serve.servers import Server, awaited, checkpoint_with_texts, planned, send, served

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SLOTS, CHUNK, LONG = 2, 8, 400
STOPPED_S = 0.5
PROMPTS = [[5, 9, 11], [7] * 30, [3], list(range(1, 21)), [100, 2, 50, 4], [8, 8], [60, 61, 62], [1] * 9]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["prompt", "messages", "max_tokens", "n", "stop", "stream", "temperature", "model", "logprobs"]
)
BODIES = st.binary(max_size=40) | JSON.map(json.dumps).map(str.encode)
BODIES |= st.dictionaries(FIELDS, JSON, max_size=4).map(json.dumps).map(str.encode)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint_with_texts(tmp_path_factory.mktemp("checkpoints") / "qwen3")


@pytest.fixture(scope="module")
def server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    plan = planned(tmp_path_factory.mktemp("plan"), checkpoint, "local:2", "tp1_dp2_ep2")
    options = ("--max-sequences", str(SLOTS), "--prefill-chunk", str(CHUNK), "--max-waiting", "16", "--quiet")
    with served(plan, checkpoint, *options) as running:
        yield running


@pytest.fixture(scope="module")
def expected(checkpoint: Path) -> list[list[int]]:
    """Return how transformers continues the prompts."""
    oracle = reference_model(checkpoint)
    return [greedy_continuation(oracle, prompt, 12) for prompt in PROMPTS]


def words(tokens: list[int]) -> str:
    return " ".join(f"w{token}" for token in tokens)


def test_tokens_are_those_of_transformers_whoever_else_is_served(server: Server, expected: list[list[int]]) -> None:
    def ask(index: int) -> list[int]:
        time.sleep(0.05 * index)  # so that they join a running batch
        return server.complete(PROMPTS[index], 12)

    with ThreadPoolExecutor(len(PROMPTS)) as clients:
        assert list(clients.map(ask, range(len(PROMPTS)))) == expected
    assert server.complete(PROMPTS[1], 12) == expected[1]


def test_a_seed_draws_the_same_tokens_alone_and_in_company(server: Server) -> None:
    drawn = {"temperature": 1.5, "top_p": 0.9, "seed": 5}
    alone = server.complete(PROMPTS[0], 12, **drawn)
    with ThreadPoolExecutor(4) as clients:
        several = list(
            clients.map(lambda seed: server.complete(PROMPTS[0], 12, **{**drawn, "seed": seed}), [5, 6, 5, 7])
        )
    assert several[0] == several[2] == alone
    assert alone not in (several[1], several[3])


def test_waits_for_peers_are_counted_as_exposed_communication(server: Server) -> None:
    def exposed() -> list[float]:
        return [server.metric("moiety_rank_exposed_communication_seconds_total", rank=each) for each in "01"]

    server.complete(PROMPTS[0], 2)
    before, steps_before = exposed(), server.metric("moiety_step_duration_seconds_sum")
    with ThreadPoolExecutor(1) as clients:
        answer = clients.submit(server.complete, PROMPTS[0], LONG)
        awaited(lambda: server.metric("moiety_num_requests_running") > 0)
        late = server.ranks()[1]["pid"]
        send(late, signal.SIGSTOP)
        time.sleep(STOPPED_S)
        send(late, signal.SIGCONT)
        assert len(answer.result()) == LONG
    taken = server.metric("moiety_step_duration_seconds_sum") - steps_before
    waited = [after - since for after, since in zip(exposed(), before, strict=True)]
    assert waited[0] > 0.8 * STOPPED_S, "it waited for the other one, which stood still"
    assert min(waited) > 0
    assert max(waited) < taken


def test_openais_client_completes_and_chats(server: Server, expected: list[list[int]]) -> None:
    client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="none")
    name = client.models.list().data[0].id
    assert client.models.retrieve(name).id == name
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another/one")
    whole = client.completions.create(model=name, prompt=[words(PROMPTS[0]), words(PROMPTS[4])], max_tokens=6, n=2)
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in whole.choices] == [words(expected[index][:6]) for index in (0, 0, 4, 4)]
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (7, 24)
    messages: list[Any] = [{"role": "user", "content": "w5 w9"}]
    answer = client.chat.completions.create(model=name, messages=messages, max_tokens=5).choices[0]
    assert answer.message.content == words(server.complete([5, 9, 1], 5))
    assert answer.finish_reason == "length"
    stream = list(
        client.chat.completions.create(
            model=name, messages=messages, max_tokens=5, stream=True, stream_options={"include_usage": True}
        )
    )
    assert stream[0].choices[0].delta.role == "assistant"
    assert "".join(each.choices[0].delta.content or "" for each in stream[:-1]) == answer.message.content
    assert stream[-2].choices[0].finish_reason == "length"
    assert stream[-1].usage is not None
    assert stream[-1].usage.completion_tokens == 5
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="another", prompt="w1")
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=name, prompt="w1", max_tokens=100_000)
    assert caught.value.code == "context_length_exceeded"


def test_stop_strings_end_text_and_stop_tokens_end_sequences(server: Server, expected: list[list[int]]) -> None:
    tokens = expected[0]
    stop = tokens[4]
    first = tokens.index(stop)
    body = {"prompt": words(PROMPTS[0]), "max_tokens": 12, "return_token_ids": True}
    with server.client as client:
        text = client.post("/v1/completions", json={**body, "stop": f" w{stop}"}).json()["choices"][0]
        token = client.post("/v1/completions", json={**body, "stop_token_ids": [stop]}).json()["choices"][0]
    assert (text["text"], text["finish_reason"]) == (words(tokens[:first]), "stop")
    assert (token["token_ids"], token["finish_reason"]) == (tokens[: first + 1], "stop")


def test_streams_carry_each_token_once(server: Server, expected: list[list[int]]) -> None:
    body = {"prompt": PROMPTS[3], "max_tokens": 12, "stream": True, "return_token_ids": True}
    with server.client as client, client.stream("POST", "/v1/completions", json=body) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    choices = [json.loads(line)["choices"][0] for line in lines[:-1]]
    assert [token for choice in choices for token in choice["token_ids"]] == expected[3]
    assert "".join(choice["text"] for choice in choices) == words(expected[3])
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["length"]


def test_who_leaves_makes_room(server: Server) -> None:
    body = {"prompt": [1], "max_tokens": LONG, "n": 2 * SLOTS, "stream": True, "temperature": 1}
    with server.client as client, client.stream("POST", "/v1/completions", json=body) as answer:
        lines = answer.iter_lines()  # which hangs up when it is let go
        next(lines)
        assert server.metric("moiety_num_requests_running") == 2 * SLOTS
    awaited(lambda: server.metric("moiety_num_requests_running") == 0)
    cancelled = server.metric("moiety_requests_total", finish_reason="cancelled")
    assert cancelled >= 2 * SLOTS
    silent = threading.Thread(target=lambda: _leave_at_once(server), daemon=True)
    silent.start()
    awaited(lambda: server.metric("moiety_requests_total", finish_reason="cancelled") > cancelled)


def _leave_at_once(server: Server) -> None:
    """Ask for a whole answer, and hang up once it is being computed."""
    host, _, port = server.address.removeprefix("http://").partition(":")
    body = json.dumps({"prompt": [1], "max_tokens": LONG}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head + body)
        awaited(lambda: server.metric("moiety_num_requests_running") > 0)


def test_who_reads_nothing_holds_up_nobody(server: Server, expected: list[list[int]]) -> None:
    host, _, port = server.address.removeprefix("http://").partition(":")
    body = json.dumps({"prompt": [1], "max_tokens": LONG, "stream": True, "return_token_ids": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection((host, int(port))) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        connection.sendall(head + body)
        assert server.complete(PROMPTS[0], 12) == expected[0]
    awaited(lambda: server.metric("moiety_num_requests_running") == 0)


def test_too_many_are_told_to_come_again(server: Server) -> None:
    body = {"prompt": [1], "max_tokens": LONG, "n": 16, "stream": True}
    with server.client as client, client.stream("POST", "/v1/completions", json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        with server.client as other:
            refused = other.post("/v1/completions", json={"prompt": [1], "n": 12})
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
    assert int(refused.headers["retry-after"]) > 0


@pytest.mark.parametrize(
    ("path", "content", "status"),
    [
        ("/v1/completions", b"{", 400),
        ("/v1/completions", b"\xff", 400),
        ("/v1/completions", b"[" * 100_000, 400),
        ("/v1/completions", b'{"prompt": [131]}', 400),
        ("/v1/completions", b'{"prompt": [1], "n": 17}', 400),
        ("/v1/chat/completions", b'{"messages": []}', 400),
        ("/v1/completions", b" " * (5 << 20), 413),
        ("/v1/nothing", b"{}", 404),
        ("/v1/completions/", b'{"prompt": [1]}', 404),
        ("/v1/models", b"{}", 405),
    ],
)
def test_what_cannot_be_is_refused_in_openais_format(server: Server, path: str, content: bytes, status: int) -> None:
    with server.client as client:
        answer = client.post(path, content=content)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]


@settings(max_examples=60)
@given(path=st.sampled_from(["completions", "chat/completions"]), body=BODIES)
def test_nonsense_is_refused_and_the_server_stays_up(server: Server, path: str, body: bytes) -> None:
    with server.client as client:
        answer = client.post(f"/v1/{path}", content=body)
        assert answer.status_code in {200, 400, 404}, answer.text
        assert client.get("/health").json()["status"] == "ready"
