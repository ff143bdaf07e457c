"""Scripted expert of LIBERO, with access to the simulations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_vla.schema import ACTION_KEY, EXPERT_ACTION_KEY

if TYPE_CHECKING:
    from torchrl_vla.envs.libero.libero_env import LiberoEnv

#: How fast a push fades, and what part of the noise each dimension gets: less in
#: height, little in rotation, none at the gripper.
_MEMORY = 0.8
_PARTS = torch.tensor([1.0, 1.0, 2 / 3, 1 / 6, 1 / 6, 1 / 6, 0.0])


class LiberoExpert(TensorDictModuleBase):
    """Pick the named object up and put it where the instruction says.

    A script that reads the objects' places from the simulation, and not the human
    demonstrations of LIBERO's datasets. With noise, the executed action differs from
    the intended one, so demonstrations show recovery from errors; the intended action
    is the training target. The noise is a push that fades within a few steps (a policy
    that is a little off drifts, it does not jitter); none while the fingers move.

    **Reads** the simulations of its environment, not the tensordict; **writes**
    ``action`` and ``expert_action``, float32 ``[N, 7]`` in [-1, 1].

    Args:
        env: the environment whose simulations it reads.
        noise: standard deviation of the pushes along x and y, as part of the fastest
            motion.
        seed: of the noise.

    Raises:
        ValueError: the noise is negative, or a task of the environment has no script.
    """

    def __init__(self, env: LiberoEnv, *, noise: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        if not noise >= 0.0:
            raise ValueError(f"LiberoExpert: expected noise >= 0, got {noise}.")
        self.in_keys: list[NestedKey] = []
        self.out_keys = [ACTION_KEY, EXPERT_ACTION_KEY]
        self._env = [env]  # in a list, so that it is no submodule
        self._noise = noise
        self._push: Tensor | None = None
        self._generator = torch.Generator().manual_seed(seed)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the intended action and the one to execute."""
        plan = self._env[0].plan()
        intended, bears = plan[:, :7].clone(), plan[:, 7:]
        executed = intended
        if self._noise:
            fresh = torch.randn(intended.shape, generator=self._generator)
            fresh = fresh * self._noise * (1 - _MEMORY**2) ** 0.5 * _PARTS
            kept = torch.zeros_like(fresh) if self._push is None else self._push
            self._push = _MEMORY * kept + fresh
            executed = (intended + bears * self._push).clamp(-1, 1)
        tensordict.set(EXPERT_ACTION_KEY, intended)
        return tensordict.set(ACTION_KEY, executed)
