"""Environment transform that executes a chunk of actions per outer step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from tensordict import (
    NestedKey,
    TensorDict,
    TensorDictBase,
    is_leaf_nontensor,
    is_non_tensor,
)
from torch import Tensor
from torchrl.data import Binary, Composite, TensorSpec, Unbounded
from torchrl.envs import Compose, EnvBase, Transform
from torchrl.envs.batched_envs import BatchedEnvBase

from torchrl_vla._internal.torchrl_spellings import torchrl_spellings
from torchrl_vla.schema import (
    ACTION_CHUNK_KEY,
    ACTION_KEY,
    EXECUTED_STEPS_KEY,
    IMAGE_IS_STALE_KEY,
    IS_EXECUTED_KEY,
    OBSERVATION_NEEDED_KEY,
    SUCCESS_KEY,
    ExecutionError,
    MissingKeyError,
    check_actions,
    check_positive_int,
)
from torchrl_vla.transforms.placement import acts_in_environment

# Carries the chunk from the way in to the way out of one step, in the copy of the
# tensordict that a step works on: chunk_key itself may be overwritten by the action.
_CHUNK_IN_EXECUTION = "_multi_action_chunk"


@torchrl_spellings(
    same={"dim": (1, -2), "stack_observations": (False,)},
    instead={
        "dim": "a chunk [*B, H, A]: its actions are along the last dimension but one",
        "stack_rewards": "none: the rewards of the executed steps are summed",
        "stack_observations": "an executor such as MultiStepActorWrapper around the "
        "policy, whose rollout has every step",
    },
)
class MultiAction(Transform):
    """Execute a whole chunk of actions in one step of the environment.

    The policy is called once per outer step and each transition is one decision: the
    policy's other outputs (tokens, log-probs) need no bookkeeping. An episode that ends
    inside the chunk stops there: that environment keeps its final observation, and its
    later actions are not executed even when the others continue.

    Note:
        Transforms before this one run at every base step (a ``SuccessReward`` there is
        summed), transforms after it once per outer step (there it reads a success that
        happened at any position). Environments made with ``render_on_demand=True``
        render no image between two decisions.

    **Reads** ``action_chunk`` ``[*B, H, A]`` (``chunk_key``); robot space, or what the
    transforms before this one turn into it.

    **Writes** for the base environment ``action`` and ``observation_needed`` bool
    ``[*B, 1]``, True at the last base step. Writes into ``next`` the reward summed
    over the executed base steps, ``success`` True if it was True after any of them,
    ``executed_steps`` int64 ``[*B, 1]``, ``is_executed`` bool ``[*B, H]`` (True = that
    position of the chunk was executed), and everything else as after the last executed
    base step. At reset both are zero. Discount by ``gamma ** executed_steps``.

    Args:
        chunk_size: ``H``. None leaves it to the policy; the specs are then dynamic.

    Keyword Args:
        replan_interval: actions to execute per decision (receding horizon); None =
            the whole chunk.
        chunk_key: the policy's key of the chunk; may equal ``action_key``.
        action_key: the base environment's key of one action.
        success_key: the success flag, where the environment has one.

    Raises:
        ValueError: ``replan_interval`` is not in ``1 .. chunk_size``.
        MissingKeyError: the tensordict of a step has no chunk.
        ExecutionError: the chunk is not ``[*B, H, A]`` with the announced ``H``; or
            a transform before this one ended an episode of an environment that
            renders on demand, which could not render its end.

    Examples:
        >>> import torch
        >>> from torchrl.envs import TransformedEnv
        >>> from torchrl_vla.envs import ToyVLAEnv
        >>> base = ToyVLAEnv(action_dim=2, state_dim=4, success_steps=2, seed=0)
        >>> env = TransformedEnv(base, MultiAction(4))
        >>> step = env.reset()
        >>> step["action_chunk"] = step["observation", "state"][2:].expand(4, 2)
        >>> after = env.step(step)["next"]
        >>> after["success"], after["executed_steps"], after["is_executed"]
        (tensor([True]), tensor([2]), tensor([ True,  True, False, False]))
    """

    def __init__(
        self,
        chunk_size: int | None = None,
        *,
        replan_interval: int | None = None,
        chunk_key: NestedKey = ACTION_CHUNK_KEY,
        action_key: NestedKey = ACTION_KEY,
        success_key: NestedKey = SUCCESS_KEY,
    ) -> None:
        super().__init__(in_keys_inv=[action_key], out_keys_inv=[chunk_key])
        for name, value in (
            ("chunk_size", chunk_size),
            ("replan_interval", replan_interval),
        ):
            if value is not None:
                check_positive_int("MultiAction", name, value)
        if chunk_size is not None and (replan_interval or 1) > chunk_size:
            raise ValueError(
                f"MultiAction: expected replan_interval in 1..chunk_size={chunk_size}, "
                f"got {replan_interval}. A chunk cannot be executed for longer than it "
                "is."
            )
        self.chunk_size = chunk_size
        self.replan_interval = replan_interval
        self.success_key = success_key
        self._width: list[int] | None = None

    @classmethod
    def from_vla(
        cls,
        chunk_size: int | None = None,
        *,
        replan_interval: int | None = None,
        action_key: NestedKey = ACTION_KEY,
    ) -> MultiAction:
        """Build one for the canonical schema: the chunk is at ``"action_chunk"``."""
        return cls(
            chunk_size,
            replan_interval=replan_interval,
            chunk_key=ACTION_CHUNK_KEY,
            action_key=action_key,
        )

    @property
    def chunk_key(self) -> NestedKey:
        """Key at which the policy writes the chunk."""
        return self.out_keys_inv[0]

    @property
    def action_key(self) -> NestedKey:
        """Key at which the base environment reads one action."""
        return self.in_keys_inv[0]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Refuse: there is nothing to execute outside an environment."""
        self._refuse_to_be_detached()
        return super().forward(tensordict)

    def _refuse_to_be_detached(self) -> None:
        if not acts_in_environment(self):
            raise ExecutionError(
                "MultiAction: expected to be in a TransformedEnv, got called as a "
                "module or on a replay buffer. Use "
                "env.append_transform(MultiAction(...))."
            )

    # One outer step: the ordinary flow of TransformedEnv executes position 0, between
    # _inv_call and _step; _step executes the others.

    def _inv_call(self, tensordict: TensorDictBase) -> TensorDictBase:
        self._refuse_to_be_detached()
        chunk = tensordict.get(self.chunk_key, None)
        self._check_chunk(chunk, tensordict)
        tensordict.set(_CHUNK_IN_EXECUTION, chunk)
        is_last = 1 in (self.replan_interval, chunk.shape[-2])
        tensordict.set(OBSERVATION_NEEDED_KEY, _flag(tensordict, is_last))
        return tensordict.set(self.action_key, chunk[..., 0, :])

    def _step(
        self, tensordict: TensorDictBase, next_tensordict: TensorDictBase
    ) -> TensorDictBase:
        chunk = tensordict.get(_CHUNK_IN_EXECUTION)
        after, env = next_tensordict, self.container
        rewards = [key for key in self.parent.reward_keys if key in after.keys(True)]
        running = _mask_of_step(tensordict)
        totals = {key: after.pop(key) for key in rewards}
        success = after.get(self.success_key, None)
        executed = [running]
        inputs = _entries_beside(tensordict, after)
        actions = chunk[..., 1 : self.replan_interval, :].unbind(-2)
        for position, action in enumerate(actions, start=1):
            running = running & ~_done(after)
            if not running.any():
                break
            executed.append(running)
            before = after.copy()
            for key, value in inputs.items():
                before.set(key, value)
            before.set(OBSERVATION_NEEDED_KEY, _flag(before, position == len(actions)))
            outcome = self._base_step(env.base_env, before, action, running)
            for key in rewards:
                reward = outcome.pop(key)
                gained = torch.where(_like(running, reward), reward, 0)
                totals[key] = totals[key] + gained
            after = _choose(running, outcome, after)
            if success is not None:
                success = success | after.get(self.success_key)
        _check_ends_are_drawn(after)
        after.update(totals)
        if success is not None:
            after.set(self.success_key, success)
        return self._write_executed(after, executed, chunk.shape[-2])

    def _base_step(
        self, base: EnvBase, before: TensorDictBase, action: Tensor, running: Tensor
    ) -> TensorDictBase:
        """Step the base environment through the transforms before this one."""
        before.set(self.action_key, action)
        before.pop("_step", None)
        if base.batch_locked and not running.all():
            before.set("_step", _mask_for(base, running))
        transforms = list(self._transforms_before())
        for transform in reversed(transforms):
            before = transform._inv_call(before)
        outcome = base._step(before)
        base._complete_done(base.full_done_spec, outcome)
        for transform in transforms:
            outcome = transform._step(before, outcome)
        return outcome

    def _transforms_before(self) -> Iterator[Transform]:
        # The originals rather than the clones in self.parent, so that a transform
        # that counts or records sees every base step.
        for transform in _leaves(self.container.transform):
            if transform is self:
                return
            yield transform

    def _write_executed(
        self, after: TensorDictBase, executed: list[Tensor], chunk_size: int
    ) -> TensorDictBase:
        is_executed = torch.stack(executed, -1)
        missing = chunk_size - len(executed)
        is_executed = torch.nn.functional.pad(is_executed, (0, missing))
        after.set(EXECUTED_STEPS_KEY, is_executed.sum(-1, keepdim=True))
        return after.set(IS_EXECUTED_KEY, is_executed)

    def _reset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        shape = (*tensordict_reset.batch_size, self.chunk_size or 1)
        nothing = torch.zeros(shape, dtype=torch.bool, device=tensordict_reset.device)
        tensordict_reset.set(EXECUTED_STEPS_KEY, nothing[..., :1].long())
        return tensordict_reset.set(IS_EXECUTED_KEY, nothing)

    def transform_input_spec(self, input_spec: Composite) -> Composite:
        """Announce the chunk ``[*B, H, A]`` in place of the action ``[*B, A]``."""
        action_spec = input_spec["full_action_spec"]
        leaf = action_spec[self.action_key]
        del action_spec[self.action_key]
        dim = len(leaf.shape) - 1
        shape = (*leaf.shape[:dim], self.chunk_size or -1, leaf.shape[dim])
        action_spec[self.chunk_key] = leaf.unsqueeze(dim).expand(shape)
        input_spec["full_action_spec"] = action_spec
        return input_spec

    def transform_observation_spec(self, observation_spec: TensorSpec) -> TensorSpec:
        """Announce ``executed_steps`` and ``is_executed``."""
        batch, device = observation_spec.shape, observation_spec.device
        observation_spec[EXECUTED_STEPS_KEY] = Unbounded(
            shape=(*batch, 1), dtype=torch.int64, device=device
        )
        observation_spec[IS_EXECUTED_KEY] = Binary(
            shape=(*batch, self.chunk_size or -1), dtype=torch.bool, device=device
        )
        return observation_spec

    def transform_reward_spec(self, reward_spec: TensorSpec) -> TensorSpec:
        """Lift the bounds of the reward: a sum of base rewards may leave them."""
        for key, leaf in list(reward_spec.items(True, True)):
            reward_spec[key] = Unbounded(
                shape=leaf.shape, dtype=leaf.dtype, device=leaf.device
            )
        return reward_spec

    def _check_chunk(self, chunk: Tensor | None, tensordict: TensorDictBase) -> None:
        if chunk is None:
            raise MissingKeyError(
                f"MultiAction: expected a chunk [*B, H, A] at {self.chunk_key!r}, got "
                f"only {sorted(map(str, tensordict.keys(True, True)))}. Name the "
                "policy's key with chunk_key=... No action was sent."
            )
        check_actions(
            "MultiAction",
            self.chunk_key,
            chunk,
            tensordict.batch_size,
            (self.chunk_size, self._action_dim()),
            rows=_mask_of_step(tensordict),
            error=ExecutionError,
        )
        if chunk.shape[-2] < (self.replan_interval or 1):
            raise ExecutionError(
                "MultiAction: expected at least "
                f"replan_interval={self.replan_interval} actions at "
                f"{self.chunk_key!r}, got {chunk.shape[-2]}. No action was sent."
            )

    def _action_dim(self) -> int | None:
        """Return ``A`` as the base environment has it; None = its actions have none."""
        if self._width is None:
            leaf = self.parent.full_action_spec[self.action_key]
            self._width = list(leaf.shape[self.parent.ndim :])
        return self._width[0] if len(self._width) == 1 else None


