"""Real-time chunking executor: a new chunk continues the one in execution."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase, unravel_key
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_vla.execution.action_reference import check_reference
from torchrl_vla.execution.chunk_cache import Outputs
from torchrl_vla.execution.executor_keys import ExecutorKeys
from torchrl_vla.execution.realtime.background_executor import BackgroundExecutor
from torchrl_vla.execution.realtime.inference_workers import (
    InferenceWorker,
    StepClockWorker,
)
from torchrl_vla.execution.realtime.latency_tracker import LatencyTracker
from torchrl_vla.execution.realtime.lateness import Lateness, Reaction
from torchrl_vla.execution.realtime.requests import AsyncState, InFlightRequest
from torchrl_vla.execution.realtime.rtc_weights import ExponentialPrefix, PrefixSchedule
from torchrl_vla.schema import (
    GUIDE_CHUNK_KEY,
    GUIDE_WEIGHT_KEY,
    ExecutionError,
    check_positive_int,
)

_GUIDE_KEYS = (GUIDE_CHUNK_KEY, GUIDE_WEIGHT_KEY)


class RealTimeChunking(BackgroundExecutor):
    """Call the policy early and have its new chunk continue the old one.

    A large policy takes several control steps to answer. Every ``replan_interval``
    steps it is called with the present observation, and its chunk is entered
    ``inference_delay`` steps later, at the action that is due then; until then the old
    chunk is executed. So that nothing jumps, the policy reads the rest of the old
    chunk (``guide_chunk``) and how strictly to continue it (``guide_weight``):
    strictly for the steps that are executed anyway.

    An answer is entered on the step that it was planned for and never before it, so
    that the actions are those of the deterministic worker as long as every answer comes
    in time. One that comes later is entered when it is there, at the action that is due
    then; the old chunk is executed meanwhile, and ``when_late`` counts when it ends.

    Note:
        Without a ``worker`` the policy is called within the step and its answer is held
        back, so that a simulator behaves as a robot with that delay would; a step takes
        as long as the policy does. A robot needs ``worker=ThreadWorker()`` and a
        ``when_late`` with a ``timeout_s``. At the beginning of an episode there is
        nothing to continue: the step waits as long as ``when_late`` allows, and the
        first chunk is executed from its first action.

    **Reads** the policy's ``in_keys``; ``is_init`` bool ``[*B, 1]``; ``decision_index``
    and ``action`` of the step before, if they are there.

    **Writes** what every :class:`ChunkExecutor` does, of the chunk in execution:
    ``is_decision`` is True on the first step that executes a new chunk;
    ``observation_age`` int64 ``[*B, 1]``, the steps from the observation that the
    chunk in execution was planned from to that step; ``guide_chunk`` float
    ``[*B, H, A]`` and ``guide_weight`` float ``[*B, H]`` that it was planned with, from
    which its log-probability can be computed again.

    Args:
        policy: writes a chunk ``[*B, H, A]`` in robot space and has both guide keys in
            its ``optional_in_keys``.

    Keyword Args:
        replan_interval: ``s``, actions executed per decision.
        inference_delay: ``d``, steps that an answer takes, ``0 .. s`` and at most
            ``H - s``; or a :class:`LatencyTracker`, which measures them: ``d`` is then
            at most what is left of the old chunk.
        action_reference: what the actions are measured from, ``"absolute"`` or
            ``"delta"``; chunks that are relative to a state cannot continue each other.
        schedule: how strictly the new chunk continues the old one.
        worker: where the policy runs; None = within the step.
        when_late: what to do on a step for which no action is left, a
            :class:`Lateness` or its reaction alone, such as ``"hold"``.
        keys: of what is read and written; None = ``ExecutorKeys()``.

    Raises:
        ValueError: the policy takes no guide; the delay is longer than the interval, or
            measured without a worker; the actions are relative, or ``when_late`` does
            not suit them.
        ExecutionError: the chunk is shorter than ``s + d``; the policy failed in its
            worker; an answer came after its last action; no action was left and
            ``when_late`` stops; and as :class:`ChunkExecutor`.

    Source: Black, Galliker and Levine, "Real-Time Execution of Action Chunking Flow
    Policies" (2025), algorithm 1; an answer is not entered before its planned step.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import TensorDictModule
        >>> policy = TensorDictModule(
        ...     lambda s: s.unsqueeze(-1) + torch.arange(4.0).view(4, 1) / 10,
        ...     in_keys=["state"],
        ...     out_keys=["action_chunk"],
        ... )
        >>> policy.optional_in_keys = ["guide_chunk", "guide_weight"]
        >>> executor = RealTimeChunking(
        ...     policy,
        ...     replan_interval=2,
        ...     inference_delay=1,
        ...     action_reference="absolute",
        ... )
        >>> for step in range(5):
        ...     td = TensorDict(state=torch.full((1, 1), float(step)))
        ...     td.batch_size = [1]
        ...     td["is_init"] = torch.full((1, 1), step == 0)
        ...     td = executor(td)
        ...     print(f"{td['action'].item():.1f}", td["is_decision"].item())
        0.0 True
        0.1 False
        0.2 False
        2.1 True
        2.2 False
    """

    def __init__(
        self,
        policy: TensorDictModuleBase,
        *,
        replan_interval: int,
        inference_delay: int | LatencyTracker,
        action_reference: str,
        schedule: PrefixSchedule = ExponentialPrefix(),  # noqa: B008 (has no state)
        worker: InferenceWorker | None = None,
        when_late: Reaction | Lateness = "wait",
        keys: ExecutorKeys | None = None,
    ) -> None:
        check_positive_int("RealTimeChunking", "replan_interval", replan_interval)
        check_reference("RealTimeChunking", action_reference)
        if isinstance(inference_delay, LatencyTracker):
            if worker is None:
                raise ValueError(
                    "RealTimeChunking: expected a worker for an inference_delay that "
                    "is measured, got None: a policy that is called within the step "
                    "takes no steps. Pass ThreadWorker(), or a number of steps."
                )
        elif not 0 <= inference_delay <= replan_interval:
            raise ValueError(
                "RealTimeChunking: expected inference_delay in 0..replan_interval="
                f"{replan_interval}, got {inference_delay}. An answer has to "
                "arrive before the next call of the policy."
            )
        _check_takes_guide(policy)
        super().__init__(
            policy,
            action_reference=action_reference,
            worker=StepClockWorker(delay_steps=0) if worker is None else worker,
            when_late=when_late,
            keys=keys,
        )
        self.replan_interval = replan_interval
        self.inference_delay = inference_delay
        self.schedule = schedule
        self.out_keys = [*self.out_keys, *_GUIDE_KEYS]

    _earlier = "decrease replan_interval"

    @property
    def delay_steps(self) -> int:
        """The delay that the next answer is planned with, in steps."""
        delay = self.inference_delay
        return delay.delay_steps if isinstance(delay, LatencyTracker) else delay

    def _measure(self, steps: int) -> None:
        if isinstance(self.inference_delay, LatencyTracker):
            self.inference_delay.record(steps)

    def _steps_until_due(self, positions: Tensor, size: int) -> Tensor:
        return self.replan_interval - positions

    def _guide(
        self, state: AsyncState, planned: Tensor, begins: Tensor
    ) -> tuple[int, Outputs]:
        """Return the rest of each chunk, from the present step on, and its weights."""
        running = state.chunks
        if running is None:
            return self.delay_steps, {}
        size = running.chunk_size
        guided = planned & ~begins
        positions = running.positions.clamp(max=size)
        at = [int(position) for position in positions[guided].unique()]
        # The committed actions: no answer may be planned to arrive after them.
        delay = min([self.delay_steps, *(size - position for position in at)])
        index = torch.arange(size, device=positions.device) + positions.unsqueeze(-1)
        is_left = (index < size) & guided.unsqueeze(-1)
        index = index.clamp(max=size - 1).unsqueeze(-1).expand(running.actions.shape)
        rest = running.actions.gather(-2, index)
        guide = rest.masked_fill(~is_left.unsqueeze(-1), 0)
        weight = torch.zeros_like(guide[..., 0])
        for position in at:
            weights = self.schedule(delay, size - position, size).to(guide)
            weight[guided & (positions == position)] = weights
        return delay, {GUIDE_CHUNK_KEY: guide, GUIDE_WEIGHT_KEY: weight}

    def _added(self, request: InFlightRequest, chunk: Tensor) -> Outputs:
        zeros = torch.zeros_like(chunk), torch.zeros_like(chunk[..., 0])
        return {**dict(zip(_GUIDE_KEYS, zeros, strict=True)), **request.outputs}

    def _inputs(
        self, tensordict: TensorDictBase, envs: Tensor | None
    ) -> TensorDictBase:
        # The guide of the last decision may be there.
        return super()._inputs(tensordict.exclude(*_GUIDE_KEYS), envs)

    def _check_length(self, chunk: Tensor, size: int | None) -> None:
        length = chunk.shape[-2]
        needed = self.replan_interval
        if not isinstance(self.inference_delay, LatencyTracker):
            needed += self.inference_delay
        if length < needed:
            raise ExecutionError(
                "RealTimeChunking: expected chunks of at least replan_interval + "
                f"inference_delay = {needed} actions at {self.chunk_key!r}, got "
                f"{length}: there would be nothing to execute while the policy runs. "
                "Decrease replan_interval. No action was sent."
            )
        if size not in (None, length):
            raise ExecutionError(
                f"RealTimeChunking: expected chunks of {size} actions "
                f"at {self.chunk_key!r} as before, got {length}. No action was sent."
            )

    def extra_repr(self) -> str:
        """Show when the policy is called, where it runs and how it is guided."""
        return (
            f"replan_interval={self.replan_interval}, "
            f"inference_delay={self.inference_delay}, schedule={self.schedule}, "
            f"{super().extra_repr()}"
        )


def _check_takes_guide(policy: TensorDictModuleBase) -> None:
    declared = [unravel_key(key) for key in getattr(policy, "optional_in_keys", ())]
    if not set(_GUIDE_KEYS) <= set(declared):
        raise ValueError(
            f"RealTimeChunking: expected {type(policy).__name__} to have "
            f"{GUIDE_CHUNK_KEY!r} and {GUIDE_WEIGHT_KEY!r} in its optional_in_keys, "
            f"got {declared}: it cannot continue a chunk that is being executed. Use a "
            "flow head, a policy of LeRobot's whose rtc_config is enabled, or "
            "AsyncExecutor, which needs no guide."
        )
