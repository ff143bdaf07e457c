"""Sparse reward from the success flag."""

from __future__ import annotations

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from torch import Tensor
from torchrl.data import Binary, Bounded, Composite
from torchrl.envs import Transform

from torchrl_vla._internal.env_masks import env_mask
from torchrl_vla.schema import SUCCESS_KEY, MissingKeyError, read_flags


class SuccessReward(Transform):
    """Reward success, and nothing else.

    In an environment, the first step of an episode that leads to a success, or that
    begins in one, is rewarded, and no other: the return is ``scale`` or 0 also where
    the episode goes on after a success. A reset has no reward. In data with a ``next``
    every success is rewarded, and both keys are those under ``next``.

    **Reads** ``success`` bool ``[*B, 1]``; in an environment also
    ``success_so_far``. **Writes** ``reward`` float of the same shape: ``scale`` or 0;
    in an environment ``success_so_far`` bool ``[*B, 1]``, True = the reward of this
    episode was paid.

    Args:
        success_key: True = task achieved.
        reward_key: the reward, overwritten.

    Keyword Args:
        scale: the reward of a success.

    Raises:
        MissingKeyError: there is no success at ``success_key``; or a step does not
            carry ``success_so_far`` from the step or reset before.
        SchemaError: success is something else than bool, or 0 and 1.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> data = TensorDict({"success": torch.tensor([[True], [False]])}, [2])
        >>> SuccessReward(scale=2.0)(data)["reward"]
        tensor([[2.],
                [0.]])
    """

    def __init__(
        self,
        success_key: NestedKey = SUCCESS_KEY,
        reward_key: NestedKey = "reward",
        *,
        scale: float = 1.0,
    ) -> None:
        super().__init__(in_keys=[success_key], out_keys=[reward_key])
        self.scale = float(scale)
        *path, name = (success_key,) if isinstance(success_key, str) else success_key
        self.so_far_key: NestedKey = unravel_key((*path, f"{name}_so_far"))

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the reward of sampled data."""
        tensordict = tensordict.copy()  # buffer[:] hands out the storage itself
        self._call(tensordict.get("next", tensordict))
        return tensordict

    def _call(self, next_tensordict: TensorDictBase) -> TensorDictBase:
        success = self._success(next_tensordict)
        return next_tensordict.set(self.out_keys[0], self._apply_transform(success))

    def _step(
        self, tensordict: TensorDictBase, next_tensordict: TensorDictBase
    ) -> TensorDictBase:
        paid = tensordict.get(self.so_far_key, None)
        if paid is None:
            raise MissingKeyError(
                f"SuccessReward: expected bool [*B, 1] at {self.so_far_key!r} of a "
                "step in an environment, got none. Step from the tensordict that "
                "reset() or step_mdp() returned, which carries it."
            )
        steps = env_mask(tensordict.get("_step", None), paid.shape[:-1], paid.device)
        before, after = self._success(tensordict), self._success(next_tensordict)
        achieved = paid | (steps.unsqueeze(-1) & (before | after))
        next_tensordict.set(self.so_far_key, achieved)
        gained = self._apply_transform(achieved & ~paid)
        return next_tensordict.set(self.out_keys[0], gained)

    def _reset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        paid = torch.zeros_like(self._success(tensordict_reset))
        known = tensordict.get(self.so_far_key, None)
        mask = tensordict.get("_reset", None)
        if known is not None and mask is not None:
            paid = known & ~mask.reshape(known.shape)
        return tensordict_reset.set(self.so_far_key, paid)

    def _success(self, tensordict: TensorDictBase) -> Tensor:
        success = tensordict.get(self.in_keys[0], None)
        if success is None:
            raise MissingKeyError(
                f"SuccessReward: expected a success flag at {self.in_keys[0]!r}, got "
                "nothing. Available: "
                f"{sorted(map(str, tensordict.keys(True, True)))}."
            )
        return read_flags("SuccessReward", self.in_keys[0], success)

    def _apply_transform(self, success: Tensor) -> Tensor:
        return success.to(torch.get_default_dtype()) * self.scale

    def transform_output_spec(self, output_spec: Composite) -> Composite:
        """Describe the reward as 0 or ``scale``, of the success flag's shape."""
        output_spec = output_spec.clone()
        success_key = unravel_key(self.in_keys[0])
        for name in ("full_observation_spec", "full_done_spec"):
            if success_key in output_spec[name].keys(True, True):
                leaf = output_spec[name][success_key]
                break
        else:
            raise MissingKeyError(
                f"SuccessReward: expected {success_key!r} in the environment's "
                "observations, got "
                f"{list(output_spec['full_observation_spec'].keys(True, True))}. Pass "
                "its key as success_key."
            )
        output_spec["full_reward_spec"][self.out_keys[0]] = Bounded(
            low=min(0.0, self.scale),
            high=max(0.0, self.scale),
            shape=leaf.shape,
            device=leaf.device,
            dtype=torch.get_default_dtype(),
        )
        output_spec["full_observation_spec"][self.so_far_key] = Binary(
            shape=leaf.shape, device=leaf.device, dtype=torch.bool
        )
        return output_spec
