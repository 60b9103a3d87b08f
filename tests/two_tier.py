"""A cluster of two tiers on one machine: nodes are network namespaces, joined by links of a limited rate.

Ranks of one node talk over its own address, unshaped; those of different nodes through a virtual Ethernet pair each
and a bridge, shaped on the way out of the node. Needs root, `ip` and `tc` (iproute2), and leaves nothing behind: not
when it fails, not on Ctrl-C, and what a run that was killed has left is removed by the next.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

MASTER_PORT = 29_500
"""Of the first node's address, where nobody else is."""
_NAMES = "moiety"
_BURST_BYTES = 16_384
"""What may leave a node at once; small against a chunk, so that the rate holds for chunks as well."""
_SEGMENT_BYTES = 16_000
"""What the kernel hands on in one piece, as to a network card that cuts it into packets. The shaper cuts what is larger
than its burst into packets itself, and that takes the processors more time than all else that a transfer does."""
_QUEUE_S = 0.1
"""What a node's queue holds before it drops, in seconds of its rate."""


@dataclass(frozen=True)
class Node:
    """One node: its network namespace, and its address in the network of the nodes."""

    namespace: str
    address: str


def obstacle() -> str | None:
    """Return why there can be no two-tier cluster here, or None."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "network namespaces need root"
    for command in ("ip", "tc"):
        if shutil.which(command) is None:
            return f"{command} is not installed (iproute2)"
    try:
        with two_tier(2, 1e9):
            return None
    except subprocess.CalledProcessError as error:
        return f"{' '.join(error.cmd)}: {error.stderr.strip()}"


@contextmanager
def two_tier(num_nodes: int, rate_bits_per_s: float) -> Iterator[tuple[Node, ...]]:
    """Yield `num_nodes` nodes, each of which sends at most `rate_bits_per_s` to the others together."""
    _remove_leftovers()
    switch = f"{_NAMES}-{os.getpid()}-switch"
    nodes = tuple(
        Node(f"{_NAMES}-{os.getpid()}-node{index}", f"10.77.{index // 250}.{index % 250 + 1}")
        for index in range(num_nodes)
    )
    try:
        _run(f"ip netns add {switch}")
        _run(f"ip -n {switch} link add bridge type bridge")
        _run(f"ip -n {switch} link set bridge up")
        for index, node in enumerate(nodes):
            _add(node, switch, f"port{index}", rate_bits_per_s)
        yield nodes
    finally:
        for namespace in (*(node.namespace for node in nodes), switch):
            _remove(namespace)


def _add(node: Node, switch: str, port: str, rate_bits_per_s: float) -> None:
    name = node.namespace
    _run(f"ip netns add {name}")
    _run(f"ip link add uplink netns {name} type veth peer name {port} netns {switch}")
    _run(f"ip -n {switch} link set {port} master bridge up")
    _run(f"ip -n {name} address add {node.address}/16 dev uplink")
    _run(f"ip -n {name} link set lo up")
    _run(f"ip -n {name} link set uplink up")
    limit_bytes = int(rate_bits_per_s / 8 * _QUEUE_S) + _BURST_BYTES
    shape = f"tbf rate {rate_bits_per_s:.0f}bit burst {_BURST_BYTES} limit {limit_bytes}"
    _run(f"ip -n {name} link set uplink gso_max_size {_SEGMENT_BYTES}")
    _run(f"tc -n {name} qdisc add dev uplink root {shape}")


def _run(command: str) -> None:
    subprocess.run(command.split(), check=True, capture_output=True, text=True)


def _remove(namespace: str) -> None:
    # With it go its links, and with those their other ends. Processes that are still in it keep what they have open.
    if Path("/run/netns", namespace).exists():
        subprocess.run(["ip", "netns", "delete", namespace], check=False, capture_output=True)  # noqa: S607


def _remove_leftovers() -> None:
    if not Path("/run/netns").exists():
        return
    for entry in Path("/run/netns").iterdir():
        named = re.fullmatch(rf"{_NAMES}-(\d+)-\w+", entry.name)
        if named and not Path("/proc", named[1]).exists():
            _remove(entry.name)


def main() -> int:
    """Run a command in every rank of a two-tier cluster, with the variables that torchrun sets."""
    parser = argparse.ArgumentParser(prog="two_tier", description=main.__doc__)
    parser.add_argument("--nodes", type=int, default=2, metavar="N")
    parser.add_argument("--ranks-per-node", type=int, default=2, metavar="N")
    parser.add_argument("--mbit", type=float, default=200.0, metavar="RATE", help="what a node sends, in Mbit/s")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    options = parser.parse_args()
    reason = obstacle()
    if reason is not None:
        parser.error(reason)
    command = options.command[options.command[:1] == ["--"] :]
    if not command:
        parser.error("a command is needed")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    with two_tier(options.nodes, options.mbit * 1e6) as nodes:
        return _run_in_every_rank(nodes, options.ranks_per_node, command)


def _leave(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def _run_in_every_rank(nodes: tuple[Node, ...], ranks_per_node: int, command: list[str]) -> int:
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(len(nodes) * ranks_per_node):
            node = nodes[rank // ranks_per_node]
            places = {
                "RANK": rank,
                "LOCAL_RANK": rank % ranks_per_node,
                "WORLD_SIZE": len(nodes) * ranks_per_node,
                "LOCAL_WORLD_SIZE": ranks_per_node,
                "MASTER_ADDR": nodes[0].address,
                "MASTER_PORT": MASTER_PORT,
                "GLOO_SOCKET_IFNAME": "uplink",
            }
            environment = os.environ | {name: str(value) for name, value in places.items()}
            inside = ["ip", "netns", "exec", node.namespace, *command]
            processes.append(subprocess.Popen(inside, env=environment, start_new_session=True))
        return max(process.wait() % 256 for process in processes)
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


if __name__ == "__main__":
    sys.exit(main())
