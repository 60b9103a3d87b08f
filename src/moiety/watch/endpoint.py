"""Engines' metrics over HTTP: a text, or the reason why there is none; never an exception, and never for long."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from moiety.control.scrape import Scrape, read_scrape
from moiety.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from email.message import Message
    from typing import IO

    Request = urllib.request.Request

MAX_BYTES = 32 * 10**6
_CHUNK = 65_536
_AT_ONCE = 16


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows nothing: what answers elsewhere is not the engine that was named."""

    def redirect_request(
        self,
        req: Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Message,
        newurl: str,
    ) -> None:
        """Return no request."""


_OPENER = urllib.request.build_opener(_NoRedirect, urllib.request.ProxyHandler({}))


def scrape_all(urls: Sequence[str], timeout_s: float) -> dict[str, Scrape | str]:
    """Return what each address says now, or why it says nothing; all are asked at the same time."""
    if not urls:
        return {}
    with ThreadPoolExecutor(min(len(urls), _AT_ONCE)) as pool:
        return dict(zip(urls, pool.map(partial(scrape, timeout_s=timeout_s), urls), strict=True))


def scrape(url: str, timeout_s: float) -> Scrape | str:
    """Return the counters that an address shows, or the reason why it shows none, in one line.

    Redirects and proxies are not followed. A body that takes longer than `timeout_s` in all is given up.
    """
    try:
        text = _fetched(url, timeout_s)
        return read_scrape(text, time_s=time.time(), source=url)
    except InputError as error:
        return error.rule
    except urllib.error.HTTPError as error:
        where = error.headers.get("Location")
        error.close()
        return f"answers {error.code}{f', to go to {where[:80]!r}, which is not followed' if where else ''}"
    except urllib.error.URLError as error:
        return _reason(error.reason)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return _reason(error)


def _fetched(url: str, timeout_s: float) -> str:
    """Return the body as text; raise InputError for one that is cut off, too long, or not UTF-8."""
    deadline_s = time.monotonic() + timeout_s
    request = urllib.request.Request(url, headers={"Accept": "text/plain"})  # noqa: S310 - http and https only, by `instances_of`
    body = bytearray()
    with _OPENER.open(request, timeout=timeout_s) as answer:
        if answer.status != http.client.OK:
            raise InputError(f"answers {answer.status}")
        while chunk := answer.read1(_CHUNK):
            body += chunk
            if len(body) > MAX_BYTES:
                raise InputError(f"says more than {MAX_BYTES:,} bytes")
            if time.monotonic() > deadline_s:
                raise TimeoutError
        expected = answer.headers.get("Content-Length")
    if expected is not None and expected.isdecimal() and int(expected) > len(body):
        raise InputError(f"was cut off: {len(body):,} of {int(expected):,} bytes came")
    if body and not body.endswith(b"\n"):
        raise InputError("was cut off: the last line has no end")
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise InputError("is not UTF-8 text") from None


def _reason(error: object) -> str:
    if isinstance(error, TimeoutError):
        return "did not answer in time"
    if isinstance(error, http.client.IncompleteRead):
        return f"was cut off after {len(error.partial):,} bytes"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:120] or type(error).__name__
