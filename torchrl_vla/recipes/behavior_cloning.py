"""Behavior cloning as a function that a user could have written."""

from __future__ import annotations

from collections.abc import Callable

from tensordict import NestedKey
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torchrl.data.replay_buffers import Storage
from torchrl.envs import Compose

from torchrl_vla.objectives import CloningOptions
from torchrl_vla.policies import VLAWrapperBase, as_policy
from torchrl_vla.recipes.model_space import ModelSpace, chunk_targets
from torchrl_vla.recipes.open_dataset import Demonstrations
from torchrl_vla.recipes.policy_factory import make_cloning_loss
from torchrl_vla.recipes.training_loop import (
    TrainingLog,
    check_budget,
    run_training,
    warmup_cosine,
)
from torchrl_vla.schema import mark_space


def train_behavior_cloning(
    policy: VLAWrapperBase,
    dataset: Demonstrations,
    *,
    space: ModelSpace | None = None,
    steps: int = 1000,
    batch_size: int = 128,
    lr: float = 1e-3,
    weight_decay: float = 1e-4,
    max_grad_norm: float = 1.0,
    ema_decay: float | None = 0.99,
    loss_function: str = "l1",
    weight_key: NestedKey | None = None,
    seed: int = 0,
    log_interval: int = 25,
    callback: Callable[[int], None] | None = None,
    progress: bool = True,
) -> TrainingLog:
    """Clone demonstrations: i.i.d. frames, chunk targets, masked loss, AdamW.

    The loss is the head's own: regression, cross-entropy of tokens, flow matching or
    denoising.
    The learning rate warms up over a twentieth of the steps and follows a cosine to
    zero. At the end the policy holds the exponential moving average of its weights,
    which is steadier than the last ones.

    Args:
        policy: trained in place; needs all its parameters (give it ``state_dim``). Any
            head of :func:`make_policy`.
        dataset: the demonstrations.
        space: how targets and states are normalized; ``ModelSpace(dataset.metadata)``
            by default. Act with the same one.
        steps: optimizer steps.
        batch_size: frames per step.
        lr: peak learning rate.
        weight_decay: of AdamW.
        max_grad_norm: gradients are clipped to this norm.
        ema_decay: of the moving average; None = keep the last weights.
        loss_function: of ``BCLoss``, for heads that predict a chunk.
        weight_key: of the frames' weights, e.g. ``"sample_weight"``; None = frames
            count alike, and ones that have a ``sample_weight`` are refused.
        seed: of the batches. The initial weights are the policy's.
        log_interval: steps between two entries of the log.
        callback: called with the step after each entry, e.g. to evaluate.
        progress: True = show a progress bar.

    Returns:
        The learning curve.

    Raises:
        ValueError: ``steps`` or ``batch_size`` is not positive.
        RuntimeError: the loss is not finite; names the step.
    """
    check_budget("train_behavior_cloning", steps, batch_size)
    space = ModelSpace(dataset.metadata) if space is None else space
    policy = as_policy(policy)
    mark_space(policy, space.policy_space)
    buffer = dataset.replay_buffer(
        batch_size,
        transform=make_training_transform(policy, space, dataset.storage),
        seed=seed,
    )
    loss_module = make_cloning_loss(policy, CloningOptions(loss_function))
    loss_module.set_keys(weight=weight_key)
    optimizer = AdamW(policy.parameters(), lr=lr, weight_decay=weight_decay)
    return run_training(
        "train_behavior_cloning",
        loss_module,
        buffer,
        policy=policy,
        optimizer=optimizer,
        schedule=LambdaLR(optimizer, warmup_cosine(steps)),
        steps=steps,
        max_grad_norm=max_grad_norm,
        ema_decay=ema_decay,
        log_interval=log_interval,
        callback=callback,
        progress=progress,
    )


def make_training_transform(
    policy: VLAWrapperBase, space: ModelSpace | None, storage: Storage
) -> Compose:
    """Return what turns sampled frames into a policy's training targets.

    Args:
        policy: gives ``H`` and, for tokens, the tokenizer.
        space: how actions and states are normalized; None = not at all.
        storage: of the buffer that is sampled; chunks are gathered from it.
    """
    policy = as_policy(policy)
    if space is None:
        transform = Compose(chunk_targets(policy.chunk_size, storage))
    else:
        transform = space.transforms(policy.chunk_size, storage)
    targets = policy.make_target_transform()
    if targets is not None:
        transform.append(targets)
    return transform
