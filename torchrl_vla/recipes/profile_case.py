"""Training of one profiled case, run as ``python -m torchrl_vla.recipes.profile_case``.

It stores no policy and uploads nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.utils.checkpoint import checkpoint
from torchrl.data import ReplayBuffer
from torchrl.envs import Transform
from torchrl.objectives import LossModule

from torchrl_vla._internal.named_objects import import_named, is_named_object
from torchrl_vla.data import DemonstrationDataset
from torchrl_vla.objectives import LeRobotLoss
from torchrl_vla.policies import as_policy
from torchrl_vla.profiling import ProfileOptions, TrainingProfiler
from torchrl_vla.profiling.profile_cases import CaseResources, ProfileCase, find_cases
from torchrl_vla.recipes.behavior_cloning import make_training_transform
from torchrl_vla.recipes.lerobot_training import (
    fit_lerobot_policy,
    make_lerobot_targets,
)
from torchrl_vla.recipes.policy_factory import (
    make_cloning_loss,
    make_policy,
    make_space,
)
from torchrl_vla.recipes.training_loop import constant_rate, run_training
from torchrl_vla.recipes.training_settings import TrainingSettings
from torchrl_vla.schema import (
    FeatureStatistics,
    InstructionTable,
    RobotDatasetMetadata,
)

_EPISODES, _LENGTH, _SIDE, _WIDTH = 2, 32, 64, 6


def make_profile_dataset() -> DemonstrationDataset:
    """Return two episodes of a six-jointed arm with a camera, always the same.

    Examples:
        >>> make_profile_dataset().frames["observation", "image"].shape
        torch.Size([64, 3, 64, 64])
    """
    table = InstructionTable(["pick up the red cube", "open the drawer"])
    count = _EPISODES * _LENGTH
    generator = torch.Generator().manual_seed(0)
    walk = torch.randn(count, _WIDTH, generator=generator).cumsum(0) / 10
    action = walk.tanh()
    size = (count, 3, _SIDE, _SIDE)
    episode = torch.arange(count) // _LENGTH
    frames = TensorDict(
        {
            "observation": {
                "state": walk,
                "image": torch.randint(256, size, generator=generator).byte(),
            },
            "language_instruction": table.ids[episode],
            "action": action,
            "episode_index": episode,
            "frame_index": torch.arange(count) % _LENGTH,
        },
        [count],
    )
    metadata = RobotDatasetMetadata(
        "profile",
        action_dim=_WIDTH,
        state_dim=_WIDTH,
        action_low=(-1.0,) * _WIDTH,
        action_high=(1.0,) * _WIDTH,
        action_statistics=FeatureStatistics.from_samples(action),
        state_statistics=FeatureStatistics.from_samples(walk),
    )
    return DemonstrationDataset(frames, metadata, table)


def train_profile_case(case: ProfileCase, profiler: TrainingProfiler | None) -> None:
    """Train a case for its steps on the reference dataset.

    Args:
        case: what to train.
        profiler: records it; None = no profile.
    """
    resources = case.resources
    if resources.deterministic:
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.deterministic = True
    dataset = make_profile_dataset()
    torch.manual_seed(0)
    policy = _make_policy(case, dataset)
    loss, buffer = _make_training(case, policy, dataset)
    run_training(
        policy,
        ResourcefulLoss(loss, resources),
        buffer,
        constant_rate(make_optimizer(policy, resources)),
        TrainingSettings(steps=case.steps, batch_size=case.batch_size, ema_decay=0.0),
        profiler=profiler,
        progress=False,
    )


def _make_policy(case: ProfileCase, dataset: DemonstrationDataset) -> Any:
    """Return the policy of a case: ours, LeRobot's or the user's own."""
    if case.policy == "tiny":
        return make_policy(dataset, **case.options)
    if is_named_object(case.policy):
        made: Any = import_named("profile", case.policy)
        return as_policy(made(dataset, **case.options))
    return fit_lerobot_policy(case.policy, dataset, config=dict(case.options))


def _make_training(
    case: ProfileCase, policy: Any, dataset: DemonstrationDataset
) -> tuple[LossModule, ReplayBuffer]:
    """Return the loss and the batches of a policy."""
    history_size = 1
    if policy.cloning_loss == "lerobot":
        loss: LossModule = LeRobotLoss(policy, train_on_padding=True)
        transform: Transform = make_lerobot_targets(policy, dataset)
        history_size = policy.history_size
    else:
        loss = make_cloning_loss(policy)
        space = make_space(dataset.metadata, case.options.get("head", "regression"))
        transform = make_training_transform(policy, space, dataset.storage)
    buffer = dataset.replay_buffer(
        case.batch_size, history_size=history_size, transform=transform, seed=0
    )
    return loss, buffer


def make_optimizer(policy: nn.Module, resources: CaseResources) -> Optimizer:
    """Return the optimizer that a case asks for."""
    trained = [p for p in policy.parameters() if p.requires_grad]
    if resources.optimizer == "sgd":
        return SGD(trained, lr=1e-4)
    return AdamW(trained, lr=1e-4)


class ResourcefulLoss(nn.Module):
    """Compute a loss in bfloat16, or again in the backward pass.

    **Reads** and **Writes** what the loss does.

    Args:
        loss: a loss.
        resources: ``bf16`` and ``checkpointing`` are used.
    """

    def __init__(self, loss: LossModule, resources: CaseResources) -> None:
        super().__init__()
        self.loss, self.resources = loss, resources
        self.out_keys = loss.out_keys

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the loss of a batch."""
        device = next(self.loss.parameters()).device.type
        call: Callable[[TensorDictBase], TensorDictBase] = self.loss
        if self.resources.checkpointing and torch.is_grad_enabled():
            call = partial(checkpoint, self.loss, use_reentrant=False)
        with torch.autocast(device, torch.bfloat16, enabled=self.resources.bf16):
            return call(tensordict)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the case that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", required=True)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--profile-mode", required=True)
    parser.add_argument("--profile-output-dir", type=Path, default=None)
    given = parser.parse_args(arguments)
    (case,) = find_cases([given.case])
    options = ProfileOptions(given.profile_mode, given.profile_output_dir)
    train_profile_case(case, TrainingProfiler.from_options(options, given.output_dir))


if __name__ == "__main__":
    main()
