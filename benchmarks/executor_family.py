"""Every executor, with an actor that costs nothing, for bench_executors.py."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import Compose, InitTracker, TransformedEnv

from torchrl_vla.envs import ToyVLAEnv
from torchrl_vla.execution import (
    ActionInterpolation,
    AsyncExecutor,
    MultiStepActorWrapper,
    RealTimeChunking,
    SkipWaiting,
    StepClockWorker,
    TemporalEnsemble,
    ThreadWorker,
)
from torchrl_vla.schema import GUIDE_CHUNK_KEY, GUIDE_WEIGHT_KEY, InstructionTable

HORIZON, ACTION_DIM = 16, 7
TICKS = 2  # of interpolation


class Prophet(TensorDictModuleBase):
    """Say for every step to come which step it will be, and how long that took.

    Args:
        stride: steps from one action to the next.
    """

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.in_keys, self.out_keys = ["now"], ["action_chunk"]
        self.optional_in_keys = [GUIDE_CHUNK_KEY, GUIDE_WEIGHT_KEY]
        ahead = stride * torch.arange(float(HORIZON)).unsqueeze(-1)
        self.ahead = ahead.expand(HORIZON, ACTION_DIM)
        self.thread = threading.get_ident()
        self.spent = 0.0  # in the control thread

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the chunk."""
        start = time.thread_time()
        tensordict.set("action_chunk", tensordict.get("now").unsqueeze(-1) + self.ahead)
        if threading.get_ident() == self.thread:
            self.spent += time.thread_time() - start
        return tensordict


class Player:
    """Send the observations of episodes to one executor, and time what it does.

    Args:
        make: makes the executor of an actor.

    Keyword Args:
        ticks: steps that an action takes.
        waits: True = rows may wait; :class:`SkipWaiting` is then timed with it.
    """

    def __init__(
        self,
        make: Callable[[TensorDictModuleBase], TensorDictModuleBase],
        *,
        ticks: int = 1,
        waits: bool = False,
    ) -> None:
        self.actor = Prophet(ticks)
        self.executor = make(self.actor)
        self.ticks, self.waits = ticks, waits
        self.skip: SkipWaiting | None = None

    def check(self, begins: Tensor) -> None:
        """Refuse an executor that does not execute what was foreseen."""
        for now, action, waiting in self._run(begins)[1]:
            # An interpolated action is reached at its last tick; the first is held.
            expected = (now - (self.ticks - 1)).clamp_min(0).expand_as(action)
            if not torch.allclose(action[~waiting], expected[~waiting], rtol=1e-5):
                raise AssertionError(f"{self.executor}: another action was executed.")

    def play(self, begins: Tensor) -> float:
        """Return microseconds per step, without the actor's."""
        return self._run(begins)[0] / len(begins) * 1e6

    @torch.no_grad()
    def _run(self, begins: Tensor) -> tuple[float, list[tuple[Tensor, Tensor, Tensor]]]:
        steps, rows = begins.shape
        td = TensorDict({}, [rows])
        skip = self._skip_waiting(rows)
        now, waiting = torch.zeros(rows, 1), torch.zeros(rows, dtype=torch.bool)
        spent, played = 0.0, []
        after = TensorDict({"reward": torch.zeros(rows, 1), "now": now}, [rows])
        self.actor.spent = 0.0
        for step in range(steps):
            is_init = (begins[step] | waiting).unsqueeze(-1)
            now = torch.where(is_init, 0.0, now + 1)
            td.update({"now": now, "is_init": is_init})
            if self.waits:
                td["is_waiting"] = torch.zeros_like(is_init)
            start = time.thread_time()
            td = self.executor(td)
            if skip is not None:
                skip._step(skip._inv_call(td.copy()), after.copy())
            spent += time.thread_time() - start
            if self.waits:
                waiting = td["is_waiting"].squeeze(-1)
            played.append((now, td["action"], waiting))
        return spent - self.actor.spent, played

    def _skip_waiting(self, rows: int) -> SkipWaiting | None:
        if self.waits and self.skip is None:
            self.skip = SkipWaiting()
            env = ToyVLAEnv(batch_size=[rows], instructions=InstructionTable())
            self.env = TransformedEnv(env, Compose(InitTracker(), self.skip))
            self.env.reset()
        return self.skip

    def close(self) -> None:
        """End threads."""
        if isinstance(self.executor, AsyncExecutor):
            self.executor.close()


def draw_begins(steps: int, rows: int, chance: float) -> Tensor:
    """Return when episodes begin, bool ``[steps, rows]``; all do at the first step."""
    generator = torch.Generator().manual_seed(0)
    begins = torch.rand(steps, rows, generator=generator) < chance
    begins[0] = True
    return begins


def _later(actor: TensorDictModuleBase, worker: object) -> AsyncExecutor:
    return AsyncExecutor(
        actor, request_at=8, action_reference="absolute", worker=worker
    )


#: What makes each executor, and how it is played.
FAMILY: dict[str, tuple[Callable, dict]] = {
    "open loop": (lambda actor: MultiStepActorWrapper(actor, HORIZON), {}),
    "receding": (
        lambda actor: MultiStepActorWrapper(actor, HORIZON, replan_interval=8),
        {},
    ),
    "align + SkipWaiting": (
        lambda actor: MultiStepActorWrapper(actor, HORIZON, align=True),
        {"waits": True},
    ),
    "ensemble": (
        lambda actor: TemporalEnsemble(actor, action_reference="absolute"),
        {},
    ),
    "real time": (
        lambda actor: RealTimeChunking(
            actor,
            replan_interval=8,
            inference_delay=4,
            action_reference="absolute",
        ),
        {},
    ),
    "async, clock": (lambda actor: _later(actor, StepClockWorker(4)), {}),
    "async, thread": (lambda actor: _later(actor, ThreadWorker()), {}),
    "interpolation + SkipWaiting": (
        lambda actor: ActionInterpolation(
            MultiStepActorWrapper(actor, HORIZON), TICKS, action_reference="absolute"
        ),
        {"ticks": TICKS, "waits": True},
    ),
}
