"""Records that describe a simulator to the environment that runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torchrl_vla.envs.lazy_rendering import RenderSpec

Observe = Callable[[Any], Mapping[str, Any]]


@dataclass(frozen=True)
class SimulatorInterface:
    """Declare what a gymnasium environment's outputs are in the canonical schema.

    Args:
        observe: maps a raw observation to ``{"state": [S], "environment_state": [E],
            "image": [h, w, C] uint8 or {camera: image}, "instruction": text}`` or a
            part of it: a function, or :class:`SimulatorKeys`. The instruction is read
            at resets only.
        success_key: the entry of ``info`` that is True when the task is done.
        rendering: renders the simulator apart from its steps, where ``observe`` returns
            no images; required to render on demand.
    """

    observe: Observe
    success_key: str
    rendering: RenderSpec | None = None


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
