"""State of a training whose policy is sharded."""

from __future__ import annotations

import torch

from torchrl_vla._internal.durable_files import commit_folder, remove, write_bytes
from torchrl_vla.distributed import Ranks
from torchrl_vla.distributed.shard_files import (
    PLAIN_FILE,
    SHARDED_PARTS,
    sharded_folder,
    sharded_folders,
    write_shards,
)
from torchrl_vla.recipes.training_state import TrainingState


class ShardedTrainingState(TrainingState):
    """State of which every rank writes its own shards, into one folder per iteration.

    Read by any number of ranks, and by one process: what is read is resharded. The
    folder gets its name when all of it is on the disk; older ones are removed then.
    """

    def write(self, iteration: int) -> None:
        """Write the state after an iteration; every rank takes part."""
        ranks = Ranks.current()
        parent = self.path.parent
        older = sharded_folders(parent)
        partial = parent / ".training_state.partial"
        if ranks.is_first:
            remove(partial)
            partial.mkdir(parents=True)
        ranks.wait()
        write_shards(partial, self.parts, iteration)
        ranks.wait()
        if ranks.is_first:
            plain = {n: p for n, p in self.parts.items() if n not in SHARDED_PARTS}
            values = self._values(iteration, plain)
            write_bytes(partial / PLAIN_FILE, lambda file: torch.save(values, file))
            final = sharded_folder(parent, iteration)
            older = [folder for folder in older if folder != final]
            remove(final)
            commit_folder(partial, final)
            for path in (*older, self.path):
                remove(path)
        ranks.wait()
