"""Open-loop error of a policy's chunks on recorded episodes, and its latency."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from torchrl_vla.data import Demonstrations
from torchrl_vla.diagnosis.acting_path import ActingPath
from torchrl_vla.diagnosis.parity_trace import sample_rows
from torchrl_vla.policies.module_policy import declared
from torchrl_vla.schema import ACTION_CHUNK_KEY, ACTION_IS_PAD_KEY, EPISODE_KEY
from torchrl_vla.transforms import ActionChunkKeys, ActionChunkTransform

_RESAMPLES = 1000


@dataclass(frozen=True)
class ErrorEstimate:
    """Mean absolute error with its 95 percent interval.

    Args:
        name: of the dimension, or position in the chunk.
        mean: over frames, in the action's unit; of positions, over dimensions too, each
            divided by its standard deviation in the recorded actions.
        low: of the percentile bootstrap over episodes; NaN for a single episode.
        high: likewise.
        spread: standard deviation of the recorded actions; a policy whose error is no
            smaller than four fifths of it does no better than their mean.
    """

    name: str
    mean: float
    low: float
    high: float
    spread: float = 1.0


@dataclass(frozen=True)
class OpenLoopError:
    """Difference between predicted and recorded chunks, per dimension and position.

    Args:
        dimensions: one estimate per action dimension.
        positions: one per position in the chunk.
        episodes: number of episodes, which the bootstrap resamples.
        frames: number of frames predicted for.
        held_out: True = training did not see the episodes, as the caller says.
    """

    dimensions: tuple[ErrorEstimate, ...]
    positions: tuple[ErrorEstimate, ...]
    episodes: int
    frames: int
    held_out: bool

    def __str__(self) -> str:
        kind = "held-out" if self.held_out else "training"
        lines = [
            f"open-loop error on {self.frames} frames of {self.episodes} {kind} "
            "episodes (95 % bootstrap over episodes)",
            f"{'dimension':>12}  {'error':>9}  {'interval':>21}  {'spread':>9}",
        ]
        for row in self.dimensions:
            interval = f"{row.low:.4g} to {row.high:.4g}"
            lines.append(
                f"{row.name:>12}  {row.mean:>9.4g}  {interval:>21}  {row.spread:>9.4g}"
            )
        lines.append(f"{'position':>12}  {'error/std':>9}  {'interval':>21}")
        for row in self.positions:
            interval = f"{row.low:.4g} to {row.high:.4g}"
            lines.append(f"{row.name:>12}  {row.mean:>9.4g}  {interval:>21}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Latency:
    """Time of one policy call for one robot, against the control rate.

    Args:
        call_s: median seconds of a call with a batch of one.
        rate_hz: control rate of the data; None = undeclared.
        actions: executed per call.
    """

    call_s: float
    rate_hz: float | None
    actions: int

    def __str__(self) -> str:
        text = f"one policy call takes {1000 * self.call_s:.1f} ms"
        if self.rate_hz is None:
            return f"{text}; the control rate is undeclared"
        text += f"; a step at {self.rate_hz:g} Hz has {1000 / self.rate_hz:.1f} ms"
        return f"{text}, and a call serves {self.actions} steps"


def measure_error(
    path: ActingPath,
    dataset: Demonstrations,
    *,
    held_out: bool,
    episodes: int = 50,
    frames: int = 8,
) -> tuple[OpenLoopError, Latency]:
    """Predict for recorded frames, and compare with what was done.

    Args:
        path: its policy of robot space predicts.
        dataset: the recorded episodes.

    Keyword Args:
        held_out: True = training did not see them.
        episodes: at most so many, spread evenly.
        frames: of each episode at most so many, spread evenly.
    """
    rows = _rows(dataset, episodes, frames)
    policy = path.robot_policy
    chunks = ActionChunkTransform(
        path.policy.chunk_size,
        storage=dataset.storage,
        keys=ActionChunkKeys(done=None),
    )
    data = sample_rows(dataset, rows, history_size=path.history_size, transform=chunks)
    wanted, is_pad = data.get(ACTION_CHUNK_KEY), data.get(ACTION_IS_PAD_KEY)
    inputs = data.exclude(ACTION_CHUNK_KEY, ACTION_IS_PAD_KEY)
    parts = []
    with path.evaluated():
        for batch in inputs.split(32):
            parts.append(policy(batch.copy()).get(ACTION_CHUNK_KEY).cpu())
        call_s = _time(policy, inputs[:1])
    got = torch.cat(parts)
    gap = (got - wanted).abs().double()
    real = (~is_pad).unsqueeze(-1).expand_as(gap)
    episode = data.get(EPISODE_KEY).as_subclass(Tensor)
    spread = wanted[..., 0, :].double().std(0, correction=0)
    scaled = gap / spread.clamp_min(1e-9)
    metadata = dataset.metadata
    names = metadata.action_names or tuple(map(str, range(gap.shape[-1])))
    error = OpenLoopError(
        tuple(_estimates(gap, real, episode, 1, names, spread.tolist())),
        tuple(
            _estimates(
                scaled[..., spread > 1e-9],
                real[..., spread > 1e-9],
                episode,
                2,
                [str(i) for i in range(gap.shape[1])],
            )
        ),
        episodes=len(episode.unique()),
        frames=len(episode),
        held_out=held_out,
    )
    interval = declared(path.executor, "replan_interval", None)
    actions = interval or path.policy.chunk_size
    return error, Latency(call_s, metadata.control_frequency_hz, actions)


def _rows(dataset: Demonstrations, episodes: int, frames: int) -> Tensor:
    every = dataset.episodes
    chosen = every[torch.linspace(0, len(every) - 1, min(episodes, len(every))).long()]
    of = dataset.frames.get(EPISODE_KEY).as_subclass(Tensor)
    rows = []
    for episode in chosen.unique():
        mine = (of == episode).nonzero().flatten()
        count = min(frames, len(mine))
        rows.append(mine[torch.linspace(0, len(mine) - 1, count).long()])
    return torch.cat(rows)


def _estimates(
    gap: Tensor,
    real: Tensor,
    episode: Tensor,
    over: int,
    names: tuple[str, ...] | list[str],
    spread: list[float] | None = None,
) -> list[ErrorEstimate]:
    """Return the mean over one axis of ``[F, H, A]``, with bootstrap intervals."""
    _, index = episode.unique(return_inverse=True)
    count = int(index.max()) + 1
    sums = (gap * real).sum(over)
    sizes = real.sum(over).double()
    totals = torch.zeros(count, sums.shape[1], dtype=torch.float64)
    weights = torch.zeros_like(totals)
    totals.index_add_(0, index, sums)
    weights.index_add_(0, index, sizes)
    mean = totals.sum(0) / weights.sum(0)
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(count, (_RESAMPLES, count), generator=generator)
    resampled = totals[draws].sum(1) / weights[draws].sum(1)
    low, high = resampled.nanquantile(torch.tensor([0.025, 0.975]).double(), 0)
    if count == 1:
        low, high = (torch.full_like(mean, torch.nan) for _ in range(2))
    spread = [1.0] * len(names) if spread is None else spread
    columns = (names, mean.tolist(), low.tolist(), high.tolist(), spread)
    return [ErrorEstimate(*row) for row in zip(*columns, strict=True)]


def _time(policy: torch.nn.Module, inputs: object, calls: int = 10) -> float:
    times = []
    for _ in range(calls + 2):
        data = inputs.copy()  # type: ignore[attr-defined]
        started = time.perf_counter()
        policy(data).get(ACTION_CHUNK_KEY).cpu()  # waits for the device
        times.append(time.perf_counter() - started)
    return median(times[2:])
