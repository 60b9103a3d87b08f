"""The body of a request, read within bounds of size and time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from moiety.serve.api_error import ApiError
from moiety.serve.delivery import ClientGoneError

if TYPE_CHECKING:
    from starlette.types import Receive

MAX_BYTES = 4 << 20
_HEARD_OUT = 16
"""Up to so many times the limit is read and thrown away, so that the client hears why it was refused."""
_WITHIN_S = 30.0


async def read_body(receive: Receive) -> bytes:
    """Return the body; raise ApiError for one that is too large (413) or too slow (408)."""
    found = bytearray()
    size = 0
    try:
        async with asyncio.timeout(_WITHIN_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGoneError
                part: bytes = message.get("body", b"")
                size += len(part)
                if size <= MAX_BYTES:
                    found += part
                if not message.get("more_body", False) or size > _HEARD_OUT * MAX_BYTES:
                    break
    except TimeoutError:
        message = f"the request did not arrive within {_WITHIN_S:.0f} s"
        raise ApiError(message, status=408, code="request_timeout") from None
    if size > MAX_BYTES:
        message = f"the request is larger than {MAX_BYTES:,} bytes"
        raise ApiError(message, status=413, code="request_too_large")
    return bytes(found)
