"""Sample frames with their chunks from disk: ours, TorchRL's, and the bare gather.

    OMP_NUM_THREADS=1 python benchmarks/bench_sampling.py

200,000 frames in episodes of 200, in a memory-mapped storage. Ours draws i.i.d. frames
and gathers their chunks from the storage. TorchRL's draws slices as long as the chunk
and chunks each slice, which pads every slice at its end. The bare gather reads random
frames and their chunks from the storage with index tensors that are known beforehand;
"gather in buffer" does the same inside TorchRL's buffer, which is the floor for every
transform. Every chunk is first compared with the index written out; TorchRL's where
it is not padded.
"""

from __future__ import annotations

import itertools
import tempfile

import torch
from contest import check_equal, print_head, print_rows, read_quick, time_in_turns
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import (
    LazyMemmapStorage,
    RandomSampler,
    SliceSampler,
    TensorDictReplayBuffer,
)
from torchrl.envs import Transform
from torchrl.envs.transforms import ActionChunkTransform as PeerTransform

from torchrl_vla.transforms import ActionChunkTransform

WIDTH, STATE, HORIZON, LENGTH = 7, 8, 16, 200


def make_frames(n_frames: int) -> TensorDict:
    row = torch.arange(n_frames)
    frame = row % LENGTH
    return TensorDict(
        {
            "observation": {"state": torch.randn(n_frames, STATE)},
            "language_instruction": torch.full((n_frames,), 7),
            "action": torch.randn(n_frames, WIDTH),
            "episode_index": row // LENGTH,
            "frame_index": frame,
            "next": {"done": (frame == LENGTH - 1).unsqueeze(-1)},
        },
        [n_frames],
    )


def chunk_rows(data: TensorDict) -> tuple[Tensor, Tensor]:
    """Write out the rows of the chunks of some frames, and what of them is padded."""
    ahead = data["frame_index"].unsqueeze(-1) + torch.arange(HORIZON)
    first = data["episode_index"].unsqueeze(-1) * LENGTH
    return first + ahead.clamp(max=LENGTH - 1), ahead >= LENGTH


def make_ours(storage: LazyMemmapStorage, batch: int) -> TensorDictReplayBuffer:
    return TensorDictReplayBuffer(
        storage=storage,
        sampler=RandomSampler(),
        transform=ActionChunkTransform(HORIZON, storage=storage),
        batch_size=batch,
    )


def make_peer(storage: LazyMemmapStorage, batch: int) -> TensorDictReplayBuffer:
    return TensorDictReplayBuffer(
        storage=storage,
        sampler=SliceSampler(
            slice_len=HORIZON, traj_key="episode_index", cache_values=True
        ),
        batch_size=batch,
    )


class KnownGather(Transform):
    """Gather chunks by a table of all rows."""

    def __init__(self, storage: LazyMemmapStorage) -> None:
        super().__init__()
        self.actions = storage[:]["action"].as_subclass(Tensor)
        self.table = chunk_rows(storage[:])[0]

    def forward(self, data: TensorDict) -> TensorDict:
        """Write the chunks."""
        slots = self.table.index_select(0, data["index"])
        chunk = self.actions.index_select(0, slots.flatten())
        return data.set("action_chunk", chunk.view(*slots.shape, WIDTH))


def make_known(storage: LazyMemmapStorage, batch: int) -> TensorDictReplayBuffer:
    return TensorDictReplayBuffer(
        storage=storage, transform=KnownGather(storage), batch_size=batch
    )


def compare(storage: LazyMemmapStorage, batch: int, rounds: int) -> None:
    ours, peer = make_ours(storage, batch), make_peer(storage, batch)
    floor = make_known(storage, batch)
    chunker = PeerTransform(HORIZON, chunk_key="action_chunk")
    actions = storage[:]["action"].as_subclass(Tensor)
    known = []  # different frames in every call, as a sampler would draw
    for _ in range(32):
        rows = torch.randint(len(storage), (batch,))
        known.append((rows, chunk_rows(storage[rows])[0].flatten()))
    draws = itertools.cycle(known)

    def sample_peer() -> TensorDict:
        # TorchRL's documents say to reshape first; its buffer cannot do it itself.
        return chunker(peer.sample().reshape(-1, HORIZON)).reshape(-1)

    def gather() -> TensorDict:
        rows, slots = next(draws)
        data = storage.get(rows)
        chunk = actions.index_select(0, slots).view(batch, HORIZON, WIDTH)
        return data.set("action_chunk", chunk)

    contestants = {
        "bare gather": gather,
        "gather in buffer": floor.sample,
        "ours": ours.sample,
        "TorchRL": sample_peer,
    }
    samples = {name: sample() for name, sample in contestants.items()}
    padded = {}
    for name, sample in samples.items():
        slots_of_sample, is_pad = chunk_rows(sample)
        expected, chunk = actions[slots_of_sample], sample["action_chunk"]
        padded[name] = is_pad
        if name == "ours":
            check_equal(
                f"{name}, mask", {name: sample["action_is_pad"], "truth": is_pad}
            )
        if name == "TorchRL":
            padded[name] = sample["action_is_pad"]
            chunk, expected = chunk[~padded[name]], expected[~padded[name]]
        check_equal(f"{name}, chunk", {name: chunk, "truth": expected})
    times = time_in_turns(contestants, rounds, repeats=5)
    columns = {
        name: (
            f"{batch / min(spent):.0f}k/s",
            f"{100 * padded[name].float().mean():.0f}%",
        )
        for name, spent in times.items()
    }
    print_rows(f"{batch} frames", times, "bare gather", columns)


def main() -> None:
    quick = read_quick(__doc__)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    n_frames = 2_000 if quick else 200_000
    print(
        f"{n_frames} frames on disk, H={HORIZON}, A={WIDTH}, 1 thread; equal: checked"
    )
    print_head("the bare gather", "at best", "padded")
    with tempfile.TemporaryDirectory() as folder:
        storage = LazyMemmapStorage(n_frames, scratch_dir=folder)
        TensorDictReplayBuffer(storage=storage).extend(make_frames(n_frames))
        for batch in (64,) if quick else (256, 1024, 4096):
            compare(storage, batch, 2 if quick else 21)


if __name__ == "__main__":
    main()
