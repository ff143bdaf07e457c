"""Transform that does not step the environments that wait for the others."""

from __future__ import annotations

import torch
from tensordict import NonTensorStack, TensorDictBase, is_leaf_nontensor, is_non_tensor
from torch import Tensor
from torchrl.data import Binary, TensorSpec
from torchrl.envs import Transform
from torchrl.envs.batched_envs import BatchedEnvBase

from torchrl_vla.schema import IS_WAITING_KEY, ExecutionError
from torchrl_vla.transforms.placement import acts_in_environment


class SkipWaiting(Transform):
    """Skip the step of the environments that an executor makes wait.

    An executor with ``align=True`` lets an environment that begins an episode wait
    until the others plan again. Append this as the last transform: it masks these
    environments with TorchRL's ``_step`` and restores what the transforms before it
    counted for them (a ``StepCounter``'s steps, ``InitTracker``'s mark), so that
    waiting changes nothing. Executors do not write ``_step`` themselves: it would stay
    in the rollout, clash with the mask that ``rollout`` writes, and step the transforms
    of the environments that are skipped.

    **Reads** ``is_waiting`` bool ``[*B, 1]``, as the executor wrote it.

    **Writes** into ``next``, for environments that wait: the values from before the
    step, and reward 0. ``is_waiting`` False everywhere, also at reset, which tells the
    executor that environments may wait.

    Raises:
        ExecutionError: an environment waits whose worker of a ``SerialEnv`` or
            ``ParallelEnv`` has others that do not.

    Examples:
        >>> import torch
        >>> from torchrl.envs import TransformedEnv
        >>> from torchrl_vla.envs import ToyVLAEnv
        >>> env = TransformedEnv(ToyVLAEnv(batch_size=[2]), SkipWaiting())
        >>> step = env.reset().set("action", torch.ones(2, 4))
        >>> step["is_waiting"] = torch.tensor([[True], [False]])
        >>> after = env.step(step)["next"]
        >>> after["observation", "state"][:, 0], after["reward"].flatten()
        (tensor([0., 1.]), tensor([ 0., -2.]))
    """

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Refuse: there is nothing to skip outside an environment."""
        if not acts_in_environment(self):
            raise ExecutionError(
                "SkipWaiting: expected to be in a TransformedEnv, got called as a "
                "module or on a replay buffer. Use env.append_transform(SkipWaiting())."
            )
        return super().forward(tensordict)

    def _inv_call(self, tensordict: TensorDictBase) -> TensorDictBase:
        waiting = _waiting(tensordict)
        if waiting is None or not waiting.any():
            return tensordict
        steps = ~waiting
        mask = tensordict.get("_step", None)
        if mask is not None:
            steps = steps & mask.reshape(steps.shape)
        self._check_workers(steps)
        return tensordict.set("_step", steps)

    def _step(
        self, tensordict: TensorDictBase, next_tensordict: TensorDictBase
    ) -> TensorDictBase:
        waiting = _waiting(tensordict)
        if waiting is not None and waiting.any():
            rewards = set(self.parent.reward_keys)
            for key, new in next_tensordict.items(True, True, is_leaf_nontensor):
                old = 0 if key in rewards else tensordict.get(key, None)
                if old is not None:
                    next_tensordict.set(key, _choose(waiting, old, new))
        return self._mark(next_tensordict)

    def _reset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        return self._mark(tensordict_reset)

    def _mark(self, tensordict: TensorDictBase) -> TensorDictBase:
        shape = (*self.parent.batch_size, 1)
        none = torch.zeros(shape, dtype=torch.bool, device=tensordict.device)
        return tensordict.set(IS_WAITING_KEY, none)

    def transform_observation_spec(self, observation_spec: TensorSpec) -> TensorSpec:
        """Announce ``is_waiting``."""
        observation_spec[IS_WAITING_KEY] = Binary(
            shape=(*observation_spec.shape, 1),
            dtype=torch.bool,
            device=observation_spec.device,
        )
        return observation_spec

    def _check_workers(self, steps: Tensor) -> None:
        base = self.container.base_env
        if not isinstance(base, BatchedEnvBase) or steps.ndim == 1:
            return
        workers = steps.flatten(1)
        if (workers != workers[:, :1]).any():
            raise ExecutionError(
                "SkipWaiting: expected the environments of a worker of "
                f"{type(base).__name__} to wait together, got some that wait and some "
                "that do not: workers are stepped whole. Batch them in one "
                "environment, or give each its own worker. No action was sent."
            )


def _waiting(tensordict: TensorDictBase) -> Tensor | None:
    waiting = tensordict.get(IS_WAITING_KEY, None)
    return None if waiting is None else waiting.reshape(tensordict.batch_size)


def _choose(
    mask: Tensor, old: Tensor | NonTensorStack, new: Tensor | NonTensorStack
) -> Tensor | NonTensorStack:
    if is_non_tensor(new):
        chosen = new.clone()
        chosen[mask] = old[mask]
        return chosen
    return torch.where(
        mask.reshape(*mask.shape, *[1] * (new.ndim - mask.ndim)), old, new
    )
