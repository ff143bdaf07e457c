"""Functions run by several gloo processes at once."""

import os
import socket
import tempfile
from pathlib import Path

import torch
from torch import multiprocessing


def run_ranks(function, *arguments, count=2):
    """Return what ``function(*arguments)`` returns on each rank of a process group.

    The function is importable by name; its result is what ``torch.save`` writes.
    """
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        multiprocessing.spawn(
            _run, (count, port, folder, function, arguments), nprocs=count
        )
        files = [Path(folder) / f"{rank}.pt" for rank in range(count)]
        return [torch.load(file, weights_only=False) for file in files]


def _run(rank, count, port, folder, function, arguments):
    from torchrl_vla.distributed import joined_ranks

    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    with joined_ranks():
        torch.save(function(*arguments), Path(folder) / f"{rank}.pt")
