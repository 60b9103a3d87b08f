"""Ranks that die until none is left: streams go on, drawn ones too; then the server's own end.

What each fault costs, and is allowed to, is in `tests/chaos`.
"""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("fastapi", reason="serving is an extra")

from tests.chaos.streams import Stream
from tests.runtime.checkpoints import greedy_continuation, reference_model, save_checkpoint
from tests.runtime.launched import is_gone, parent_of
from tests.serve.poisoned import POISON
from tests.serve.servers import awaited, checkpoint_with_texts, ended, planned, send, served
from tests.serve.tight import tightened

if TYPE_CHECKING:
    from pathlib import Path

PROMPTS = [[5, 9, 11], [7] * 30, [3], [100, 2, 50, 4]]
LONG, MOST = 300, 500


def test_streams_outlive_ranks_that_die_as_long_as_there_are_any(tmp_path: Path) -> None:
    checkpoint = checkpoint_with_texts(tmp_path / "qwen3")
    oracle = reference_model(checkpoint)
    expected = [greedy_continuation(oracle, prompt, LONG) for prompt in PROMPTS]
    plan = planned(tmp_path / "plan", checkpoint, "local:2", "tp1_dp2_ep2")
    with served(plan, checkpoint, "--max-restarts", "1") as server:
        drawn = server.complete([1, 2], LONG, temperature=1.0, seed=3)
        epoch = server.epoch()
        survivor, victim = (each["pid"] for each in server.ranks())
        readers = [Stream(server, prompt, LONG) for prompt in PROMPTS]
        sampled = Stream(server, [1, 2], LONG, temperature=1.0, seed=3)
        awaited(lambda: all(each.tokens for each in readers))
        send(victim, signal.SIGKILL)
        for each in (*readers, sampled):
            each.join(timeout=240.0)
        assert [each.tokens for each in readers] == expected
        assert sampled.tokens == drawn
        assert all(each.is_complete and each.error is None for each in (*readers, sampled))
        assert server.epoch() > epoch
        awaited(lambda: [each["state"] for each in server.ranks()] == ["ready", "ready"])
        assert survivor in [each["pid"] for each in server.ranks()]
        assert server.metric("moiety_epoch") == server.epoch()
        last = [Stream(server, PROMPTS[0], MOST) for _ in range(12)]
        awaited(lambda: all(each.tokens for each in last))
        send(server.ranks()[0]["pid"], signal.SIGKILL)
        awaited(lambda: len(server.ranks()) == 1)
        (alone,) = server.ranks()
        assert alone["experts"] == list(range(8))
        send(alone["pid"], signal.SIGKILL)
        code, errors = ended(server)
        for each in last:
            each.join(timeout=60.0)
        assert code == 2
        assert "Traceback" not in errors
        message = errors.splitlines()[-1]
        assert message.startswith("moiety: error: no rank is left")
        assert f"(pid {alone['pid']}) was killed by SIGKILL" in message
        assert "--max-restarts" in message
        assert any(each.error is not None and not each.is_complete for each in last)
        assert all(each.tokens[:LONG] == expected[0][: len(each.tokens)] for each in last)


def test_where_no_rank_is_left_all_are_started_anew(tmp_path: Path) -> None:
    checkpoint = checkpoint_with_texts(tmp_path / "qwen3")
    expected = greedy_continuation(reference_model(checkpoint), PROMPTS[0], LONG)
    plan = planned(tmp_path / "plan", checkpoint, "local:1", "tp1")
    with served(plan, checkpoint) as server:
        epoch, reader = server.epoch(), Stream(server, PROMPTS[0], LONG)
        awaited(lambda: bool(reader.tokens))
        send(server.ranks()[0]["pid"], signal.SIGKILL)
        reader.join(timeout=120.0)
        assert reader.tokens == expected
        assert server.epoch() > epoch
        epoch, reader = server.epoch(), Stream(server, PROMPTS[0], LONG)
        awaited(lambda: bool(reader.tokens))
        send(parent_of(server.ranks()[0]["pid"]), signal.SIGKILL)  # the process that ranks are forked from
        reader.join(timeout=120.0)
        assert reader.tokens == expected
        assert server.epoch() > epoch
        send(server.process.pid, signal.SIGTERM)
        assert ended(server)[0] == 0


