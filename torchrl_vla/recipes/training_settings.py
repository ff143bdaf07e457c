"""Settings of supervised training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from math import isfinite
from typing import Any, Literal, get_args

from torchrl_vla.errors import SettingsError

#: Settings that change when something is reported or written, and no weight.
_REPORTING = ("log_interval", "checkpoint_interval")

Parallel = Literal["ddp", "fsdp"]


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of supervised training: behavior cloning, and LeRobot's own losses.

    A value of None stands for the default of the function that trains:
    ``train_behavior_cloning`` or ``train_lerobot``.

    Args:
        steps: Optimizer steps.
        batch_size: Frames per optimizer step, of all ranks together.
        lr: Peak learning rate. It rises linearly over a twentieth of the steps and then
            follows a cosine to 0. With None, cloning uses 1e-3, and a LeRobot policy
            uses the learning rates and the schedule of its own configuration.
        weight_decay: Weight decay of AdamW. With None, cloning uses 1e-4, and a LeRobot
            policy uses that of its own configuration.
        max_grad_norm: Gradients are clipped to this norm. With None, cloning uses 1.0,
            and a LeRobot policy uses the norm of its own configuration.
        ema_decay: Decay of the moving average of the weights, which the policy holds at
            the end; it rises to this value as the training goes on. 0 keeps the last
            weights. With None, cloning uses 0.99, and a LeRobot policy keeps the last
            weights.
        accumulation_steps: Parts of a batch that go through the network one after the
            other. The accumulated gradient is that of the whole batch.
        seed: Seed of the batches. The initial weights are the policy's.
        log_interval: Steps between two entries of the learning curve.
        checkpoint_interval: Steps between two states that a training with a folder can
            be resumed from.
        parallel: How the processes that torchrun starts share the training. `ddp` keeps
            the policy whole in each, `fsdp` splits its weights among them. Has no
            effect on a single process.
        max_seconds: Wall-clock budget. The learning rate of cloning then falls with the
            time, and the training ends when it is over, or after the steps: the weights
            depend on the machine. With None, the steps alone decide.

    Raises:
        SettingsError: a number is out of its range.

    Examples:
        >>> TrainingSettings(steps=10, lr=3e-4).lr
        0.0003
    """

    steps: int = 1000
    batch_size: int | None = None
    lr: float | None = None
    weight_decay: float | None = None
    max_grad_norm: float | None = None
    ema_decay: float | None = None
    accumulation_steps: int = 1
    seed: int = 0
    log_interval: int = 25
    checkpoint_interval: int = 500
    parallel: Parallel = "ddp"
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "accumulation_steps", *_REPORTING)
        for name in counts:
            self._check(name, "an int >= 1", lambda value: value >= 1)
        for name in ("lr", "max_grad_norm", "max_seconds"):
            self._check(name, "a finite number > 0", lambda v: isfinite(v) and v > 0)
        self._check("weight_decay", "a number >= 0", lambda v: isfinite(v) and v >= 0)
        self._check("ema_decay", "a number in [0, 1)", lambda value: 0 <= value < 1)
        if self.parallel not in get_args(Parallel):
            raise SettingsError(
                f"TrainingSettings: expected parallel of {get_args(Parallel)}, got "
                f"{self.parallel!r}."
            )
        if self.batch_size is not None and self.accumulation_steps > self.batch_size:
            raise SettingsError(
                "TrainingSettings: expected accumulation_steps <= batch_size="
                f"{self.batch_size}, got {self.accumulation_steps}. A part of a batch "
                "needs a frame."
            )

    def with_defaults(
        self,
        *,
        batch_size: int,
        lr: float | None = None,
        weight_decay: float | None = None,
        max_grad_norm: float | None = None,
        ema_decay: float | None = None,
    ) -> TrainingSettings:
        """Return the settings with these values where a value is None."""
        defaults: dict[str, Any] = {
            "batch_size": batch_size,
            "lr": lr,
            "weight_decay": weight_decay,
            "max_grad_norm": max_grad_norm,
            "ema_decay": ema_decay,
        }
        own = asdict(self)
        return replace(self, **{k: v for k, v in defaults.items() if own[k] is None})

    def as_values(self) -> dict[str, int | float | None]:
        """Return what the weights depend on, as plain values."""
        values = asdict(self)
        left_out = (*_REPORTING, "parallel")  # ranks change the rounding alone
        return {name: values[name] for name in values if name not in left_out}

    def _check(
        self, name: str, expected: str, is_valid: Callable[[float], bool]
    ) -> None:
        value = vars(self)[name]
        if value is not None and not is_valid(value):
            raise SettingsError(
                f"TrainingSettings: expected {name} to be {expected}, got {value}."
            )
