"""Training loop that every supervised loss shares."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torchrl.data import ReplayBuffer
from torchrl.objectives import LossModule
from tqdm import tqdm

from torchrl_vla._internal.durable_files import write_text
from torchrl_vla.distributed import (
    Ranks,
    ShareSampler,
    clip_gradients,
    is_sharded,
    rank_seed,
    share_gradients,
)
from torchrl_vla.errors import SettingsError
from torchrl_vla.evaluation import hash_weights
from torchrl_vla.profiling import Sections, TrainingProfiler
from torchrl_vla.recipes.parallel_training import check_ranks
from torchrl_vla.recipes.sharded_training_state import ShardedTrainingState
from torchrl_vla.recipes.training_settings import TrainingSettings
from torchrl_vla.recipes.training_state import (
    Restorable,
    TrainingState,
    check_training_folder,
)
from torchrl_vla.recipes.weight_average import WeightAverage, ramped_average
from torchrl_vla.rollout import evaluation_mode
from torchrl_vla.testing import FirstStepCheck


@dataclass
class TrainingLog:
    """Learning curve of a training.

    Args:
        losses: ``(step, mean loss since the entry before)``.
        seconds: wall time of the training.
    """

    losses: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0

    def to_csv(self, path: Path | str) -> Path:
        """Write ``step,loss`` lines."""
        path = Path(path)
        lines = ["step,loss", *(f"{step},{loss}" for step, loss in self.losses)]
        write_text(path, "".join(line + "\n" for line in lines))
        return path


def run_training(
    policy: nn.Module,
    loss_module: LossModule,
    buffer: ReplayBuffer,
    schedule: LRScheduler,
    settings: TrainingSettings,
    *,
    folder: Path | str | None = None,
    callback: Callable[[int], None] | None = None,
    profiler: TrainingProfiler | None = None,
    progress: bool = True,
) -> TrainingLog:
    """Take optimizer steps, each on one batch of the buffer.

    With a folder, the training writes its state there and resumes from it: killed at
    any step and run again with the same policy, it ends with the weights of an
    uninterrupted training, bit for bit (in one version of PyTorch, on one device, with
    the same number of ranks). The state holds the weights, the optimizer, the schedule,
    the moving average, the learning curve, and the random numbers of PyTorch and of the
    buffer.

    In a process group every rank takes its share of each batch, and the gradient is
    that of the whole batch. The first rank writes, shows progress and calls
    ``callback``.

    Args:
        policy: is put in training mode, and in evaluation mode at the end.
        loss_module: writes losses under names that begin with ``loss_``; their sum is
            minimized.
        buffer: gives the batches; its random numbers are seeded with ``settings.seed``.
        schedule: of the learning rate of the optimizer that it was made with; stepped
            after the optimizer. See :func:`constant_rate`.
        settings: ``lr``, ``weight_decay`` and ``batch_size`` are those of the optimizer
            and the buffer; ``max_grad_norm`` and ``ema_decay`` of None are off here.

    Keyword Args:
        folder: receives ``training_state.pt``; a new or empty folder, or one of an
            unfinished training. None = the training cannot be resumed.
        callback: called with the step after each entry of the learning curve; the
            policy is in evaluation mode meanwhile.
        profiler: records where the time goes; changes no weight. None = no cost.
        progress: True = show a progress bar.

    Returns:
        The learning curve.

    Raises:
        RuntimeError: the loss or its gradient is not finite; names the step. The
            weights are those before that step.
        NoTrainingError: the first step leaves parameters out that require a gradient,
            or changes no weight; names them.
        FileExistsError: the folder holds something else.
        ResumeError: the folder was begun with other settings or another policy.
        SettingsError: the ranks differ in settings, data, weights or versions, or
            cannot share a batch evenly.
    """
    ranks = Ranks.current()
    check_ranks(ranks, policy, buffer, settings, callback)
    sections = Sections(profiler)
    loop = _Loop(policy, loss_module, buffer, schedule, settings, sections)
    state = None
    if folder is not None:
        state = _open_state(Path(folder), loop)
    progress = progress and ranks.is_first
    started = time.perf_counter() - loop.log.seconds
    policy.train()
    sections.fingerprint(loss_module, buffer, settings.batch_size or 1)
    steps = settings.steps
    with (
        sections.running(loop.device),
        tqdm(
            total=steps,
            initial=loop.done,
            desc="train",
            unit="step",
            disable=not progress,
        ) as bar,
    ):
        for step in range(loop.done + 1, steps + 1):
            with sections.step(step):
                loop.take_step(step)
            bar.update()
            if is_over(settings, time.perf_counter() - started):
                steps = step
            if step % settings.log_interval == 0 or step == steps:
                mean = loop.log_entry(step)
                bar.set_postfix(loss=f"{mean:.4f}")
                if callback is not None and ranks.is_first:
                    with evaluation_mode(policy):
                        callback(step)
            if step % settings.checkpoint_interval == 0 or step == steps:
                loop.log.seconds = time.perf_counter() - started
                if state is not None:
                    state.write(step)
            if step == steps:
                break
    loop.use_average()
    policy.eval()
    return loop.log


class _Loop:
    """Everything of a training that changes from step to step."""

    def __init__(
        self,
        policy: nn.Module,
        loss_module: LossModule,
        buffer: ReplayBuffer,
        schedule: LRScheduler,
        settings: TrainingSettings,
        sections: Sections = Sections(),
    ) -> None:
        self.policy, self.loss_module, self.buffer = policy, loss_module, buffer
        self.schedule, self.settings = schedule, settings
        self.section = sections.section
        self.optimizer: Optimizer = schedule.optimizer
        self.parameters = [
            p for group in self.optimizer.param_groups for p in group["params"]
        ]
        self.device = next(policy.parameters()).device
        self.ranks = Ranks.current()
        self.gradients = share_gradients(policy, loss_module, self.ranks, self.section)
        self.random = torch.Generator().manual_seed(settings.seed)
        ShareSampler.share(buffer, self.ranks)
        buffer.set_rng(self.random)
        self.first_step = FirstStepCheck("train", policy, self.optimizer)
        self.average = None
        if settings.ema_decay:
            self.average = WeightAverage(policy, ramped_average(settings.ema_decay))
        self.done = 0
        self.log = TrainingLog()
        self.recent: list[Tensor] = []

    def take_step(self, step: int) -> None:
        """Take one optimizer step."""
        with self.section("dataloading"):
            batch = self.buffer.sample()
        self.optimizer.zero_grad(set_to_none=True)
        if not self.ranks.is_alone:  # each rank has noise of its own, at every step
            torch.manual_seed(rank_seed(self.settings.seed, step, self.ranks))
        if self.settings.accumulation_steps == 1 and self.ranks.is_alone:
            loss = self.gradients.backward(batch.to(self.device))
        else:
            loss = self._accumulate(batch)
        check_finite("train", "loss", loss, f"at step {step}")
        self.recent.append(loss)
        if self.settings.max_grad_norm is not None:
            with self.section("grad_clip"):
                norm = clip_gradients(self.parameters, self.settings.max_grad_norm)
            check_finite("train", "gradient", norm, f"at step {step}")
        self.first_step.after_backward()
        with self.section("optimizer"):
            self.optimizer.step()
        self.first_step.after_step()
        self.schedule.step()
        if self.average is not None:
            self.average.update()
        self.done = step

    def log_entry(self, step: int) -> float:
        """Add the mean loss since the last entry to the learning curve."""
        mean = torch.stack(self.recent).mean().item()
        self.log.losses.append((step, mean))
        self.recent.clear()
        return mean

    def use_average(self) -> None:
        """Give the policy the moving average of its weights."""
        if self.average is not None:
            self.average.apply()

    def _accumulate(self, batch: TensorDictBase) -> Tensor:
        """Accumulate the gradient of a batch over parts and ranks; return its loss."""
        parts = batch.chunk(self.settings.accumulation_steps)
        sizes = [count_elements(self.loss_module, part) for part in parts]
        own = torch.stack(sizes).sum()
        # A part whose rows all have weight 0 has no mean; its gradient is 0.
        filled = [p for p in zip(parts, sizes, strict=True) if p[1] != 0]
        total, ready = self.ranks.total(torch.stack([own, (own != 0).to(own)]))
        total = total / self.ranks.count
        if ready < self.ranks.count:
            raise SettingsError(
                "train: expected a frame with a weight above 0 in the share of "
                f"each of {self.ranks.count} ranks, got none. Pass a larger batch_size."
            )
        losses = []
        for index, (part, size) in enumerate(filled, 1):
            losses.append(
                self.gradients.backward(
                    part.to(self.device),
                    size / total,
                    more_to_come=index < len(filled),
                )
            )
        return self.ranks.mean(torch.stack(losses).sum())

    def state_dict(self) -> dict[str, object]:
        """Return the step, the learning curve and the random numbers."""
        state = {
            "done": self.done,
            "losses": [list(entry) for entry in self.log.losses],
            "seconds": self.log.seconds,
            "recent": [loss.cpu() for loss in self.recent],
            "random": torch.get_rng_state(),
            "buffer_random": self.random.get_state(),
            "sampler": self.buffer.sampler.state_dict(),
        }
        if self.device.type == "cuda":
            state["cuda_random"] = torch.cuda.get_rng_state(self.device)
        return state

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Take the step, the learning curve and the random numbers over."""
        self.done = state["done"]
        self.log.losses = [(step, loss) for step, loss in state["losses"]]
        self.log.seconds = state["seconds"]
        self.recent = [loss.to(self.device) for loss in state["recent"]]
        torch.set_rng_state(state["random"])
        self.random.set_state(state["buffer_random"])
        self.buffer.sampler.load_state_dict(state["sampler"])
        if "cuda_random" in state:
            torch.cuda.set_rng_state(state["cuda_random"], self.device)


