"""A policy of one's own that speaks robot space, and a task that it can learn."""

from __future__ import annotations

import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.envs import Transform

from torchrl_vla.policies import GaussianVLAWrapper
from torchrl_vla.schema import ObservationKeys

H, A, S = 4, 2, 2


class Mover(GaussianVLAWrapper):
    """Its eyes are frozen; it moves by what the rest makes of the robot's state."""

    def __init__(self) -> None:
        super().__init__(action_dim=A, chunk_size=H, keys=ObservationKeys(image=None))
        self.eyes = nn.Linear(S, 8).requires_grad_(False)
        self.out = nn.Linear(8, H * A)
        self.log_std = nn.Parameter(torch.full((A,), -0.5))

    def predict_mean_and_log_std(self, tensordict):
        seen = self.eyes(tensordict["observation", "state"]).tanh()
        return self.out(seen).unflatten(-1, (H, A)), self.log_std


def make_mover() -> Mover:
    torch.manual_seed(0)
    return Mover()


def make_state_critic() -> TensorDictModule:
    torch.manual_seed(1)
    return TensorDictModule(
        nn.Linear(S, 1), in_keys=[("observation", "state")], out_keys=["state_value"]
    )


class RewardRight(Transform):
    """Pay, at every step of the tabletop, how far to the right the gripper is."""

    def _step(self, tensordict, next_tensordict):
        state = next_tensordict["observation", "state"]
        return next_tensordict.set("reward", state[..., :1].clone())
