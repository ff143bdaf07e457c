"""``torchrl-vla train``: clone the demonstrations of a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from torchrl_vla.data import DemonstrationDataset
from torchrl_vla.recipes import (
    ModelSpace,
    make_policy,
    save_checkpoint,
    train_behavior_cloning,
)


@dataclass(frozen=True)
class Train:
    """Train a TinyVLA on a dataset by behavior cloning."""

    dataset: Path
    """Folder that ``collect`` wrote."""
    folder: Path
    """Where the policy is written."""
    chunk_size: int = 8
    """Actions per chunk."""
    hidden: int = 256
    """Width of the policy."""
    steps: int = 3000
    """Optimizer steps."""
    batch_size: int = 256
    """Frames per step."""
    lr: float = 1e-3
    """Peak learning rate of AdamW."""
    seed: int = 0
    """Seed of the initial weights and the batches."""

    def run(self) -> None:
        """Train and write the policy, its metadata and the learning curve."""
        torch.manual_seed(self.seed)
        dataset = DemonstrationDataset.from_folder(self.dataset)
        policy = make_policy(dataset, chunk_size=self.chunk_size, hidden=self.hidden)
        space = ModelSpace(dataset.metadata)
        log = train_behavior_cloning(
            policy,
            dataset,
            space=space,
            steps=self.steps,
            batch_size=self.batch_size,
            lr=self.lr,
            seed=self.seed,
        )
        save_checkpoint(self.folder, policy, space)
        log.to_csv(self.folder / "learning_curve.csv")
        print(f"loss {log.losses[-1][1]:.4f}; policy in {self.folder}")
