"""Bodies that are too large or too slow are refused with the status that says so; what comes in time is whole."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="serving is an extra")

from moiety.serve import body
from moiety.serve.api_error import ApiError
from moiety.serve.delivery import ClientGoneError


def received(parts: list[bytes], *, ends: bool = True, delay_s: float = 0.0) -> bytes:
    """Return what is read of a body that comes in parts, and goes on without end unless it `ends`."""
    left = list(parts)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(delay_s)
        part = left.pop(0) if left else b""
        return {"type": "http.request", "body": part, "more_body": bool(left) or not ends}

    return asyncio.run(body.read_body(receive))


def test_a_body_in_parts_is_whole() -> None:
    assert received([b"a", b"", b"bc"]) == b"abc"


def test_a_body_that_is_too_large_is_heard_out_and_refused() -> None:
    part = b" " * (1 << 20)
    with pytest.raises(ApiError) as caught:
        received([part] * 5)
    assert (caught.value.status, caught.value.code) == (413, "request_too_large")
    with pytest.raises(ApiError) as caught:
        received([part] * 100, ends=False)  # but not for ever
    assert caught.value.status == 413


def test_a_body_that_drips_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "_WITHIN_S", 0.1)
    with pytest.raises(ApiError) as caught:
        received([b"{"], ends=False, delay_s=0.01)
    assert (caught.value.status, caught.value.code) == (408, "request_timeout")


def test_who_leaves_is_told_nothing() -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    with pytest.raises(ClientGoneError):
        asyncio.run(body.read_body(receive))
