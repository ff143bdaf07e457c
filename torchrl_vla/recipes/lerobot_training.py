"""Training of LeRobot's policies with their own losses."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from torchrl_vla._internal.suggestions import did_you_mean
from torchrl_vla.data import check_labels
from torchrl_vla.objectives import LeRobotLoss
from torchrl_vla.policies import LeRobotPolicyWrapper, make_lerobot_policy
from torchrl_vla.policies.lerobot import KINDS, RobotFit, kind_of
from torchrl_vla.recipes.dataset_opening import Demonstrations, image_sizes_of
from torchrl_vla.recipes.relative_statistics import relative_action_statistics
from torchrl_vla.recipes.training_loop import (
    TrainingLog,
    constant_rate,
    run_training,
    warmup_cosine,
)
from torchrl_vla.recipes.training_settings import TrainingSettings
from torchrl_vla.schema import (
    ENVIRONMENT_STATE_KEY,
    INSTRUCTION_KEY,
    FeatureStatistics,
    SchemaError,
    mark_metadata,
)
from torchrl_vla.transforms import ActionChunkKeys, ActionChunkTransform

#: Arguments of ``from_pretrained`` that a fit sets itself, or that only acting reads.
_NOT_HERE = {"statistics", "instructions", "overrides", "fit", "action_dim", "dtype"}


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
    as in LeRobot's own training. Actions that a policy predicts relative to the state
    get the statistics of relative actions. A model that pads, such as pi0 and SmolVLA,
    is fitted to a robot with other numbers of actions and states.

    Args:
        policy: one of LeRobot's types, such as ``"act"``, or of an installed plugin's
            (with an entry in ``KINDS``, or ``predict_fn``); or a checkpoint, a folder
            or a repo id of the Hub.
        dataset: what it will be trained on, with ``train_lerobot``.

    Keyword Args:
        config: fields of the policy's configuration, e.g. ``{"chunk_size": 20}``.
        device: where the policy runs; None = the CPU, or where the checkpoint was
            trained.
        options: ``predict_fn``; for a checkpoint all others of
            ``LeRobotPolicyWrapper.from_pretrained``, such as ``rename_map``.

    Raises:
        MissingExtraError: ``lerobot`` is not installed.
        FileNotFoundError: there is neither such a type nor such a checkpoint.
        SchemaError: LeRobot refuses the configuration, statistics are missing, or the
            checkpoint does not take the robot's sizes.
        TypeError: an option has no effect.
    """
    environment = dataset.frames.get(ENVIRONMENT_STATE_KEY, None)
    if environment is not None:
        environment = FeatureStatistics.from_samples(environment)
    relative = partial(relative_action_statistics, dataset)
    names = dataset.metadata.action_names
    if names is not None and (config or {}).get("action_feature_names", names) != names:
        raise SchemaError(
            "fit_lerobot_policy: expected no 'action_feature_names' in config for "
            f"{dataset.metadata.dataset_id!r}, which has {names}. Leave it out."
        )
    is_type = str(policy).isidentifier() and not Path(policy).exists()
    if is_type and "predict_fn" not in options and str(policy) not in KINDS:
        _refuse_type(str(policy))
    if not is_type and str(policy) not in KINDS:
        if given := sorted(_NOT_HERE & options.keys()):
            raise TypeError(
                f"fit_lerobot_policy: expected no {given}, which the dataset or config "
                "give, or (dtype) training does not read, got "
                f"{[options[name] for name in given]}. Leave them out; "
                "LeRobotPolicyWrapper.from_pretrained takes them without a dataset."
            )
        return LeRobotPolicyWrapper.from_pretrained(
            policy,
            overrides=config,
            device=device,
            fit=RobotFit(dataset.metadata, environment, relative),
            instructions=dataset.instructions,
            **options,
        )
    predict_fn = options.pop("predict_fn", None)
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
        relative_statistics=relative,
        predict_fn=predict_fn,
    )


