"""Behavior cloning as a function that a user could have written."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from torchrl_vla.data import DemonstrationDataset
from torchrl_vla.objectives import BCLoss
from torchrl_vla.policies import ContinuousVLAWrapper
from torchrl_vla.recipes.model_space import ModelSpace


@dataclass
class TrainingLog:
    """The learning curve of a training.

    Args:
        losses: ``(step, mean loss since the entry before)``.
        seconds: wall time of the training.
    """

    losses: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0

    def to_csv(self, path: Path | str) -> Path:
        """Write ``step,loss`` lines."""
        path = Path(path)
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("step", "loss"))
            writer.writerows(self.losses)
        return path


def train_behavior_cloning(
    policy: ContinuousVLAWrapper,
    dataset: DemonstrationDataset,
    *,
    space: ModelSpace | None = None,
    steps: int = 1000,
    batch_size: int = 128,
    lr: float = 1e-3,
    weight_decay: float = 1e-4,
    max_grad_norm: float = 1.0,
    ema_decay: float | None = 0.99,
    loss_function: str = "l1",
    seed: int = 0,
    log_interval: int = 25,
    callback: Callable[[int], None] | None = None,
    progress: bool = True,
) -> TrainingLog:
    """Clone demonstrations: i.i.d. frames, chunk targets, masked loss, AdamW.

    The learning rate warms up over a twentieth of the steps and follows a cosine to
    zero. At the end the policy holds the exponential moving average of its weights,
    which is steadier than the last ones.

    Args:
        policy: trained in place; needs all its parameters (give it ``state_dim``).
        dataset: the demonstrations.
        space: how targets and states are normalized; ``ModelSpace(dataset.metadata)``
            by default. Act with the same one.
        steps: optimizer steps.
        batch_size: frames per step.
        lr: peak learning rate.
        weight_decay: of AdamW.
        max_grad_norm: gradients are clipped to this norm.
        ema_decay: of the moving average; None = keep the last weights.
        loss_function: of ``BCLoss``.
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
    if steps < 1 or batch_size < 1:
        raise ValueError(
            "train_behavior_cloning: expected steps >= 1 and batch_size >= 1, got "
            f"steps={steps}, batch_size={batch_size}."
        )
    space = ModelSpace(dataset.metadata) if space is None else space
    buffer = dataset.replay_buffer(
        batch_size,
        transform=space.transforms(policy.chunk_size, dataset.storage),
        seed=seed,
    )
    device = next(policy.parameters()).device
    loss_module = BCLoss(policy, loss_function=loss_function)
    parameters = list(policy.parameters())
    optimizer = AdamW(parameters, lr=lr, weight_decay=weight_decay)
    schedule = LambdaLR(optimizer, _warmup_cosine(steps))
    average = None
    if ema_decay is not None:
        average = AveragedModel(policy, multi_avg_fn=get_ema_multi_avg_fn(ema_decay))
    log, recent, started = TrainingLog(), [], time.perf_counter()
    policy.train()
    with tqdm(total=steps, desc="train", unit="step", disable=not progress) as bar:
        for step in range(1, steps + 1):
            loss = loss_module(buffer.sample().to(device))["loss_bc"]
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, max_grad_norm)
            optimizer.step()
            schedule.step()
            if average is not None:
                average.update_parameters(policy)
            recent.append(loss.detach())
            bar.update()
            if step % log_interval == 0 or step == steps:
                mean = torch.stack(recent).mean().item()
                _check_finite(mean, step)
                log.losses.append((step, mean))
                recent.clear()
                bar.set_postfix(loss=f"{mean:.4f}")
                if callback is not None:
                    callback(step)
    if average is not None:
        policy.load_state_dict(average.module.state_dict())
    policy.eval()
    log.seconds = time.perf_counter() - started
    return log


def _warmup_cosine(steps: int) -> Callable[[int], float]:
    warmup = max(1, steps // 20)
    half_turn = torch.pi / max(1, steps - warmup)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + torch.cos(torch.tensor((step - warmup) * half_turn)).item())

    return factor


def _check_finite(loss: float, step: int) -> None:
    if not loss < float("inf"):  # also catches NaN
        raise RuntimeError(
            f"train_behavior_cloning: expected a finite loss, got {loss} by step "
            f"{step}. Lower lr, or check the data with validate_vla_tensordict."
        )
