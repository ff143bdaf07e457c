"""Training LeRobot's policies as a function that a user could have written."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from torchrl_vla.objectives import LeRobotLoss
from torchrl_vla.policies import LeRobotPolicyWrapper, make_lerobot_policy
from torchrl_vla.policies.lerobot import KINDS, kind_of, lerobot_statistics
from torchrl_vla.recipes.open_dataset import Demonstrations, image_sizes_of
from torchrl_vla.recipes.training_loop import (
    TrainingLog,
    check_budget,
    run_training,
    warmup_cosine,
)
from torchrl_vla.schema import (
    ENVIRONMENT_STATE_KEY,
    INSTRUCTION_KEY,
    FeatureStatistics,
)
from torchrl_vla.transforms import ActionChunkTransform


def fit_lerobot_policy(
    policy: Path | str,
    dataset: Demonstrations,
    *,
    config: Mapping[str, Any] | None = None,
    device: str | None = None,
    **options: Any,
) -> LeRobotPolicyWrapper:
    """Make an untrained policy of LeRobot's for a dataset, or fit a checkpoint to it.

    Inputs, sizes and statistics are those of the dataset. A checkpoint keeps its inputs
    and the statistics of its images; those of actions and states become the dataset's,
    as in LeRobot's own training.

    Args:
        policy: one of LeRobot's types, such as ``"act"``; or a checkpoint to go on
            from, a folder or a repo id of the Hub.
        dataset: what it will be trained on, with ``train_lerobot``.

    Keyword Args:
        config: fields of the policy's configuration, e.g. ``{"chunk_size": 20}``.
        device: where the policy runs; None = the CPU, or where the checkpoint was
            trained.
        options: for a checkpoint, of ``LeRobotPolicyWrapper.from_pretrained``, such as
            ``rename_map``.

    Raises:
        MissingExtraError: ``lerobot`` is not installed.
        FileNotFoundError: there is neither such a type nor such a checkpoint.
        SchemaError: LeRobot refuses the configuration, or statistics are missing.
    """
    environment = dataset.frames.get(ENVIRONMENT_STATE_KEY, None)
    if environment is not None:
        environment = FeatureStatistics.from_samples(environment)
    if str(policy) not in KINDS:
        if str(policy).isidentifier() and not Path(policy).exists():
            kind_of(str(policy))  # says why this type is none of them
        return LeRobotPolicyWrapper.from_pretrained(
            policy,
            overrides=config,
            device=device,
            statistics=lerobot_statistics(dataset.metadata, environment),
            instructions=dataset.instructions,
            **options,
        )
    if options:
        raise TypeError(
            f"fit_lerobot_policy: expected {sorted(options)} beside a checkpoint, got "
            f"the type {str(policy)!r}, whose inputs are those of the dataset."
        )
    return make_lerobot_policy(
        str(policy),
        dataset.metadata,
        image_sizes=image_sizes_of(dataset),
        environment_statistics=environment,
        instructions=dataset.instructions,
        device=device or "cpu",
        config=config,
    )


def train_lerobot(
    policy: LeRobotPolicyWrapper,
    dataset: Demonstrations,
    *,
    steps: int = 1000,
    batch_size: int = 64,
    lr: float | None = None,
    max_grad_norm: float | None = None,
    ema_decay: float | None = None,
    train_on_padding: bool = False,
    seed: int = 0,
    log_interval: int = 25,
    callback: Callable[[int], None] | None = None,
    progress: bool = True,
) -> TrainingLog:
    """Train a LeRobot policy on demonstrations with its own loss and optimizer.

    It sees the same batches in the same order as ``train_behavior_cloning`` with the
    same dataset, batch size and seed, so two policies can be compared at the same
    budget. What is left out is LeRobot's: its optimizer with one learning rate per
    group of weights, its schedule, if it has one, and its limit on gradients. The
    surprise: ACT's learning rate there is 1e-5, made for a pretrained backbone and
    100,000 steps.

    Args:
        policy: trained in place.
        dataset: the demonstrations.
        steps: optimizer steps.
        batch_size: frames per step.
        lr: peak learning rate of all weights, with the warm-up and cosine of
            ``train_behavior_cloning``; None = LeRobot's rates and schedule.
        max_grad_norm: gradients are clipped to this norm; None = LeRobot's.
        ema_decay: of the moving average of the weights that the policy ends with; None
            = it keeps the last ones, as in LeRobot.
        train_on_padding: see :class:`~torchrl_vla.objectives.LeRobotLoss`.
        seed: of the batches and of the policy's own noise. The initial weights are the
            policy's.
        log_interval: steps between two entries of the log.
        callback: called with the step after each entry, e.g. to evaluate.
        progress: True = show a progress bar.

    Returns:
        The learning curve.

    Raises:
        ValueError: ``steps`` or ``batch_size`` is not positive.
        SchemaError: see :class:`~torchrl_vla.objectives.LeRobotLoss`.
        RuntimeError: the loss is not finite; names the step.
    """
    check_budget("train_lerobot", steps, batch_size)
    loss_module = LeRobotLoss(policy, train_on_padding=train_on_padding)
    _warn_of_deafness(policy, dataset)
    targets = policy.target_steps
    buffer = dataset.replay_buffer(
        batch_size,
        history_size=policy.history_size,
        # LeRobot's chunks know no end but the episode's, whatever `done` says.
        transform=ActionChunkTransform(
            len(targets),
            first_step=targets[0],
            storage=dataset.storage,
            done_key=None,
        ),
        seed=seed,
    )
    preset = policy.config.get_optimizer_preset()
    optimizer = preset.build(policy.policy.get_optim_params())
    if max_grad_norm is None:
        max_grad_norm = preset.grad_clip_norm
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return run_training(
            "train_lerobot",
            loss_module,
            buffer,
            policy=policy,
            optimizer=optimizer,
            schedule=_make_schedule(policy, optimizer, lr, steps),
            steps=steps,
            max_grad_norm=max_grad_norm,
            ema_decay=ema_decay,
            log_interval=log_interval,
            callback=callback,
            progress=progress,
        )


def _warn_of_deafness(policy: LeRobotPolicyWrapper, dataset: Demonstrations) -> None:
    ids = dataset.frames.get(INSTRUCTION_KEY, None)
    if ids is None or policy.keys.instruction is not None:
        return
    texts = dataset.instructions.decode(torch.as_tensor(ids).unique())
    if len(texts) > 1:
        name = type(policy.policy).__name__
        warnings.warn(
            f"train_lerobot: expected one instruction for {name}, which reads no text, "
            f"got {len(texts)}: {texts[:3]}. It can only learn their average. Select "
            "the episodes of one, or train a policy that reads.",
            stacklevel=3,
        )


def _make_schedule(
    policy: LeRobotPolicyWrapper, optimizer: Optimizer, lr: float | None, steps: int
) -> Any | None:
    """Return the schedule of the learning rate; None = it is constant."""
    if lr is None:
        preset = policy.config.get_scheduler_preset()
        return None if preset is None else preset.build(optimizer, steps)
    for group in optimizer.param_groups:
        group["lr"] = lr
    return LambdaLR(optimizer, warmup_cosine(steps))
