"""Policy that draws its actions at random: the floor of every benchmark."""

from __future__ import annotations

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.data import TensorSpec

from torchrl_vla.errors import ArgumentTypeError
from torchrl_vla.rollout.random_numbers import normals, uniforms
from torchrl_vla.schema import ACTION_KEY, NOISE_SEED_KEY


class RandomActions(TensorDictModuleBase):
    """Draw each action uniformly between its bounds; where there are none, normally.

    What a policy has to beat: the success rate of chance. In ``evaluate`` an action is
    a function of the episode's seed and the step alone, as of every policy here that
    samples. It chooses no mode: a deterministic evaluation draws as well.

    **Reads**, where it is, ``noise_seed`` int64 ``[*B]``; without it, PyTorch's global
    generator is drawn from. **Writes** ``action`` ``[*B, A]``, of the spec's dtype.

    Args:
        action_spec: of the environment's actions, ``[*B, A]``.
        action_key: of the action.

    Raises:
        ArgumentTypeError: the actions are no floating-point numbers.

    Examples:
        >>> from torchrl_vla.envs import TabletopEnv
        >>> env = TabletopEnv(3, image_size=16)
        >>> actions = RandomActions(env.action_spec)(env.reset())["action"]
        >>> bool(env.action_spec.is_in(actions))
        True
    """

    def __init__(
        self, action_spec: TensorSpec, action_key: NestedKey = ACTION_KEY
    ) -> None:
        super().__init__()
        if not action_spec.dtype.is_floating_point:
            raise ArgumentTypeError(
                "RandomActions: expected actions of floating-point numbers at "
                f"action_spec, got {type(action_spec).__name__} of "
                f"{action_spec.dtype}. Use torchrl.modules.RandomPolicy there."
            )
        self.in_keys: list[NestedKey] = []
        self.optional_in_keys: list[NestedKey] = [NOISE_SEED_KEY]
        self.out_keys = [action_key]
        self._spec = action_spec
        self.noise_source = "noise_seed"  # in the provenance of evaluations

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Draw and write the actions."""
        spec = self._spec
        seeds = tensordict.get(NOISE_SEED_KEY, None)
        if seeds is None:
            seeds = torch.randint(2**62, spec.shape[:-1], device=spec.device)
        drawn = _draw(seeds.reshape(spec.shape[:-1]), spec).to(spec.dtype)
        return tensordict.set(self.out_keys[0], drawn)


def _draw(seeds: Tensor, spec: TensorSpec) -> Tensor:
    count = spec.shape[-1]
    free = normals(seeds, count)
    space = spec.space
    if space is None:
        return free
    low, high = (x.to(free.dtype).expand(spec.shape) for x in (space.low, space.high))
    width = high - low  # beyond a float's range where there are no bounds
    is_bounded = width.isfinite() & (width < torch.finfo(spec.dtype).max)
    part = uniforms(seeds, count).to(free.dtype)
    bounded = low + part * torch.where(is_bounded, width, 0.0)
    return torch.where(is_bounded, bounded, free)
