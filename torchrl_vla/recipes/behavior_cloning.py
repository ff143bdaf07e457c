"""Behavior cloning of a dataset into a policy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tensordict.nn import TensorDictModuleBase
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torchrl.data.replay_buffers import Storage
from torchrl.envs import Compose
from torchrl.objectives import LossModule

from torchrl_vla.data import check_labels
from torchrl_vla.data.demonstrations import check_demonstrations
from torchrl_vla.errors import SettingsError
from torchrl_vla.policies import as_policy
from torchrl_vla.policies.protocol import check_module
from torchrl_vla.profiling import TrainingProfiler
from torchrl_vla.recipes.dataset_opening import Demonstrations, seen_metadata
from torchrl_vla.recipes.parallel_training import parallel_copy
from torchrl_vla.recipes.policy_factory import make_cloning_loss
from torchrl_vla.recipes.training_loop import (
    TrainingLog,
    run_training,
    warmup_cosine,
)
from torchrl_vla.recipes.training_settings import TrainingSettings
from torchrl_vla.schema import mark_metadata, mark_space
from torchrl_vla.spaces import ModelSpace, chunk_targets


def train_behavior_cloning(
    policy: TensorDictModuleBase,
    dataset: Demonstrations,
    settings: TrainingSettings | None = None,
    *,
    space: ModelSpace | None = None,
    loss: LossModule | None = None,
    folder: Path | str | None = None,
    callback: Callable[[int], None] | None = None,
    profiler: TrainingProfiler | None = None,
    progress: bool = True,
) -> TrainingLog:
    """Clone demonstrations: i.i.d. frames, chunk targets, masked loss, AdamW.

    The learning rate rises over a twentieth of the steps and follows a cosine to zero.
    At the end the policy holds the exponential moving average of its weights.

    Args:
        policy: trained in place; needs all its parameters (give it ``state_dim``).
        dataset: the demonstrations.
        settings: :class:`TrainingSettings`. Values of None become ``batch_size=128``,
            ``lr=1e-3``, ``weight_decay=1e-4``, ``max_grad_norm=1.0`` and
            ``ema_decay=0.99``.

    Keyword Args:
        space: normalizes targets and states; ``ModelSpace(dataset.metadata)`` by
            default. Act with the same one: the policy is marked with it.
        loss: minimized; ``make_cloning_loss(policy)`` by default, the policy's own
            (regression, cross-entropy of tokens, flow matching or denoising). Frames
            with a ``sample_weight`` need one that was told of it with
            ``set_keys(weight="sample_weight")``.
        folder: receives the state from which the training resumes, see
            :func:`run_training`.
        callback: called with the step after each entry, e.g. to evaluate; the policy is
            in evaluation mode meanwhile.
        profiler: records where the time goes; changes no weight. None = no cost.
        progress: True = show a progress bar.

    Returns:
        The learning curve.

    Raises:
        ArgumentTypeError: the policy or the dataset is of another kind, such as a path.
        RuntimeError: the loss is not finite; names the step.
        NoTrainingError: the first step leaves parameters out that require a gradient,
            or changes no weight; names them.
        SchemaError: demonstrated actions lie beyond the bounds that are declared.
        SpaceError: the policy was trained in another space.
        IncompatibleMetadataError: the space, or the policy's training before, is of
            another robot than the dataset; lists what differs.
        FileExistsError: the folder holds something else than an unfinished training.
        ResumeError: the folder was begun with other settings or another policy.
        SettingsError: several ranks do not fit together, or a loss is given with
            ``parallel="fsdp"``.
    """
    check_module("train_behavior_cloning", policy)
    check_demonstrations("train_behavior_cloning", dataset)
    settings = (settings or TrainingSettings()).with_defaults(
        batch_size=128,
        lr=1e-3,
        weight_decay=1e-4,
        max_grad_norm=1.0,
        ema_decay=0.99,
    )
    assert settings.batch_size is not None
    assert settings.lr is not None
    assert settings.weight_decay is not None
    space = ModelSpace(dataset.metadata) if space is None else space
    sides = ("the space", "the dataset")
    space.metadata.check_compatible(dataset.metadata, sides=sides)
    check_labels("train_behavior_cloning", dataset)
    policy = as_policy(policy)
    mark_space(policy, space.policy_space)
    mark_metadata(policy, seen_metadata(dataset))
    buffer = dataset.replay_buffer(
        settings.batch_size,
        transform=make_training_transform(policy, space, dataset.storage),
        seed=settings.seed,
    )
    if loss is not None and settings.parallel == "fsdp":
        raise SettingsError(
            "train_behavior_cloning: expected no loss with parallel='fsdp', which "
            f"trains a sharded copy of the policy, got {type(loss).__name__}. Leave it "
            "out, or use parallel='ddp'."
        )
    schedule = warmup_cosine(settings.steps, settings.max_seconds)
    with parallel_copy(policy, settings) as trained:
        optimizer = AdamW(
            trained.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
        )
        return run_training(
            trained,
            make_cloning_loss(trained) if loss is None else loss,
            buffer,
            LambdaLR(optimizer, schedule),
            settings,
            folder=folder,
            callback=callback,
            profiler=profiler,
            progress=progress,
        )


def make_training_transform(
    policy: TensorDictModuleBase, space: ModelSpace | None, storage: Storage
) -> Compose:
    """Return the transform that turns sampled frames into a policy's training targets.

    Args:
        policy: gives ``H`` and, for tokens, the tokenizer.
        space: normalizes actions and states; None = they stay in robot space.
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
