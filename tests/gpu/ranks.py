"""Ranks on GPUs as `srun` would start them: each a node of one GPU, which they share where there are fewer than ranks.

NCCL refuses two ranks of a node on one GPU. Told that they are on different hosts it does not know that they share it,
and carries everything over sockets: a single GPU is enough to try what several do. No figure of speed comes of it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from moiety.cli.output import complain
from moiety.runtime.attached import Attached
from moiety.runtime.job import Job
from moiety.runtime.world import world_of

ROOT = Path(__file__).parents[2]


def reports_of(job: Job, folder: Path, *, timeout_s: float = 240.0) -> list[Any]:
    """Return what every rank of a job reports."""
    (folder / "job.json").write_text(job.model_dump_json())
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    with ExitStack() as stack:
        logs = [stack.enter_context((folder / f"rank-{rank}.log").open("w")) for rank in range(job.num_ranks)]
        ranks = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.gpu.ranks", str(folder / "job.json")],
                env={**os.environ, **_environment(rank, job.num_ranks, port)},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
            for rank, log in enumerate(logs)
        ]
        for rank in ranks:
            stack.callback(rank.kill)
        said = [rank.communicate(timeout=timeout_s)[0] for rank in ranks]
    complaints = "".join(Path(log.name).read_text() for log in logs)
    assert [rank.returncode for rank in ranks] == [0] * job.num_ranks, complaints[-4000:]
    return json.loads(said[0])


def _environment(rank: int, size: int, port: int) -> dict[str, str]:
    count = torch.cuda.device_count()
    numbers = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": port}
    found = {name: str(number) for name, number in numbers.items()}
    found |= {"MASTER_ADDR": "127.0.0.1", "PYTHONPATH": f"{ROOT}/src:{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    if count:
        found["CUDA_VISIBLE_DEVICES"] = str(rank % count)
    if count < size:
        found |= {"NCCL_HOSTID": f"host-{rank}", "NCCL_SOCKET_IFNAME": "lo", "NCCL_IB_DISABLE": "1"}
    return found


def _run() -> int:
    world = world_of(os.environ)
    assert world is not None
    attached = Attached(world)
    try:
        reports = attached.run(attached.shared(lambda: Job.model_validate_json(Path(sys.argv[1]).read_text())))
    except Exception as error:
        attached.complain(error, complain)
        raise
    if attached.speaks:
        sys.stdout.write(json.dumps(reports))
    return 0


if __name__ == "__main__":
    sys.exit(_run())
