"""Training batch of a LeRobot policy, from a tensordict with chunk targets."""

from __future__ import annotations

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from torchrl_vla.policies.lerobot.lerobot_types import Batch
from torchrl_vla.policies.lerobot.run.pretrained_policy import PretrainedPolicy
from torchrl_vla.schema import ACTION_IS_PAD_KEY, ACTION_KEY, SchemaError


def make_training_batch(
    policy: PretrainedPolicy, tensordict: TensorDictBase, chunk_key: NestedKey
) -> Batch:
    """Return the preprocessed batch of LeRobot's own training step.

    Args:
        policy: LeRobot's policy with its processors.
        tensordict: ``[*B]``, in robot space, with targets and their mask.
        chunk_key: of the targets ``[*B, H, A]``.

    Raises:
        SchemaError: targets or mask have another shape or begin at another step.
    """
    config, frames = policy.config, policy.make_frames(tensordict)
    batch = dict(frames[-1])
    if config.observation_delta_indices is not None:
        for name, value in batch.items():
            if isinstance(value, Tensor):
                batch[name] = torch.stack([frame[name] for frame in frames], 1)
    steps = policy.target_steps
    chunk = policy.reader.read(tensordict, chunk_key)
    is_pad = policy.reader.read(tensordict, ACTION_IS_PAD_KEY)
    expected = (*tensordict.batch_size, len(steps), policy.action_dim)
    if chunk.shape != expected or is_pad.shape != expected[:-1]:
        raise SchemaError(
            f"LeRobotPolicyWrapper: expected targets [*B, H, A] = {list(expected)} "
            f"at {chunk_key!r} and a mask [*B, H], got {list(chunk.shape)} and "
            f"{list(is_pad.shape)}. Make them with ActionChunkTransform("
            f"{len(steps)}, storage=..., first_step={steps[0]})."
        )
    _check_alignment(tensordict, chunk, steps[0])
    batch["action"] = chunk.reshape(-1, *expected[-2:])
    is_pad = is_pad.reshape(-1, len(steps))
    batch = policy.preprocess({**batch, "action_is_pad": is_pad})
    # LeRobot 0.4.4's SmolVLA looks for the mask under the second name.
    is_pad = is_pad.to(policy.device)
    return {**batch, "action_is_pad": is_pad, "actions_id_pad": is_pad}


def _check_alignment(
    tensordict: TensorDictBase, chunk: Tensor, first_step: int
) -> None:
    """Refuse targets that begin at another step than the policy's do."""
    action = tensordict.get(ACTION_KEY, None)
    if action is None or torch.equal(chunk[..., -first_step, :], action):
        return
    raise SchemaError(
        f"LeRobotPolicyWrapper: expected targets that begin at step {first_step} "
        f"from the frame, got others: their element {-first_step} is not the "
        f"frame's own {ACTION_KEY!r}. Make them with first_step={first_step}, in "
        "robot space: the policy's preprocessor normalizes."
    )
