"""Noise on the steps of a flow, which gives its paths a likelihood."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from torchrl_vla._internal.durable_files import write_bytes
from torchrl_vla._internal.file_origin import Origin
from torchrl_vla._internal.tensor_file import read_tensors
from torchrl_vla.policies.tiny.backbone import fill_rows

_FILE = "noise.pt"


class FlowNoise(nn.Module, ABC):
    """Make a Gaussian step of the Euler step ``x + dt * velocity``.

    Abstract: a strategy that ``FlowVLAWrapper`` takes as ``noise``. Time runs from 0
    (noise) to 1 (data). The standard deviation must not depend on ``x``.
    """

    @property
    @abstractmethod
    def config(self) -> dict[str, float]:
        """The constructor's arguments."""

    @abstractmethod
    def mean(self, x: Tensor, velocity: Tensor, t: Tensor, dt: float) -> Tensor:
        """Return the mean ``[M, H, A]`` of the step from ``x`` at times ``t``, [M]."""

    @abstractmethod
    def std(self, condition: Tensor, t: Tensor, dt: float) -> Tensor:
        """Return its standard deviation, ``[M, H, A]`` or ``[M, 1, 1]``."""


class FlowSDENoise(FlowNoise):
    r"""Replace the flow's ODE by an SDE with the same distribution at every time.

    With ``x_t = (1 - t) noise + t data`` and ``v(x, t) = E[data - noise | x_t = x]``,
    the noise in ``x`` is estimated by ``E[noise | x] = x - t v``, so the score of
    ``x_t``'s distribution is known from the velocity alone:

    ``score = -E[noise | x] / (1 - t) = -(x - t v) / (1 - t)``.

    By the Fokker-Planck equation ``dx = [v + sigma_t^2 / 2 * score] dt + sigma_t dW``
    has the marginals of ``dx = v dt`` for any ``sigma_t``. One step is

    ``mean = x + dt (v - sigma_t^2 (x - t v) / (2 (1 - t)))``,
    ``std = sigma_t sqrt(dt)``

    with ``sigma_t = scale * sqrt((1 - s) / s)`` and ``s = max(t, min(dt, 1/2))``. The
    schedule has its pole at pure noise, ``t = 0``; the first step therefore uses the
    ``sigma`` of the second, and only ``sigma`` is clamped, so the marginals stay
    exact in the limit of many steps. At ``t = 1`` it vanishes as fast as the score
    grows; steps begin at ``1 - dt`` at the latest. With few steps the chunks are a
    little wider than the ODE's: that is the exploration.

    Flow-GRPO counts time from data to noise: its ``a sqrt(t / (1 - t))`` is this one.
    There is nothing to learn, so a cloned flow gets a likelihood by this alone.

    Args:
        scale: ``a``; 0.5 to 1 is usual.

    Raises:
        ValueError: ``scale`` is not positive.

    Source: Liu et al., "Flow-GRPO" (arXiv:2505.05470), equations 8 and 9; Chen et al.,
    "pi_RL" (arXiv:2510.25889).

    Examples:
        >>> FlowSDENoise(0.5).std(torch.zeros(2, 1), torch.tensor([0.0, 0.5]), 0.25)
        tensor([[[0.4330]],
        <BLANKLINE>
                [[0.2500]]])
    """

    def __init__(self, scale: float = 0.5) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(
                f"FlowSDENoise: expected a positive scale, got {scale}. Give the "
                "policy noise=None for steps without noise."
            )
        self.scale = float(scale)

    @property
    def config(self) -> dict[str, float]:
        """The constructor's arguments."""
        return {"scale": self.scale}

    def mean(self, x: Tensor, velocity: Tensor, t: Tensor, dt: float) -> Tensor:
        """Return the Euler step of the SDE's drift."""
        t, variance = t[:, None, None], self._variance(t, dt)[:, None, None]
        pull = variance / (2 * (1 - t))
        return x + dt * (velocity - pull * (x - t * velocity))

    def std(self, condition: Tensor, t: Tensor, dt: float) -> Tensor:
        """Return ``sigma_t sqrt(dt)``, ``[M, 1, 1]``."""
        return (self._variance(t, dt) * dt).sqrt()[:, None, None]

    def _variance(self, t: Tensor, dt: float) -> Tensor:
        s = t.clamp_min(min(dt, 0.5))
        return self.scale**2 * (1 - s) / s

    def extra_repr(self) -> str:
        """Show the scale."""
        return f"scale={self.scale}"


