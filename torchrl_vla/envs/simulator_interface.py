"""Records that describe a simulator to the environment that runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torchrl_vla.envs.lazy_rendering import RenderSpec
from torchrl_vla.errors import SettingsError

Observe = Callable[[Any], Mapping[str, Any]]

#: ``success(observation, reward, terminated, info)``, all of them the simulator's own.
Success = Callable[[Any, float, bool, Mapping[str, Any]], object]


@dataclass(frozen=True)
class SimulatorInterface:
    """Declare what a gymnasium environment's outputs are in the canonical schema.

    Args:
        observe: maps a raw observation to ``{"state": [S], "environment_state": [E],
            "image": [h, w, C] uint8 or {camera: image}, "instruction": text}`` or a
            part of it: a function, or :class:`SimulatorKeys`. The instruction is read
            at resets only.
        success_key: the entry of ``info`` that is True, or 1, when the task is done.
            Nothing else than a bool, 0 or 1 is read as one.
        rendering: renders the simulator apart from its steps, where ``observe`` returns
            no images; required to render on demand.
        success: says when the task is done, instead of ``success_key``:
            ``lambda obs, reward, terminated, info: info["score"] >= 0.95``. It is asked
            after resets too, with reward 0.0 and terminated False; where the ``info``
            of a reset lacks what it reads, or it returns None, the task is not done.

    Raises:
        SettingsError: not exactly one of ``success_key`` and ``success``.

    Examples:
        >>> SimulatorInterface(lambda obs: {"state": obs})
        Traceback (most recent call last):
        ...
        torchrl_vla.errors.SettingsError: SimulatorInterface: expected success_key= or \
success=, got neither. ...
    """

    observe: Observe
    success_key: str | None = None
    rendering: RenderSpec | None = None
    success: Success | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if (self.success_key is None) == (self.success is None):
            raise SettingsError(
                "SimulatorInterface: expected success_key= or success=, got "
                f"{'neither' if self.success is None else 'both'}. Name the entry of "
                "info that says whether the task is done, or write success=lambda obs, "
                "reward, terminated, info: ..., which returns a bool."
            )


@dataclass(frozen=True)
class SimulatorOptions:
    """Choose where simulators run and when they render.

    Args:
        num_workers: processes that share the environments; 0 = this process.
        render_on_demand: True = render only what a policy reads: at resets, at the end
            of episodes, and unless ``observation_needed`` is False (bool ``[N, 1]``,
            which the executors write). An environment that is not rendered keeps its
            last image, and ``image_is_stale`` is True. TorchRL's own worker processes
            do not pass ``observation_needed`` on; ``num_workers`` does.
    """

    num_workers: int = 0
    render_on_demand: bool = False
