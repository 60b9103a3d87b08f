"""Servers as real processes, and the checkpoints and plans that they serve."""

from __future__ import annotations

import contextlib
import json
import os
import re
import ssl
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import tokenizers
import transformers

from tests.cli.command import moiety
from tests.runtime.checkpoints import save_checkpoint

if TYPE_CHECKING:
    import signal
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).parents[2]
START_S = 240.0
VOCABULARY = 131
NO_CERTIFICATES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Servers here speak plain HTTP: loading certificates for every client would take longer than all that it asks."""
TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }} {% endfor %}{% if add_generation_prompt %}w1{% endif %}"
)


@dataclass(frozen=True)
class Server:
    """A server that takes requests."""

    process: subprocess.Popen[str]
    address: str

    @property
    def client(self) -> httpx.Client:
        """Return a client of its own."""
        return httpx.Client(base_url=self.address, timeout=120.0, verify=NO_CERTIFICATES)

    def ranks(self) -> list[dict[str, Any]]:
        """Return what the server says of its ranks."""
        with self.client as client:
            return client.get("/ranks").json()["ranks"]

    def epoch(self) -> int:
        """Return the generation that the ranks are in."""
        with self.client as client:
            return client.get("/ranks").json()["epoch"]

    def control(self) -> dict[str, Any]:
        """Return what the control plane says of itself."""
        with self.client as client:
            return client.get("/ranks").json()["control"]

    def metric(self, name: str, **labels: str) -> float:
        """Return the value of one metric; 0 where it has never been counted."""
        from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415 - only a few look at it

        with self.client as client:
            families = text_string_to_metric_families(client.get("/metrics").text)
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        return next((sample.value for sample in samples if labels.items() <= sample.labels.items()), 0.0)

    def complete(self, prompt: list[int], max_tokens: int, **more: object) -> list[int]:
        """Return the tokens that continue a prompt."""
        body = {"prompt": prompt, "max_tokens": max_tokens, "return_token_ids": True, **more}
        with self.client as client:
            answer = client.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]["token_ids"]


@contextlib.contextmanager
def served(
    plan: Path,
    checkpoint: Path,
    *arguments: str,
    key: str | None = None,
    module: str = "moiety",
    env: Mapping[str, str] = os.environ,
) -> Iterator[Server]:
    """Serve a plan at any free port during the block; a server that is still there at its end is killed.

    `module` is what is called in place of `moiety`.
    """
    command = [sys.executable, "-m", module, "serve", str(plan), "--checkpoint", str(checkpoint), "--port", "0"]
    paths = (str(ROOT), os.environ.get("PYTHONPATH", ""))
    environment = {**env, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    environment |= {"MOIETY_API_KEY": key} if key else {}
    process = subprocess.Popen(
        [*command, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        said = process.stdout.readline()  # the end of the process ends it too
        if said == "{\n":  # --json
            said += "".join(iter(process.stdout.readline, "}\n"))
        found = re.search(r"http://[\d.:]+", said)
        assert found is not None, process.communicate(timeout=START_S)[1]
        yield Server(process, found[0])
    finally:
        process.kill()
        sys.stderr.write(process.communicate()[1] or "")  # shown where the test fails


def checkpoint_with_texts(folder: Path) -> Path:
    """Save a tiny model in a folder, with a tokenizer that knows the words w0 to w130 and a chat template."""
    save_checkpoint("qwen3_moe", folder)
    words = tokenizers.models.WordLevel({f"w{index}": index for index in range(VOCABULARY)}, unk_token="w0")  # noqa: S106 - a word
    inner = tokenizers.Tokenizer(words)
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="w0")  # noqa: S106 - as above
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def planned(folder: Path, checkpoint: Path, cluster: str, strategy: str, *more: str) -> Path:
    """Write a plan for the checkpoint into a folder."""
    load = ("--concurrency", "8", "--input-tokens", "16", "--output-tokens", "16")
    done = moiety(
        *("plan", checkpoint, "--cluster", cluster, "--strategy", strategy, *more, *load, "--quiet", "--out", folder)
    )
    assert done.code == 0, done.err
    return folder


def with_latency_limit(folder: Path, tpot_s: float | None) -> Path:
    """Give the plan in a folder another limit on the time per token; return the folder."""
    (file,) = folder.glob("*_deployment_method.json")
    document = json.loads(file.read_text())
    document["workload"]["slo"]["tpot_s"] = tpot_s
    file.write_text(json.dumps(document))
    return folder


def ended(server: Server, within_s: float = 60.0) -> tuple[int, str]:
    """Return the exit code of a server that comes to its end, and what it has written on standard error."""
    _, errors = server.process.communicate(timeout=within_s)
    return server.process.returncode, errors


def awaited(condition: Any, within_s: float = 60.0) -> None:  # noqa: ANN401 - anything that can be called
    """Wait until a condition holds."""
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, "it has not come to be"
        time.sleep(0.02)


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to a rank."""
    os.kill(pid, number)
