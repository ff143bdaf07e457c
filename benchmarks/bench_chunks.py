"""Build action chunks from windows: ours, TorchRL's, and the bare gather.

    OMP_NUM_THREADS=1 python benchmarks/bench_chunks.py

The bare gather is one ``index_select`` whose index is known beforehand: nobody who
has to find the index himself and to write the mask too can be faster. Windows come
without a ``done`` and with episodes that end inside them. Peak memory is what was
allocated at once, against the bytes of the output (chunk and mask).
"""

from __future__ import annotations

import torch
from contest import (
    check_equal,
    peak_bytes,
    print_head,
    print_rows,
    read_quick,
    time_in_turns,
)
from tensordict import TensorDict
from torch import Tensor
from torchrl.envs.transforms import ActionChunkTransform as PeerTransform

from torchrl_vla.transforms import ActionChunkTransform

SIZES = {(64, 64, 7, 16): 31, (256, 100, 14, 50): 11}
QUICK_SIZES = {(4, 9, 2, 5): 2}


def make_windows(rows: int, steps: int, width: int, *, ends: bool) -> TensorDict:
    data = TensorDict({"action": torch.randn(rows, steps, width)}, [rows, steps])
    if ends:
        data["next", "done"] = torch.rand(rows, steps, 1) < 0.02
    return data


def find_rows(data: TensorDict, size: int) -> tuple[Tensor, Tensor]:
    """Write out the row of every slot, and whether it is padded."""
    rows, steps = data.shape
    done = data.get(("next", "done"), torch.zeros(rows, steps, 1, dtype=torch.bool))
    index = torch.empty(rows, steps, size, dtype=torch.int64)
    is_pad = torch.empty(rows, steps, size, dtype=torch.bool)
    last = torch.full((rows,), steps - 1)
    ahead = torch.arange(size)
    for step in reversed(range(steps)):
        last = torch.where(done[:, step, 0], step, last)
        index[:, step] = torch.minimum(step + ahead, last[:, None])
        is_pad[:, step] = step + ahead > last[:, None]
    index += torch.arange(rows).view(-1, 1, 1) * steps
    return index.flatten(), is_pad


def compare(size: tuple[int, ...], rounds: int, *, ends: bool) -> None:
    *shape, horizon = size
    data = make_windows(*shape, ends=ends)
    index, is_pad = find_rows(data, horizon)
    actions = data["action"].view(-1, shape[-1])
    ours = ActionChunkTransform(horizon)
    peer = PeerTransform(horizon, chunk_key="action_chunk")
    contestants = {
        "bare gather": lambda: actions.index_select(0, index),
        "ours": lambda: ours(data),
        "TorchRL": lambda: peer(data.copy()),  # it writes in place
    }
    title = f"[{','.join(map(str, shape))}] H={horizon}"
    mine, theirs = contestants["ours"](), contestants["TorchRL"]()
    chunk = contestants["bare gather"]().view_as(mine["action_chunk"])
    chunks = {"gather": chunk, "ours": mine["action_chunk"]}
    check_equal(f"{title}, chunk", chunks | {"TorchRL": theirs["action_chunk"]})
    pads = {"gather": is_pad, "ours": mine["action_is_pad"]}
    check_equal(f"{title}, mask", pads | {"TorchRL": theirs["action_is_pad"]})
    output = chunk.nbytes + is_pad.nbytes
    columns = {
        name: (f"{peak_bytes(run) / output:.2f}",) for name, run in contestants.items()
    }
    del mine, theirs, chunk, chunks, pads
    times = time_in_turns(contestants, rounds, repeats=5 if rounds > 20 else 1)
    print_rows(title + (", ends" if ends else ""), times, "bare gather", columns)


def main() -> None:
    quick = read_quick(__doc__)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(
        "Chunks of windows, 1 thread; equal chunks and masks: checked before each row"
    )
    print_head("the bare gather", "peak/out")
    for size, rounds in (QUICK_SIZES if quick else SIZES).items():
        for ends in (False, True):
            compare(size, rounds, ends=ends)


if __name__ == "__main__":
    main()
