"""``torchrl-vla plan``: length, memory and bottleneck of a training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torchrl_vla.cli.options import OptionError
from torchrl_vla.profiling.step_timings import read_summary
from torchrl_vla.profiling.training_plan import (
    FIRST_STEPS,
    Optimizer,
    estimate_memory,
    find_bottleneck,
    memory_class,
    plan_training,
)


@dataclass(frozen=True)
class Plan:
    """Plan a training: steps and epochs, memory, and what bounds its speed."""

    frames: int
    """Frames of the dataset; 50 episodes of 30 s at 30 Hz have 45000."""
    batch_size: int = 8
    """Frames per process and backward pass."""
    epochs: float | None = None
    """Times that every frame is seen; left out together with --steps, 5."""
    steps: int | None = None
    """Optimizer steps, instead of epochs."""
    processes: int = 1
    """Devices, each with batches of its own."""
    batches_per_step: int = 1
    """Batches whose gradients are accumulated."""
    policy: str | None = None
    """Type of policy, e.g. act: prints the usual length of a first training."""
    parameters: int | None = None
    """Weights of the policy: prints the memory of weights, gradients and optimizer."""
    trainable: int | None = None
    """Weights that are trained; left out, all."""
    optimizer: Optimizer = "adamw"
    """Optimizer: `adamw` keeps two numbers per trained weight, `sgd` none."""
    bf16: bool = False
    """Weights in bfloat16."""
    profile: Path | None = None
    """Folder of a profile that `train --profile-mode timing` wrote: prints whether data
    or computation bounds the speed, and how long the training takes."""

    def run(self) -> None:
        """Print the plan."""
        epochs = 5.0 if self.epochs is None and self.steps is None else self.epochs
        plan = plan_training(
            self.frames,
            self.batch_size,
            epochs=epochs,
            steps=self.steps,
            processes=self.processes,
            batches_per_step=self.batches_per_step,
        )
        print(
            f"{plan.steps} steps of {plan.effective_batch} frames: {plan.epochs:.2f} "
            f"epochs of {plan.steps_per_epoch} steps"
        )
        if self.policy is not None:
            self._print_usual()
        if self.parameters is not None:
            needed = estimate_memory(
                self.parameters,
                trainable=self.trainable,
                optimizer=self.optimizer,
                bytes_per_weight=2 if self.bf16 else 4,
            )
            print(
                f"{needed / 2**30:.1f} GB without activations: {memory_class(needed)}"
            )
        if self.profile is not None:
            self._print_bottleneck(plan.steps)

    def _print_usual(self) -> None:
        if self.policy not in FIRST_STEPS:
            raise OptionError(
                f"--policy: expected one of {sorted(FIRST_STEPS)}, got {self.policy!r}."
            )
        low, high, batch = FIRST_STEPS[self.policy]
        print(f"a first training of {self.policy}: {low} to {high} steps at {batch}")

    def _print_bottleneck(self, steps: int) -> None:
        assert self.profile is not None
        summary = read_summary(self.profile)
        kind, advice = find_bottleneck(summary)
        print(f"bound by {kind}: {advice}")
        parts = (summary["total_update_s"], summary["dataloading_s"])
        medians = [part["median"] for part in parts]
        if None not in medians:
            hours = steps * self.batches_per_step * sum(medians) / 3600
            print(f"{steps} steps take {hours:.2f} hours at the profiled speed")