def _leaves(transform: Transform) -> Iterator[Transform]:
    if isinstance(transform, Compose):
        for child in transform.transforms:
            yield from _leaves(child)
    else:
        yield transform


def _entries_beside(
    tensordict: TensorDictBase, after: TensorDictBase
) -> dict[NestedKey, Any]:
    """Return the inputs of a step that it does not return, such as an instruction."""
    given_back = set(after.keys(True, True, is_leaf=is_leaf_nontensor))
    entries = tensordict.items(True, True, is_leaf=is_leaf_nontensor)
    return {key: value for key, value in entries if key not in given_back}


def _mask_of_step(tensordict: TensorDictBase) -> Tensor:
    mask = tensordict.get("_step", None)
    if mask is None:
        return torch.ones(
            tensordict.batch_size, dtype=torch.bool, device=tensordict.device
        )
    return mask.reshape(tensordict.batch_size)


def _done(after: TensorDictBase) -> Tensor:
    return after.get("done").reshape(after.batch_size)


def _flag(tensordict: TensorDictBase, value: bool) -> Tensor:
    shape = (*tensordict.batch_size, 1)
    return torch.full(shape, value, dtype=torch.bool, device=tensordict.device)


def _check_ends_are_drawn(after: TensorDictBase) -> None:
    is_stale = after.get(IMAGE_IS_STALE_KEY, None)
    if is_stale is None:
        return
    envs = is_stale.reshape(after.batch_size) & _done(after)
    if envs.any():
        raise ExecutionError(
            "MultiAction: expected the last image of an episode to be rendered, "
            f"got {IMAGE_IS_STALE_KEY!r} True at env indices "
            f"{envs.nonzero().tolist()}, which a transform before MultiAction has "
            "ended. Give the time limit to the "
            "environment (max_steps=...), or make it with render_on_demand=False."
        )


def _mask_for(base: EnvBase, running: Tensor) -> Tensor:
    # SerialEnv and ParallelEnv skip whole workers only; environments that a worker
    # steps although they have ended are dropped when outcomes are chosen.
    if isinstance(base, BatchedEnvBase) and running.ndim > 1:
        workers = running.flatten(1).any(-1)
        return _like(workers, running).expand_as(running)
    return running


def _like(mask: Tensor, value: Tensor) -> Tensor:
    return mask.reshape(mask.shape + (1,) * (value.ndim - mask.ndim))


def _choose(mask: Tensor, new: TensorDictBase, old: TensorDictBase) -> TensorDictBase:
    """Take ``new`` where the mask is True and ``old`` elsewhere, text included."""
    if mask.all():
        return new
    out = TensorDict({}, old.batch_size, device=old.device)
    for key, value in new.items(True, True, is_leaf=is_leaf_nontensor):
        kept = old.get(key)
        if is_non_tensor(value):
            chosen = kept.clone()
            chosen[mask] = value[mask]
        else:
            chosen = torch.where(_like(mask, value), value, kept)
        out.set(key, chosen)
    return out