def test_a_server_with_a_key_and_without_texts_drains_when_told_to_end(tmp_path: Path) -> None:
    checkpoint = save_checkpoint("qwen3_moe", tmp_path / "qwen3")
    plan = planned(tmp_path / "plan", checkpoint, "local:1", "tp1")
    key = {"Authorization": "Bearer secret"}
    with served(plan, checkpoint, "--json", key="secret") as server:
        with server.client as client:
            assert client.get("/v1/models").status_code == 401
            assert client.get("/v1/models", headers={"Authorization": "Bearer no"}).json()["error"]["code"]
            assert client.get("/v1/models", headers={"Authorization": "bearer secret"}).status_code == 200  # RFC 9110
            assert client.get("/health").status_code == 200
            for path, body in (
                ("completions", {"prompt": "a text"}),
                ("completions", {"prompt": [1], "stop": "a"}),
                ("chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
            ):
                refused = client.post(f"/v1/{path}", json=body, headers=key)
                assert (refused.status_code, refused.json()["error"]["code"]) == (400, "no_tokenizer")
            assert server.metric("moiety_http_refused_requests_total", status="401") == 2
            rank = client.get("/ranks", headers=key).json()["ranks"][0]["pid"]
            body = {"prompt": [1], "max_tokens": 400, "stream": True}
            with client.stream("POST", "/v1/completions", json=body, headers=key) as answer:
                lines = answer.iter_lines()
                found = [next(lines)]
                send(server.process.pid, signal.SIGTERM)
                with server.client as other:
                    awaited(lambda: other.get("/health").json()["status"] == "draining")
                    late = other.post("/v1/completions", json={"prompt": [1]}, headers=key)
                    assert (late.status_code, late.headers["retry-after"]) == (503, "1")
                found += list(lines)
        tokens = [json.loads(line.removeprefix("data: "))["choices"][0]["token_ids"] for line in found if "{" in line]
        assert len([token for part in tokens for token in part]) == 400
        assert found[-2:] == ["data: [DONE]", ""] or found[-1] == "data: [DONE]"
        assert ended(server)[0] == 0
        assert is_gone(rank)


def test_a_request_that_ends_ranks_is_answered_alone(tmp_path: Path) -> None:
    checkpoint = checkpoint_with_texts(tmp_path / "qwen3")
    expected = greedy_continuation(reference_model(checkpoint), PROMPTS[0], LONG)
    plan = planned(tmp_path / "plan", checkpoint, "local:2", "tp1_dp2_ep2")
    with served(plan, checkpoint, "--max-restarts", "6", module="tests.serve.poisoned") as server:
        reader = Stream(server, PROMPTS[0], LONG)
        awaited(lambda: bool(reader.tokens))
        with server.client as client:
            refused = client.post("/v1/completions", json={"prompt": [1, POISON], "max_tokens": 4})
        assert (refused.status_code, refused.json()["error"]["type"]) == (500, "server_error")
        assert "ranks were lost 3 times in steps of this request" in refused.json()["error"]["message"]
        reader.join(timeout=240.0)
        assert reader.tokens == expected
        assert reader.error is None
        assert server.metric("moiety_requests_total", finish_reason="failed") == 1


def test_experts_that_nobody_has_room_for_are_refused_by_name_until_a_rank_is_back(tmp_path: Path) -> None:
    checkpoint = checkpoint_with_texts(tmp_path / "qwen3")
    expected = greedy_continuation(reference_model(checkpoint), PROMPTS[0], LONG)
    plan = tightened(planned(tmp_path / "plan", checkpoint, "local:2", "tp1_dp2_ep2"), 5)
    with served(plan, checkpoint) as server:
        reader = Stream(server, PROMPTS[0], LONG)
        awaited(lambda: bool(reader.tokens))
        survivor, victim = server.ranks()
        send(victim["pid"], signal.SIGKILL)
        awaited(lambda: server.control()["refused_experts"] != [])
        with server.client as client:
            assert client.get("/health").json()["status"] == "refusing"
            refused = client.post("/v1/completions", json={"prompt": [1], "max_tokens": 4})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert "no rank has room for, or no copy is left of, expert " in refused.json()["error"]["message"]
        reader.join(timeout=240.0)
        assert reader.tokens == expected
        assert server.control()["refused_experts"] == []
        assert survivor["pid"] in [each["pid"] for each in server.ranks()]
        assert [len(each["experts"]) for each in server.ranks()] == [4, 4], "each has its room, and no more"
