"""Options of an executor, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from torchrl_vla._internal.option_names import (
    ExecutorName,
    OverlapName,
    Reaction,
    WorkerName,
)
from torchrl_vla.errors import SettingsError

if TYPE_CHECKING:
    from tensordict.nn import TensorDictModuleBase

    from torchrl_vla.execution import ChunkExecutor, InferenceWorker


@dataclass(frozen=True)
class ExecutorOptions:
    """Options of an executor.

    Args:
        executor: How chunks are executed: chunks (each to its end, or
            --replan-interval actions of it), ensemble (ACT's mean of all predictions),
            async (the next chunk is planned ahead) or rtc (real-time chunking: planned
            ahead, and it continues the chunk in execution; needs a policy that takes a
            guide).
        inference_delay: For rtc: control steps that an answer takes; left out, they are
            measured, which takes a --worker beside the step. For async within the
            step: the delay that is simulated.
        request_at: For async: the policy is called when this many actions are left.
        worker: For async and rtc: where the policy runs. Within the step the result is
            deterministic; a robot needs a thread or a process.
        when_late: For async and rtc: what a step does for which no action is left: wait
            for the answer, hold or repeat the last action, zero (deltas and velocities)
            or stop.
        timeout_s: For async and rtc: the longest wait, in seconds, of an episode's
            first step, and of every step that waits.
        max_late_steps: For async and rtc: stop after this many late steps in a row.
        overlap: For async: how a new chunk is blended with the rest of the old one.
        action_reference: For all but chunks: what actions are measured from, where the
            policy's metadata do not declare it.
    """

    executor: ExecutorName = "chunks"
    inference_delay: int | None = None
    request_at: int | None = None
    worker: WorkerName = "step"
    when_late: Reaction = "wait"
    timeout_s: float | None = None
    max_late_steps: int | None = None
    overlap: OverlapName = "replace"
    action_reference: Literal["absolute", "delta"] | None = None

    def check(self) -> None:
        """Refuse options that contradict each other or have no effect.

        Raises:
            SettingsError: names them.
        """
        used = _USED[self.executor]
        given = {
            field.name: vars(self)[field.name]
            for field in fields(self)
            if vars(self)[field.name] != field.default and field.name != "executor"
        }
        unused = sorted(set(given) - used)
        if unused:
            raise SettingsError(
                f"--executor {self.executor}: expected none of its unused options, got "
                + ", ".join(f"{_flag(name)} {given[name]}" for name in unused)
                + ". They would have no effect."
            )
        if self.executor == "async" and self.request_at is None:
            raise SettingsError(
                "--executor async: expected --request-at, the number of actions left "
                "when the policy is called, got none."
            )
        is_beside, has_delay = self.worker != "step", self.inference_delay is not None
        if self.executor == "async" and is_beside and has_delay:
            raise SettingsError(
                f"--worker {self.worker}: expected no --inference-delay, got "
                f"{self.inference_delay}. The answer is executed when it is there."
            )
        if self.executor == "rtc" and not is_beside and not has_delay:
            raise SettingsError(
                "--executor rtc: expected --inference-delay, in control steps, or a "
                "--worker thread or process whose delay is measured, got neither."
            )

    def maker(self, replan_interval: int | None = None) -> Callable[..., ChunkExecutor]:
        """Return what makes the executor of a policy, ``(policy, **keys)``.

        Args:
            replan_interval: actions of a chunk to execute; None = all (rtc: half of
                them).

        Raises:
            SettingsError: as :meth:`check`; the interval is not the executor's. What is
                returned raises it where the metadata do not say what actions are
                measured from.

        Examples:
            >>> from tensordict.nn import TensorDictModule
            >>> policy = TensorDictModule(lambda s: s, ["state"], ["action_chunk"])
            >>> options = ExecutorOptions("ensemble", action_reference="delta")
            >>> type(options.maker()(policy)).__name__
            'TemporalEnsemble'
        """
        self.check()
        if self.executor in ("ensemble", "async") and replan_interval is not None:
            raise SettingsError(
                f"--executor {self.executor}: expected no --replan-interval, got "
                f"{replan_interval}. It says by itself when the policy is called."
            )

        def make(policy: TensorDictModuleBase, **keys: Any) -> ChunkExecutor:
            from torchrl_vla import execution

            if self.executor == "chunks":
                return execution.MultiStepActorWrapper(
                    policy, replan_interval=replan_interval, **keys
                )
            keys["action_reference"] = self._reference(policy)
            if self.executor == "ensemble":
                return execution.TemporalEnsemble(policy, **keys)
            keys["when_late"] = execution.Lateness(
                self.when_late, self.timeout_s, self.max_late_steps
            )
            if self.executor == "async":
                blending = {
                    "replace": execution.Replace,
                    "average": execution.WeightedAverage,
                    "ensemble": execution.ACTEnsemble,
                }[self.overlap]
                return execution.AsyncExecutor(
                    policy,
                    request_at=int(self.request_at or 0),
                    worker=self._worker()
                    or execution.StepClockWorker(self.inference_delay or 0),
                    overlap=blending(),
                    **keys,
                )
            delay = self.inference_delay
            return execution.RealTimeChunking(
                policy,
                replan_interval=replan_interval or _half_of_chunk(policy),
                inference_delay=execution.LatencyTracker() if delay is None else delay,
                worker=self._worker(),
                **keys,
            )

        return make

    def _worker(self) -> InferenceWorker | None:
        from torchrl_vla.execution import ProcessWorker, ThreadWorker

        kinds = {"thread": ThreadWorker, "process": ProcessWorker}
        return kinds[self.worker]() if self.worker in kinds else None

    def _reference(self, policy: TensorDictModuleBase) -> str:
        from torchrl_vla.schema import metadata_of

        metadata = metadata_of(policy)
        known = None if metadata is None else metadata.action_reference
        if known is not None:
            order = ("relative", "delta", "absolute")
            return next(reference for reference in order if reference in known)
        if self.action_reference is None:
            raise SettingsError(
                f"--executor {self.executor}: expected metadata that declare "
                "action_reference, got none. Say what the policy's actions are "
                "measured from: --action-reference absolute or delta."
            )
        return self.action_reference


_LATE = {"worker", "when_late", "timeout_s", "max_late_steps", "action_reference"}
#: The options that each executor uses.
_USED: dict[str, set[str]] = {
    "chunks": set(),
    "ensemble": {"action_reference"},
    "async": {"inference_delay", "request_at", "overlap", *_LATE},
    "rtc": {"inference_delay", *_LATE},
}

DEFAULT_EXECUTOR = ExecutorOptions()


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _half_of_chunk(policy: TensorDictModuleBase) -> int:
    from torchrl_vla.policies.module_policy import declared

    size = declared(policy, "chunk_size", None)
    if size is None:
        raise SettingsError(
            f"--executor rtc: expected {type(policy).__name__} to declare chunk_size, "
            "got none. Give --replan-interval."
        )
    return max(1, int(size) // 2)
