"""NCCL's priorities between two GPUs: an exchange beside a bulk sum, each on its own communicator. No bar: it is shown.

The exchange's stream is one that the GPU prefers, which orders kernels and not packets.
"""

from __future__ import annotations

import socket
import statistics
import sys
import time
from typing import Any

import torch

from moiety.runtime.comm.priority import Priority
from moiety.runtime.comm.torch_group import nccl_process_group


def priority_rank(rank: int, port: int, results: Any) -> None:  # noqa: ANN401 - a queue of multiprocessing's
    """Time an exchange alone and beside a bulk sum on another communicator, on one of two ranks."""
    torch.cuda.set_device(rank)
    store = torch.distributed.TCPStore("127.0.0.1", port, 2, is_master=rank == 0)
    groups = {
        each: nccl_process_group(torch.distributed.PrefixStore(each.name, store), rank, 2, each, 60.0)
        for each in (Priority.EXCHANGE, Priority.MIGRATION)
    }
    bulk = torch.ones(256 << 20, device="cuda")
    sent = torch.ones(1 << 20, device="cuda")
    received = torch.empty_like(sent)
    half = [sent.shape[0] // 2] * 2

    def seconds(*, beside: bool) -> float:
        torch.cuda.synchronize()
        pending = groups[Priority.MIGRATION].allreduce([bulk]) if beside else None
        start_s = time.perf_counter()
        groups[Priority.EXCHANGE].alltoall_base(received, sent, half, half).wait()
        torch.cuda.current_stream().synchronize()
        took_s = time.perf_counter() - start_s
        if pending is not None:
            pending.wait()
        return took_s

    for beside in (False, True):
        seconds(beside=beside)  # communicators connect in their first call
    alone, under = (statistics.median(seconds(beside=beside) for _ in range(7)) for beside in (False, True))
    if rank == 0:
        results.put((alone, under))


def exchange_beside_bulk() -> dict[str, float]:
    """Return an exchange's seconds alone and beside a bulk sum, between two GPUs."""
    context = torch.multiprocessing.get_context("spawn")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    results = context.Queue()
    ranks = [context.Process(target=priority_rank, args=(rank, port, results)) for rank in range(2)]
    for each in ranks:
        each.start()
    try:
        alone, beside = results.get(timeout=120)
    finally:
        for each in ranks:
            each.join(timeout=10)
            each.kill()
    return {"alone_s": alone, "beside_bulk_s": beside}


def main() -> int:
    """Print the figures, where there are two GPUs."""
    if torch.cuda.device_count() <= 1:
        print("not measured: fewer than two GPUs")
        return 0
    times = exchange_beside_bulk()
    print(f"exchange alone {times['alone_s'] * 1e3:.2f} ms, beside bulk {times['beside_bulk_s'] * 1e3:.2f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