def _refuse_type(name: str) -> None:
    """Raise for a policy type that is not supported; suggest one that is."""
    try:
        kind_of(name)
    except SchemaError as error:
        raise SchemaError(f"{error}{did_you_mean(name, KINDS)}") from None


def train_lerobot(
    policy: LeRobotPolicyWrapper,
    dataset: Demonstrations,
    settings: TrainingSettings | None = None,
    *,
    train_on_padding: bool = False,
    folder: Path | str | None = None,
    callback: Callable[[int], None] | None = None,
    progress: bool = True,
) -> TrainingLog:
    """Train a LeRobot policy on demonstrations with its own loss and optimizer.

    It sees the same batches in the same order as ``train_behavior_cloning`` with the
    same dataset, batch size and seed, so two policies can be compared at the same
    budget.

    Warning:
        LeRobot's own learning rate of ACT is 1e-5, made for a pretrained backbone and
        100,000 steps.

    Args:
        policy: trained in place.
        dataset: the demonstrations.
        settings: :class:`TrainingSettings`. Values of None are LeRobot's own: its
            optimizer with one learning rate per group of weights, its schedule, if it
            has one, its weight decay and its limit on gradients. ``batch_size=None``
            becomes 64, and without an ``ema_decay`` the policy keeps its last weights.
            The seed is also that of the policy's own noise.

    Keyword Args:
        train_on_padding: True = accept a policy whose loss counts padded actions, see
            :class:`~torchrl_vla.objectives.LeRobotLoss`.
        folder: receives the state from which the training resumes, see
            :func:`run_training`.
        callback: called with the step after each entry, e.g. to evaluate.
        progress: True = show a progress bar.

    Returns:
        The learning curve.

    Raises:
        SchemaError: :class:`~torchrl_vla.objectives.LeRobotLoss` refuses the policy or
            the data.
        RuntimeError: the loss is not finite; names the step.
        FileExistsError: the folder holds something else than an unfinished training.
        ResumeError: the folder was begun with other settings or another policy.
    """
    loss_module = LeRobotLoss(policy, train_on_padding=train_on_padding)
    check_labels("train_lerobot", dataset)
    mark_metadata(policy, dataset.metadata.without_images())
    _warn_of_deafness(policy, dataset)
    assert policy.config is not None  # LeRobotLoss refuses a bare callable
    preset = policy.config.get_optimizer_preset()
    settings = (settings or TrainingSettings()).with_defaults(
        batch_size=64, max_grad_norm=preset.grad_clip_norm
    )
    assert settings.batch_size is not None
    targets = policy.target_steps
    buffer = dataset.replay_buffer(
        settings.batch_size,
        history_size=policy.history_size,
        # LeRobot's chunks know no end but the episode's, whatever `done` says.
        transform=ActionChunkTransform(
            len(targets),
            first_step=targets[0],
            storage=dataset.storage,
            keys=ActionChunkKeys(done=None),
        ),
        seed=settings.seed,
    )
    optimizer = preset.build(policy.policy.get_optim_params())
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        return run_training(
            policy,
            loss_module,
            buffer,
            _make_schedule(policy, optimizer, settings),
            settings,
            folder=folder,
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
    policy: LeRobotPolicyWrapper, optimizer: Optimizer, settings: TrainingSettings
) -> LRScheduler:
    """Return the schedule of the learning rate, ours where a rate is given."""
    if settings.weight_decay is not None:
        for group in optimizer.param_groups:
            group["weight_decay"] = settings.weight_decay
    if settings.lr is None:
        assert policy.config is not None  # LeRobotLoss refuses a bare callable
        preset = policy.config.get_scheduler_preset()
        if preset is None:
            return constant_rate(optimizer)
        return preset.build(optimizer, settings.steps)
    for group in optimizer.param_groups:
        group["lr"] = settings.lr
    return LambdaLR(optimizer, warmup_cosine(settings.steps))
