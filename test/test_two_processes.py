"""Two gloo processes with half a batch each, against one with the whole batch."""

from __future__ import annotations

import subprocess
import sys

import torch
from reference_fingerprints import make_case

PROGRAM = """
import sys
sys.path[:0] = sys.argv[4:]
import torch
import torch.distributed as dist
from reference_fingerprints import make_case
from torch.nn.parallel import DistributedDataParallel
torch.set_num_threads(1)
folder, rank, name = sys.argv[1], int(sys.argv[2]), sys.argv[3]
dist.init_process_group(
    "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
)
loss, batch = make_case(name)["loss"]
batch["action_is_pad"] = torch.zeros_like(batch["action_is_pad"])
half = batch[2 * rank : 2 * rank + 2]
parallel = DistributedDataParallel(loss)
parallel(half)["loss_bc"].backward()
torch.save([p.grad for p in loss.parameters()], f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


def test_two_processes_have_the_gradient_of_the_global_batch(tmp_path):
    name = "tiny-regression"
    support = [path for path in sys.path if path.endswith("support")]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path), str(rank), name, *support],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    loss, batch = make_case(name)["loss"]
    # The parts weigh alike: every position of the four rows counts in both.
    batch["action_is_pad"] = torch.zeros_like(batch["action_is_pad"])
    loss(batch)["loss_bc"].backward()
    expected = [p.grad for p in loss.parameters()]
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert len(found) == len(expected) > 20
        for ours, whole in zip(found, expected):
            assert (ours - whole).abs().max() < 1e-6
