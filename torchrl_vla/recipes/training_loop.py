"""One training loop for every loss, so that trainings differ only in their loss."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchrl.data import ReplayBuffer
from torchrl.objectives import LossModule
from tqdm import tqdm


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


def check_budget(caller: str, steps: int, batch_size: int) -> None:
    """Refuse a training without steps or frames."""
    if steps < 1 or batch_size < 1:
        raise ValueError(
            f"{caller}: expected steps >= 1 and batch_size >= 1, got steps={steps}, "
            f"batch_size={batch_size}."
        )


def run_training(
    caller: str,
    loss_module: LossModule,
    buffer: ReplayBuffer,
    *,
    policy: nn.Module,
    optimizer: Optimizer,
    schedule: Any | None,
    steps: int,
    max_grad_norm: float,
    ema_decay: float | None,
    log_interval: int,
    callback: Callable[[int], None] | None,
    progress: bool,
) -> TrainingLog:
    """Take ``steps`` optimizer steps, each on one batch of the buffer.

    Args:
        caller: opens the error messages.
        loss_module: writes losses under names that begin with ``loss_``; their sum is
            what is minimized.
        buffer: gives the batches.
        policy: is put in training mode, and in evaluation mode at the end.
        optimizer: of the policy's parameters.
        schedule: stepped after the optimizer; None = a constant learning rate.
        steps: how many.
        max_grad_norm: gradients are clipped to this norm.
        ema_decay: at the end the policy holds the moving average of its weights with
            this decay; None = the last ones.
        log_interval: steps between two entries of the log.
        callback: called with the step after each entry.
        progress: True = show a progress bar.

    Raises:
        RuntimeError: the loss is not finite; names the step.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    device = next(policy.parameters()).device
    average = None
    if ema_decay is not None:
        average = AveragedModel(policy, multi_avg_fn=get_ema_multi_avg_fn(ema_decay))
    log, recent, started = TrainingLog(), [], time.perf_counter()
    policy.train()
    with tqdm(total=steps, desc="train", unit="step", disable=not progress) as bar:
        for step in range(1, steps + 1):
            loss = _total_loss(loss_module, buffer.sample().to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, max_grad_norm)
            optimizer.step()
            if schedule is not None:
                schedule.step()
            if average is not None:
                average.update_parameters(policy)
            recent.append(loss.detach())
            bar.update()
            if step % log_interval == 0 or step == steps:
                mean = torch.stack(recent).mean().item()
                _check_finite(caller, mean, step)
                log.losses.append((step, mean))
                recent.clear()
                bar.set_postfix(loss=f"{mean:.4f}")
                if callback is not None:
                    callback(step)
    if average is not None:
        with torch.no_grad():
            for weight, mean in zip(policy.parameters(), average.module.parameters()):
                weight.copy_(mean)
    policy.eval()
    log.seconds = time.perf_counter() - started
    return log


def warmup_cosine(steps: int) -> Callable[[int], float]:
    """Return the factor of the learning rate at each step.

    It rises over a twentieth of the steps and follows a cosine to zero.
    """
    warmup = max(1, steps // 20)
    half_turn = torch.pi / max(1, steps - warmup)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + torch.cos(torch.tensor((step - warmup) * half_turn)).item())

    return factor


def _total_loss(loss_module: LossModule, batch: TensorDictBase) -> Tensor:
    out = loss_module(batch)
    names = [name for name in loss_module.out_keys if name.startswith("loss_")]
    return sum(out.get(name) for name in names)


def _check_finite(caller: str, loss: float, step: int) -> None:
    if not loss < float("inf"):  # also catches NaN
        raise RuntimeError(
            f"{caller}: expected a finite loss, got {loss} by step {step}. Lower lr, "
            "or check the data with validate_vla_tensordict."
        )
