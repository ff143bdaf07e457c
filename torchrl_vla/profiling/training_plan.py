"""Plan of a training: steps and epochs, memory, and what bounds its speed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

from torchrl_vla.errors import SettingsError

#: Steps of a first training on some 50 episodes, and the batch size they are meant for.
#: Source: the training guide of LeRobot.
FIRST_STEPS: dict[str, tuple[int, int, str]] = {
    "act": (30_000, 80_000, "8 to 16"),
    "diffusion": (80_000, 150_000, "8 to 64"),
    "smolvla": (30_000, 80_000, "4 to 8"),
    "pi0": (30_000, 80_000, "1 to 4, accumulated to 16 or more"),
    "pi05": (30_000, 80_000, "1 to 4, accumulated to 16 or more"),
}

#: Gigabytes of a device: class to its largest requirement.
MEMORY_CLASSES = {
    "laptop (up to 6 GB)": 6,
    "8 GB": 8,
    "16 GB": 16,
    "24 GB": 24,
    "40 GB": 40,
    "80 GB": 80,
}
_ABOVE = "several devices, sharded"

Optimizer = Literal["adamw", "sgd"]
_STATES = {"adamw": 2, "sgd": 0}


@dataclass(frozen=True)
class TrainingPlan:
    """Length of a training.

    Args:
        frames: of the dataset.
        effective_batch: frames per optimizer step, over all processes.
        steps_per_epoch: optimizer steps that see every frame once, on average.
        steps: of the training.
        epochs: ``steps / steps_per_epoch``.
    """

    frames: int
    effective_batch: int
    steps_per_epoch: int
    steps: int
    epochs: float


def plan_training(
    frames: int,
    batch_size: int,
    *,
    epochs: float | None = None,
    steps: int | None = None,
    processes: int = 1,
    batches_per_step: int = 1,
) -> TrainingPlan:
    """Convert epochs to optimizer steps, or steps to epochs.

    ``steps per epoch = ceil(frames / (processes * batch_size * batches_per_step))``.
    The learning rate's schedule has to end with the steps: a training of this library
    scales it by itself; of LeRobot's own configurations set the decay steps.

    Args:
        frames: of the dataset.
        batch_size: frames per process and backward pass.

    Keyword Args:
        epochs: times that every frame is seen; or
        steps: optimizer steps.
        processes: devices, each with batches of its own.
        batches_per_step: batches whose gradients are accumulated.

    Raises:
        SettingsError: a number is below 1, or both or neither of epochs and steps are
            given.

    Examples:
        >>> plan_training(45_000, 8, epochs=5).steps
        28125
    """
    sizes = (frames, batch_size, processes, batches_per_step)
    if min(sizes) < 1:
        raise SettingsError(
            "plan_training: expected frames, batch_size, processes and "
            f"batches_per_step >= 1, got {sizes}."
        )
    if (epochs is None) == (steps is None) or (epochs or steps or 0) <= 0:
        raise SettingsError(
            "plan_training: expected either epochs or steps > 0, got "
            f"epochs={epochs} and steps={steps}. Pass one of them."
        )
    effective = batch_size * processes * batches_per_step
    per_epoch = ceil(frames / effective)
    if steps is None:
        assert epochs is not None
        steps = ceil(epochs * per_epoch)
    return TrainingPlan(frames, effective, per_epoch, steps, steps / per_epoch)


def estimate_memory(
    parameters: int,
    *,
    trainable: int | None = None,
    optimizer: Optimizer = "adamw",
    bytes_per_weight: int = 4,
    activation_bytes: int = 0,
) -> int:
    """Return the bytes that a training holds on its device.

    Weights, gradients of those that are trained, the optimizer's state (AdamW: two
    numbers per trained weight) and activations.

    Args:
        parameters: all weights.

    Keyword Args:
        trainable: those that are trained; None = all.
        optimizer: ``"adamw"`` or ``"sgd"``.
        bytes_per_weight: 4 in float32, 2 in bfloat16.
        activation_bytes: that the forward pass keeps; measure it with a profile.

    Examples:
        >>> estimate_memory(1_000_000) // 10**6
        16
    """
    trained = parameters if trainable is None else trainable
    copies = parameters + trained * (1 + _STATES[optimizer])
    return copies * bytes_per_weight + activation_bytes


def memory_class(needed_bytes: int) -> str:
    """Return the smallest class of devices that holds so many bytes and a tenth more.

    Examples:
        >>> memory_class(10 * 2**30), memory_class(200 * 2**30)
        ('16 GB', 'several devices, sharded')
    """
    gigabytes = 1.1 * needed_bytes / 2**30
    fits = (name for name, size in MEMORY_CLASSES.items() if gigabytes <= size)
    return next(fits, _ABOVE)


def find_bottleneck(summary: Mapping[str, Any]) -> tuple[str, str]:
    """Return what bounds a profiled training, and what to do about it.

    Args:
        summary: contents of ``step_timing_summary.json``.

    Returns:
        ``"data"``, ``"balanced"``, ``"compute"`` or ``"unknown"``, and advice.

    Examples:
        >>> times = {"dataloading_s": 0.5, "total_update_s": 0.1}
        >>> find_bottleneck({name: {"median": s} for name, s in times.items()})[0]
        'data'
    """
    loading = summary.get("dataloading_s", {}).get("median")
    update = summary.get("total_update_s", {}).get("median")
    if loading is None or not update:
        return "unknown", "Profile at least 9 steps with --profile-mode timing."
    ratio = loading / update
    if ratio >= 1:
        return "data", (
            f"Fetching a batch takes {ratio:.1f} updates: a faster device changes "
            "nothing. Decode fewer or smaller images, store decoded frames, or fetch "
            "in more processes."
        )
    if ratio >= 0.3:
        return "balanced", (
            f"Fetching a batch takes {ratio:.1f} of an update: a second device would "
            "wait for data. Speed the data up first."
        )
    slowest = max(
        (
            name
            for name in ("forward_s", "backward_s", "optimizer_s")
            if name in summary
        ),
        key=lambda name: summary[name]["median"] or 0,
        default="total_update_s",
    )
    return "compute", (
        f"Fetching a batch takes {ratio:.2f} of an update, most of which is "
        f"{slowest.removesuffix('_s')}: a faster device, a lower precision or more "
        "devices help."
    )
