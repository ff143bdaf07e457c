"""Scripted expert of the tabletop, with access to the scene."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_vla.envs.tabletop.scene import CONTACT, MAX_SPEED, Scene
from torchrl_vla.schema import ACTION_KEY, EXPERT_ACTION_KEY

if TYPE_CHECKING:
    from torchrl_vla.envs.tabletop.tabletop_env import TabletopEnv

#: Distance of the expert's detour from a block's centre.
_CLEARANCE = CONTACT + 0.1
#: The expert makes no detour around a block further ahead than this.
_LOOK_AHEAD = 0.5


class TabletopExpert(TensorDictModuleBase):
    """Reach the named block, or go around the others and push it.

    With noise, the executed action differs from the intended one, so demonstrations
    show recovery from errors (DART, Laskey et al.,
    CoRL 2017). The intended action is the training target.

    **Reads** the scene of its environment, not the tensordict; **writes** ``action``
    and ``expert_action``, float32 ``[N, 2]`` in ``[-1, 1]``.

    Args:
        env: the environment whose scene it reads.
        noise: standard deviation of the noise on ``action``.
        seed: of the noise.

    Examples:
        >>> from torchrl_vla.envs import TabletopEnv
        >>> env = TabletopEnv(2, seed=0)
        >>> rollout = env.rollout(40, TabletopExpert(env), break_when_all_done=True)
        >>> rollout["next", "success"].any(1).flatten()
        tensor([True, True])
    """

    def __init__(self, env: TabletopEnv, *, noise: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        if not noise >= 0.0:
            raise ValueError(f"TabletopExpert: expected noise >= 0, got {noise}.")
        self.in_keys: list[NestedKey] = []
        self.out_keys = [ACTION_KEY, EXPERT_ACTION_KEY]
        self._env = [env]  # in a list, so that it is no submodule
        self._noise = noise
        self._generator = torch.Generator(device=env.device).manual_seed(seed)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the intended action and the one to execute."""
        intended = plan(self._env[0].scene)
        executed = intended
        if self._noise:
            noise = torch.empty_like(intended).normal_(generator=self._generator)
            executed = (intended + self._noise * noise).clamp(-1, 1)
        tensordict.set(EXPERT_ACTION_KEY, intended)
        return tensordict.set(ACTION_KEY, executed)


def plan(scene: Scene) -> Tensor:
    """Return the expert's next action, ``[N, 2]``, of length at most one."""
    index = torch.arange(scene.blocks.shape[1], device=scene.target.device)
    is_target = index == scene.target.unsqueeze(-1)
    goal, pushing = _goal(scene)
    # Reaching travels above the blocks; pushing goes around them, and around the
    # named one too until it is behind it.
    avoid = scene.is_push.unsqueeze(-1) & ~(is_target & pushing.unsqueeze(-1))
    step = _around(scene, goal, avoid)
    length = step.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    return step / length.clamp_min(MAX_SPEED)


def _goal(scene: Scene) -> tuple[Tensor, Tensor]:
    """Return the goal, and a mask of the grippers that may push (behind the block)."""
    block, direction = scene.target_block, scene.place_direction
    offset = scene.gripper - block
    along = (offset * direction).sum(-1)
    aside = (offset - along.unsqueeze(-1) * direction).norm(dim=-1)
    pushing = scene.is_push & (along < -0.5 * CONTACT) & (aside < 0.05)
    behind = (block - (CONTACT + 0.04) * direction).clamp(-1, 1)
    approach = torch.where(pushing.unsqueeze(-1), block, behind)
    return torch.where(scene.is_push.unsqueeze(-1), approach, block), pushing


def _around(scene: Scene, goal: Tensor, avoid: Tensor) -> Tensor:
    """Return the vector to the goal, or past the first block in the way to it."""
    to_goal = goal - scene.gripper
    distance = to_goal.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    ahead = to_goal / distance
    left = torch.stack([-ahead[:, 1], ahead[:, 0]], -1)
    offset = scene.blocks - scene.gripper.unsqueeze(1)
    along = (offset * ahead.unsqueeze(1)).sum(-1)
    aside = (offset * left.unsqueeze(1)).sum(-1)  # > 0: the block is to the left
    reach = (distance + 0.5 * CONTACT).clamp_max(_LOOK_AHEAD)
    # A goal beside a block must not lie inside the circle that is kept around it.
    room = (scene.blocks - goal.unsqueeze(1)).norm(dim=-1) - 0.02
    clearance = room.clamp(CONTACT + 0.02, _CLEARANCE)
    blocking = avoid & (along > 0) & (along < reach) & (aside.abs() < clearance)
    first = along.masked_fill(~blocking, torch.inf).argmin(-1, keepdim=True)
    block = scene.blocks.gather(1, first.unsqueeze(-1).expand(-1, 1, 2))[:, 0]
    side = torch.where(aside.gather(1, first) > 0, -1.0, 1.0)
    waypoint = block + side * (clearance.gather(1, first) + 0.02) * left
    detour = waypoint - scene.gripper
    return torch.where(blocking.any(-1, keepdim=True), detour, to_goal)
