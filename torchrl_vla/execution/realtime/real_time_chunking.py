"""Real-time chunking executor: a new chunk continues the one in execution."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase, unravel_key
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_vla.execution.action_reference import check_reference
from torchrl_vla.execution.chunk_executor import ChunkExecutor
from torchrl_vla.execution.executor_keys import ExecutorKeys
from torchrl_vla.execution.realtime.rtc_weights import ExponentialPrefix, PrefixSchedule
from torchrl_vla.execution.realtime.staggered_chunks import (
    Answer,
    StaggeredChunks,
    select_envs,
)
from torchrl_vla.schema import (
    GUIDE_CHUNK_KEY,
    GUIDE_WEIGHT_KEY,
    OBSERVATION_AGE_KEY,
    ExecutionError,
    check_positive_int,
)

_GUIDE_KEYS = (GUIDE_CHUNK_KEY, GUIDE_WEIGHT_KEY)


class RealTimeChunking(ChunkExecutor):
    """Call the policy early and have its new chunk continue the old one.

    A large policy takes several control steps to answer. Every ``replan_interval``
    steps it is called with the present observation, and its chunk is entered
    ``inference_delay`` steps later, at the action that is due then; until then the old
    chunk is executed. So that nothing jumps, the policy reads the rest of the old
    chunk (``guide_chunk``) and how strictly to continue it (``guide_weight``):
    strictly for the steps that are executed anyway.

    Note:
        The policy is called within the step and its answer is held back, so that a
        simulator behaves as a robot with that delay would. At the beginning of an
        episode there is nothing to continue, and the first chunk is executed from its
        first action, without delay.

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
            ``H - s``.
        action_reference: what the actions are measured from, ``"absolute"`` or
            ``"delta"``; chunks that are relative to a state cannot continue each other.
        schedule: how strictly the new chunk continues the old one.
        keys: of what is read and written; None = ``ExecutorKeys()``.

    Raises:
        ValueError: the policy takes no guide; the delay is longer than the interval;
            the actions are relative.
        ExecutionError: the chunk is shorter than ``s + d``; and as
            :class:`ChunkExecutor`.

    Source: Black, Galliker and Levine, "Real-Time Execution of Action Chunking Flow
    Policies" (2025), algorithm 1 with a constant delay.

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
        inference_delay: int,
        action_reference: str,
        schedule: PrefixSchedule = ExponentialPrefix(),  # noqa: B008 (has no state)
        keys: ExecutorKeys | None = None,
    ) -> None:
        check_positive_int("RealTimeChunking", "replan_interval", replan_interval)
        check_reference("RealTimeChunking", action_reference)
        if not 0 <= inference_delay <= replan_interval:
            raise ValueError(
                "RealTimeChunking: expected inference_delay in 0..replan_interval="
                f"{replan_interval}, got {inference_delay}. An answer has to "
                "arrive before the next call of the policy."
            )
        _check_takes_guide(policy)
        super().__init__(policy, keys=keys)
        self.replan_interval = replan_interval
        self.inference_delay = inference_delay
        self.action_reference = action_reference
        self.schedule = schedule
        self.out_keys = [*self.out_keys, OBSERVATION_AGE_KEY, *_GUIDE_KEYS]

    def _serve(self, tensordict: TensorDictBase, begins: Tensor) -> TensorDictBase:
        plans: _Plans | None = self._state
        switched = None
        if plans is None:
            answer = self._plan(tensordict, begins, begins, None)
            self._state = plans = _Plans(StaggeredChunks(answer))
            switched = begins
        elif plans.steps_until_event == 0 or begins.any():
            switched = begins | self._enter_pending(plans, begins)
            switched = switched | self._replan(plans, tensordict, begins)
        if switched is not None:
            plans.steps_until_event = self._steps_to_next_event(plans.running)
        plans.steps_until_event -= 1
        action = plans.running.pop()
        due = self._is_due(plans.running.positions)
        return self._write(tensordict, action, switched, plans.running.outputs, due)

    def _enter_pending(self, plans: _Plans, begins: Tensor) -> Tensor:
        """Enter the chunks that are due, and return their environments."""
        delay = self.inference_delay
        entered = plans.running.positions == self.replan_interval + delay
        entered = entered & ~begins & (delay > 0)
        if entered.any():
            answer = plans.pending.take(entered)
            plans.running.replace(entered, answer, position=delay)
        return entered

    def _replan(
        self, plans: _Plans, tensordict: TensorDictBase, begins: Tensor
    ) -> Tensor:
        """Plan where it is due; return the environments that switch without delay."""
        due = (plans.running.positions == self.replan_interval) & ~begins
        planned = due | begins
        if not planned.any():
            return planned
        everyone = bool(planned.all())
        answer = self._plan(tensordict, planned, begins, plans.running)
        at_once = self.inference_delay == 0
        later = plans.running if at_once else plans.pending
        for envs, chunks in ((begins, plans.running), (due, later)):
            if envs.any():
                part = select_envs(answer, envs if everyone else envs[planned])
                chunks.replace(envs, part, position=0)
        return due & at_once

    def _plan(
        self,
        tensordict: TensorDictBase,
        planned: Tensor,
        begins: Tensor,
        running: StaggeredChunks | None,
    ) -> Answer:
        """Call the policy for some environments; those that do not begin are guided."""
        envs = None if planned.all() else planned
        inputs = tensordict.exclude(*_GUIDE_KEYS)  # the last decision's may be there
        if running is not None:
            guide, weight = self._guide(running, ~begins)
            inputs.set(GUIDE_CHUNK_KEY, guide).set(GUIDE_WEIGHT_KEY, weight)
        chunk, outputs, serial = self._call_policy(inputs, envs)
        self._check_length(chunk, running)
        if running is None:
            guide, weight = torch.zeros_like(chunk), torch.zeros_like(chunk[..., 0])
        age = torch.where(begins, 0, self.inference_delay).unsqueeze(-1)
        added = dict(
            zip((OBSERVATION_AGE_KEY, *_GUIDE_KEYS), (age, guide, weight), strict=True)
        )
        if envs is not None:
            added = {key: value[envs] for key, value in added.items()}
        return chunk, {**outputs, **added}, serial

    def _guide(self, running: StaggeredChunks, guided: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rest of each chunk, from the present step on, and its weights."""
        size, interval = running.chunk_size, self.replan_interval
        overlap, free = size - interval, ~guided.unsqueeze(-1)
        guide = torch.zeros_like(running.actions)
        rest = running.actions[..., interval:, :]
        guide[..., :overlap, :] = rest.masked_fill(free.unsqueeze(-1), 0)
        weight = self.schedule(self.inference_delay, overlap, size).to(guide)
        return guide, weight.expand(guide.shape[:-1]).masked_fill(free, 0)

    def _inputs(
        self, tensordict: TensorDictBase, envs: Tensor | None
    ) -> TensorDictBase:
        inputs = super()._inputs(tensordict, envs)
        for key, value in tensordict.select(*_GUIDE_KEYS, strict=False).items():
            inputs.set(key, value if envs is None else value[envs])
        return inputs

    def _is_due(self, positions: Tensor) -> Tensor:
        """Return the environments that are planned for at these positions."""
        interval, delay = self.replan_interval, self.inference_delay
        due = positions == interval
        return due | (positions == interval + delay) if delay == interval else due

    def _steps_to_next_event(self, running: StaggeredChunks) -> int:
        positions, interval = running.positions, self.replan_interval
        later = interval + self.inference_delay - positions
        return int(torch.where(positions < interval, interval - positions, later).min())

    def _check_length(self, chunk: Tensor, running: StaggeredChunks | None) -> None:
        size = chunk.shape[-2]
        needed = self.replan_interval + self.inference_delay
        if size < needed:
            raise ExecutionError(
                "RealTimeChunking: expected chunks of at least replan_interval + "
                f"inference_delay = {needed} actions at {self.chunk_key!r}, got "
                f"{size}: there would be nothing to execute while the policy runs. "
                "Decrease replan_interval. No action was sent."
            )
        if running is not None and size != running.chunk_size:
            raise ExecutionError(
                f"RealTimeChunking: expected chunks of {running.chunk_size} actions "
                f"at {self.chunk_key!r} as before, got {size}. No action was sent."
            )

    def extra_repr(self) -> str:
        """Show when the policy is called and how it is guided."""
        return (
            f"replan_interval={self.replan_interval}, "
            f"inference_delay={self.inference_delay}, schedule={self.schedule}"
        )


class _Plans:
    """The chunks in execution and the answers that are held back."""

    def __init__(self, running: StaggeredChunks) -> None:
        self.running = running
        answer = (running.actions, dict(running.outputs), running.serials)
        self.pending = StaggeredChunks(answer)  # without meaning until replaced
        self.steps_until_event = 0

    @property
    def batch_size(self) -> torch.Size:
        return self.running.batch_size

    @property
    def serials(self) -> Tensor:
        return self.running.serials


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
