"""A network of two tiers, made of network namespaces: its rates hold, bytes are counted by tier, bulk gives way."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")

from tests.ranks import run_ranks
from tests.runtime.comm import two_tier_laws as laws
from tests.two_tier import obstacle, two_tier

OBSTACLE = obstacle()
pytestmark = pytest.mark.skipif(OBSTACLE is not None, reason=OBSTACLE or "")

ROOT = Path(__file__).parents[3]
RATE_BITS_PER_S = 100e6


def namespaces() -> set[str]:
    """Return the names of the namespaces that two-tier networks have made."""
    return {entry.name for entry in Path("/run/netns").iterdir() if entry.name.startswith("moiety-")}


def test_ranks_of_different_nodes_share_the_rate_and_those_of_one_node_do_not_feel_it() -> None:
    size_bytes = 1 << 20
    with two_tier(2, RATE_BITS_PER_S) as nodes:
        results = run_ranks(laws.seconds_by_tier, 4, size_bytes, nodes=nodes)
    wire_s = 2 * size_bytes * 8 / RATE_BITS_PER_S  # two ranks a node
    for seconds, sent in results:
        assert seconds["network"] > 0.9 * wire_s
        assert seconds["network"] < 3 * wire_s
        assert seconds["node"] < 0.7 * wire_s
        assert sent == {
            "node": {"node": size_bytes, "network": 0},
            "network": {"node": 0, "network": size_bytes},
        }


def test_an_exchange_does_not_wait_for_a_bulk_transfer_that_gives_way() -> None:
    with two_tier(2, RATE_BITS_PER_S) as nodes:
        results = run_ranks(laws.foreground_beside_bulk, 4, 6 << 20, 5, nodes=nodes)
    alone_s, queue_s, naive_s = (
        [max(times) for times in zip(*(each[name] for each in results), strict=True)]
        for name in ("alone", "queue", "naive")
    )
    assert max(naive_s) > 10 * statistics.median(alone_s)  # behind 6 MiB of either rank of the node: half a second
    assert statistics.median(queue_s) < 3 * statistics.median(alone_s)  # two chunks more, on a machine that is busy


def test_a_cluster_leaves_nothing_behind_when_it_fails() -> None:
    before = namespaces()

    def fail() -> None:
        with two_tier(2, RATE_BITS_PER_S):
            assert len(namespaces() - before) == 3
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail()
    assert not {name for name in namespaces() if name.startswith(f"moiety-{os.getpid()}-")}


@pytest.mark.parametrize("end_with", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_interrupted_leaves_nothing_behind(end_with: signal.Signals) -> None:
    command = [sys.executable, "-m", "tests.two_tier", "--nodes", "2", "--ranks-per-node", "2", "--mbit", "100", "--"]
    sleeper = f"{os.getpid()}59.5"  # seconds, and a mark to find it by
    process = subprocess.Popen([*command, "sleep", sleeper], cwd=ROOT)
    deadline_s = time.monotonic() + 20
    while len(running(sleeper)) < 4:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    process.send_signal(end_with)
    assert process.wait(20) == 128 + end_with
    assert not running(sleeper)
    assert not {name for name in namespaces() if name.startswith(f"moiety-{process.pid}-")}


def test_what_a_killed_run_left_is_removed_by_the_next() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    name = f"moiety-{process.pid}-node0"
    subprocess.run(["ip", "netns", "add", name], check=True)  # noqa: S607  # iproute2, wherever it is
    with two_tier(1, RATE_BITS_PER_S):
        assert name not in namespaces()


def test_a_command_runs_in_every_rank_and_its_worst_exit_code_is_the_commands() -> None:
    command = [sys.executable, "-m", "tests.two_tier", "--nodes", "2", "--ranks-per-node", "2", "--mbit", "100", "--"]
    script = "echo $RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $MASTER_PORT; exit $RANK"
    done = subprocess.run([*command, "sh", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert sorted(done.stdout.splitlines()) == [f"{rank} {rank % 2} 4 10.77.0.1 29500" for rank in range(4)]
    assert done.returncode == 3


def running(mark: str) -> list[str]:
    """Return the processes whose command line has the mark as an argument of `sleep`."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cmdline").read_text() == f"sleep\0{mark}\0":
                found.append(entry.name)
        except OSError:  # it has ended meanwhile
            continue
    return found
