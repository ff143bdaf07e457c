"""Policies and workers whose delays a test decides."""

from __future__ import annotations

import os
import threading
import time

import torch
from tensordict import LazyStackedTensorDict, TensorDict
from tensordict.nn import InteractionType, TensorDictModuleBase
from tensordict.nn.probabilistic import interaction_type

from torchrl_vla.execution import StepClockWorker

GUIDE_KEYS = ["guide_chunk", "guide_weight"]


class ClockPolicy(TensorDictModuleBase):
    """chunk[h] = 1000 clock + h, in every dimension; takes a guide and ignores it."""

    def __init__(self, chunk_size: int = 6, action_dim: int = 1) -> None:
        super().__init__()
        self.chunk_size, self.width = chunk_size, action_dim
        self.in_keys, self.out_keys = ["clock"], ["action_chunk"]
        self.optional_in_keys = GUIDE_KEYS

    def forward(self, td):
        ahead = torch.arange(self.chunk_size)
        chunk = (1000.0 * td["clock"][..., None] + ahead)[..., None]
        return td.set("action_chunk", chunk.expand(*chunk.shape[:-1], self.width))


class HangingPolicy(ClockPolicy):
    """Hangs from a clock on, until it is released."""

    def __init__(self, hangs_from: int, chunk_size: int = 6) -> None:
        super().__init__(chunk_size)
        self.hangs_from = hangs_from
        self.is_called, self.release = threading.Event(), threading.Event()

    def forward(self, td):
        if td["clock"].max() >= self.hangs_from:
            self.is_called.set()
            assert self.release.wait(60)
        return super().forward(td)


class ListedDelays(StepClockWorker):
    """The answer to a request of step t arrives delays[t] steps later."""

    def __init__(self, delays) -> None:
        super().__init__(0)
        self.delays = delays

    def submit(self, job, step):
        self.delay_steps = self.delays[step]
        return super().submit(job, step)


def observe(clock, begins, **entries) -> TensorDict:
    """One step; ``clock`` and ``begins`` are lists, one entry per environment."""
    td = TensorDict({"clock": torch.tensor(clock)}, [len(clock)])
    td["is_init"] = torch.tensor(begins)[:, None]
    return td.update({key: torch.tensor(value) for key, value in entries.items()})


def play(executor, steps, start=0, begins=(0,), **entries):
    """Serve one environment, whose clock is the step + 1; return the rollout."""
    out = [
        executor(observe([t + 1], [t in begins], **entries))
        for t in range(start, start + steps)
    ]
    return LazyStackedTensorDict.maybe_dense_stack(out, -1)[0]


def actions(rollout) -> list[float]:
    return rollout["action"][..., 0].tolist()


class ObedientPolicy(ClockPolicy):
    """Does what the clock says: 13 raises, 14 ends the process, 15 hangs."""

    def forward(self, td):
        clock = int(td["clock"].max())
        if clock == 13:
            raise KeyError("camera")
        if clock == 14:
            os._exit(3)
        if clock == 15:
            time.sleep(60)
        td = super().forward(td)
        td["process"] = torch.full(td.shape, os.getpid())
        td["grad"] = torch.full(td.shape, torch.is_grad_enabled())
        random = interaction_type() is InteractionType.RANDOM
        td["random"] = torch.full(td.shape, random)
        td["noise"] = torch.randn(td.shape)
        return td
