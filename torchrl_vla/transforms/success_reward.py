"""Sparse reward from the success flag."""

from __future__ import annotations

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from torch import Tensor
from torchrl.data import Bounded, Composite
from torchrl.envs import Transform

from torchrl_vla.schema import SUCCESS_KEY, MissingKeyError


class SuccessReward(Transform):
    """Reward success, and nothing else.

    In an environment, the reward of a step is that of the state it leads to; a reset
    has none. In data with a ``next``, both keys are those under ``next``, for the same
    reason.

    **Reads** ``success`` bool ``[*B, 1]``; **writes** ``reward`` float of the same
    shape: ``scale`` where it is True, else 0.

    Args:
        success_key: True = task achieved.
        reward_key: the reward, overwritten.

    Keyword Args:
        scale: the reward of a success.

    Raises:
        MissingKeyError: there is no success at ``success_key``.

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

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the reward of sampled data."""
        tensordict = tensordict.copy()  # buffer[:] hands out the storage itself
        self._call(tensordict.get("next", tensordict))
        return tensordict

    def _call(self, next_tensordict: TensorDictBase) -> TensorDictBase:
        success = next_tensordict.get(self.in_keys[0], None)
        if success is None:
            raise MissingKeyError(
                f"SuccessReward: expected a success flag at {self.in_keys[0]!r}, got "
                "nothing. Available: "
                f"{sorted(map(str, next_tensordict.keys(True, True)))}."
            )
        return next_tensordict.set(self.out_keys[0], self._apply_transform(success))

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
        return output_spec
