"""Errors as OpenAI's API words them, with the status that its clients expect."""

from __future__ import annotations

from typing import Literal

Kind = Literal[
    "invalid_request_error",
    "authentication_error",
    "not_found_error",
    "rate_limit_error",
    "overloaded_error",
    "server_error",
]

RETRY_AFTER_S = 1
"""When a client that was refused for lack of room may come again."""


class ApiError(Exception):
    """A request that cannot be done; the client is told why."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: Kind = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        self.message, self.status, self.param, self.code = message, status, param, code
        self.kind: Kind = kind
        super().__init__(message)

    def body(self) -> dict[str, object]:
        """Return the JSON that the client gets."""
        return error_body(self.message, self.kind, self.param, self.code)

    def headers(self) -> dict[str, str]:
        """Return what goes beside it."""
        if self.status in {429, 503}:
            return {"Retry-After": str(RETRY_AFTER_S)}
        return {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}  # noqa: PLR2004 - HTTP's own number


def error_body(message: str, kind: Kind, param: str | None = None, code: str | None = None) -> dict[str, object]:
    """Return an error in OpenAI's format."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
