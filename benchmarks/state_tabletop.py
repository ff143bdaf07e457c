"""The tabletop without images: the state holds the named block, too."""

from __future__ import annotations

from dataclasses import replace

import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Bounded

from torchrl_vla.envs import TabletopEnv


class StateTabletop(TabletopEnv):
    """Reach the named block; the state is the gripper and the block, ``[N, 4]``."""

    def _make_specs(self) -> None:
        self.metadata = replace(
            self.metadata,
            dataset_id="tabletop-state",
            state_dim=4,
            state_names=("x", "y", "block_x", "block_y"),
            state_units=("table",) * 4,
            cameras=(),
        )
        super()._make_specs()
        del self.observation_spec["observation", "image"]
        self.observation_spec["observation", "state"] = Bounded(
            -1.0, 1.0, shape=(*self.batch_size, 4), device=self.device
        )

    def _observe(self, success: Tensor) -> TensorDict:
        out = super()._observe(success)
        block = self.scene.target_block
        state = torch.cat([self.scene.gripper, block], -1)
        return out.set("observation", {"state": state})


def make_env(num_envs: int = 1, seed: int | None = None) -> StateTabletop:
    """Return an environment with tiny images that nobody reads."""
    return StateTabletop(num_envs, image_size=8, seed=seed)
