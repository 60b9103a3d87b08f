"""What is known, for Prometheus, over HTTP."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from moiety.control.metrics import demand_gauges, metrics_text
from moiety.control.state import Status
from moiety.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from prometheus_client.core import Metric

    from moiety.watch.known import Watch

_SILENCE_S = 10.0
"""After which a client that says nothing is let go."""


def watch_text(watch: Watch) -> str:
    """Return the metrics of the experts' state, and those of the instances, in Prometheus' text format."""
    own = generate_latest(_Collector(watch)).decode()  # pyright: ignore[reportArgumentType] - only asked to collect
    return metrics_text(watch.experts) + own


class _Collector(Collector):
    """Gives what is known of the instances; what is not known is left out."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def collect(self) -> Iterator[Metric]:
        """Give the metrics."""
        watch, fleet = self._watch, self._watch.fleet
        yield CounterMetricFamily("moiety_advice", "Pieces of advice given.", value=watch.given)
        yield GaugeMetricFamily("moiety_conditions", "What holds and was told.", value=len(watch.conditions))
        if fleet is None:
            return
        family = GaugeMetricFamily("moiety_instances", "Instances by what they are.", labels=["status"])
        for status in Status:
            family.add_metric([status.name.lower()], float((fleet.ranks.status == status).sum()))
        yield family
        yield from demand_gauges(fleet)


@contextmanager
def exported(host: str, port: int, watch: Callable[[], Watch]) -> Generator[str]:
    """Answer `GET /metrics` while the block runs, with what `watch` returns then; give the address.

    Raises InputError where the address cannot be listened on.
    """

    class Handler(BaseHTTPRequestHandler):
        """Answers one path."""

        timeout = _SILENCE_S

        def do_GET(self) -> None:
            """Answer."""
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            body = watch_text(watch()).encode()
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", CONTENT_TYPE_LATEST)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name that http.server gives it
            """Say nothing: standard error is for people."""

    try:
        server = ThreadingHTTPServer((host, port), Handler)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot be listened on: {reason}", field="--metrics-port", value=f"{host}:{port}") from None
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{server.server_address[1]}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