def _open_state(folder: Path, loop: _Loop) -> TrainingState:
    """Read the state of a folder, or write the first one."""
    check_training_folder("train", folder)
    folder.mkdir(parents=True, exist_ok=True)
    loop.ranks.check_shared("train", folder)
    parts: dict[str, Restorable] = {
        "policy": loop.policy,
        "optimizer": loop.optimizer,
        "schedule": loop.schedule,
        "loop": loop,
    }
    if loop.average is not None:
        parts["average"] = loop.average
    settings = {"loss": type(loop.loss_module).__name__, **loop.settings.as_values()}
    settings["frames"] = len(loop.buffer)
    kind = ShardedTrainingState if is_sharded(loop.policy) else TrainingState
    state = kind(folder, parts, settings, hash_weights(loop.policy))
    found = state.read()
    loop.ranks.wait()
    if found is None:
        state.write(0)
    return state


def is_over(settings: TrainingSettings, seconds: float) -> bool:
    """Return whether a training that ran for so long has used up its budget."""
    return settings.max_seconds is not None and seconds >= settings.max_seconds


def warmup_cosine(
    steps: int, max_seconds: float | None = None
) -> Callable[[int], float]:
    """Return the factor of the learning rate at each step.

    It rises over a twentieth of the steps and follows a cosine to zero. With a budget
    in seconds, counted from the first call, a step stands where the steps or the time
    are, whichever is further.
    """
    warmup = max(1, steps // 20)
    half_turn = torch.pi / max(1, steps - warmup)
    started: list[float] = []

    def factor(step: int) -> float:
        position: float = step
        if max_seconds is not None:
            started[:] = started or [time.perf_counter()]
            share = (time.perf_counter() - started[0]) / max_seconds
            position = max(step, min(share, 1.0) * steps)
        if position < warmup:
            return (position + 1) / warmup
        turn = torch.tensor((position - warmup) * half_turn)
        return 0.5 * (1 + torch.cos(turn).item())

    return factor


def constant_rate(optimizer: Optimizer) -> LRScheduler:
    """Return a schedule that leaves the learning rate as it is."""
    return LambdaLR(optimizer, lambda step: 1.0)


def count_elements(loss_module: LossModule, batch: TensorDictBase) -> Tensor:
    """Return the number that a loss's mean over a batch divides by, float64.

    Our cloning losses count unpadded elements, by weight. A loss without
    ``count_elements`` is taken for a mean over frames, as LeRobot's are.
    """
    count = getattr(loss_module, "count_elements", None)
    if count is None:
        return torch.tensor(float(batch.numel()), dtype=torch.float64)
    return count(batch).double()


def check_finite(caller: str, what: str, value: Tensor, where: str) -> None:
    """Refuse a step that would make the weights NaN; waits for the value's device.

    Args:
        caller: opens the error message.
        what: the value is.
        value: a scalar.
        where: it came up, for the message.

    Raises:
        RuntimeError: it is infinite or NaN.
    """
    number = value.item()
    if not isfinite(number):
        raise RuntimeError(
            f"{caller}: expected a finite {what}, got {number} {where}. Lower lr, or "
            "check the data with validate_vla_tensordict."
        )