class LearnedNoise(FlowNoise):
    """Add noise to each step of the flow, as much as a small network says.

    The mean stays the ODE's Euler step; the standard deviation of each number of the
    chunk depends on the observation and on time, is learned with the policy's return,
    and lies between two bounds: ``log std`` runs from ``log min_std`` to
    ``log max_std`` by a sigmoid. It starts half-way, at ``sqrt(min_std max_std)``, for
    every observation. The deviation is that of one step (it is not scaled by ``dt``).
    The noise of the whole path must be small against what the flow does: here nothing
    corrects the marginals.

    Args:
        condition_dim: ``F``, size of the policy's encoding (``policy.condition_dim``).
        chunk_size: ``H``.
        action_dim: ``A``.

    Keyword Args:
        min_std: lower bound, in model space.
        max_std: upper bound.
        hidden: width of the network.

    Raises:
        ValueError: not ``0 < min_std <= max_std``.

    Source: Zhang et al., "ReinFlow" (arXiv:2505.22094), section 4; "Flow-Noise" in
    Chen et al., "pi_RL" (arXiv:2510.25889).

    Examples:
        >>> noise = LearnedNoise(8, 4, 2, min_std=0.05, max_std=0.2)
        >>> std = noise.std(torch.zeros(1, 8), torch.zeros(1), 0.25)
        >>> std.shape, std.max().item()
        (torch.Size([1, 4, 2]), 0.1...)
    """

    def __init__(
        self,
        condition_dim: int,
        chunk_size: int,
        action_dim: int,
        *,
        min_std: float = 0.05,
        max_std: float = 0.2,
        hidden: int = 64,
    ) -> None:
        super().__init__()
        if not 0 < min_std <= max_std:
            raise ValueError(
                "LearnedNoise: expected 0 < min_std <= max_std, got "
                f"min_std={min_std}, max_std={max_std}."
            )
        self.min_std, self.max_std = float(min_std), float(max_std)
        self._size = (chunk_size, action_dim)
        self._sizes = {
            "condition_dim": condition_dim,
            "chunk_size": chunk_size,
            "action_dim": action_dim,
            "hidden": hidden,
        }
        self.entry = nn.Linear(condition_dim, hidden)
        self.time = nn.Linear(1, hidden)
        self.out = nn.Linear(hidden, chunk_size * action_dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    @property
    def config(self) -> dict[str, float]:
        """The constructor's arguments."""
        return {**self._sizes, "min_std": self.min_std, "max_std": self.max_std}

    def mean(self, x: Tensor, velocity: Tensor, t: Tensor, dt: float) -> Tensor:
        """Return the Euler step of the ODE."""
        return x + dt * velocity

    def std(self, condition: Tensor, t: Tensor, dt: float) -> Tensor:
        """Return the network's answer between the bounds, ``[M, H, A]``."""
        n, condition = len(condition), fill_rows(condition)
        time = fill_rows(t[:, None]).to(condition.dtype)
        hidden = torch.relu(self.entry(condition) + self.time(time))
        between = torch.sigmoid(self.out(hidden)).to(t.dtype)
        span = math.log(self.max_std / self.min_std)
        std = self.min_std * (span * between).exp()
        return std[:n].unflatten(-1, self._size)

    def extra_repr(self) -> str:
        """Show the bounds."""
        return f"min_std={self.min_std}, max_std={self.max_std}"


def write_noise(folder: str | Path, noise: FlowNoise | None) -> None:
    """Write a policy's noise into its folder; None leaves none there.

    Raises:
        ValueError: the noise is not of this module's classes.
    """
    folder = Path(folder)
    (folder / _FILE).unlink(missing_ok=True)
    if noise is None:
        return
    name = type(noise).__name__
    if name not in _KINDS:
        raise ValueError(
            f"write_noise: expected one of {sorted(_KINDS)}, got a {name}. Set "
            "policy.noise = None before you write the policy, and keep the noise's "
            "state_dict yourself."
        )
    folder.mkdir(parents=True, exist_ok=True)
    weights = noise.state_dict()
    payload = {"noise": name, "arguments": noise.config, "weights": weights}
    write_bytes(folder / _FILE, lambda file: torch.save(payload, file))


def read_noise(folder: str | Path) -> FlowNoise | None:
    """Return the noise in a policy's folder, on the CPU; None if there is none.

    Raises:
        SchemaError: it is damaged.
    """
    path = Path(folder) / _FILE
    if not path.is_file():
        return None
    remedy = "Write the policy again with save_policy."
    payload = read_tensors("read_noise", path, _Stored, remedy=remedy)
    with Origin.of_file("read_noise", path, remedy).reading(f"one of {[*_KINDS]}"):
        noise = _KINDS[payload["noise"]](**payload["arguments"])
        noise.load_state_dict(payload["weights"])
    return noise


class _Stored(TypedDict):
    noise: str
    arguments: dict[str, Any]
    weights: dict[str, object]


_KINDS = {kind.__name__: kind for kind in (FlowSDENoise, LearnedNoise)}
