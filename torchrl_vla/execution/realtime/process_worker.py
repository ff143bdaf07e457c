"""Worker that runs the policy in a process of its own."""

from __future__ import annotations

import multiprocessing
import pickle
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from tensordict.nn import InteractionType, TensorDictModuleBase, set_interaction_type
from tensordict.nn.probabilistic import interaction_type

from torchrl_vla.errors import ExecutionError
from torchrl_vla.execution.realtime.inference_workers import (
    PolicyCall,
    Result,
    ThreadWorker,
)


class ProcessWorker(ThreadWorker):
    """Run the policy in a process of its own.

    Neither Python code of the policy nor a crash of it disturbs the control loop, and a
    policy that hangs is ended by :meth:`close`. The first call starts the process and
    sends it a copy of the policy, which takes seconds: make it before the robot moves.
    One worker serves one policy.

    Note:
        The process has the policy as it was on the first call: what is trained later is
        not seen there. ``close()``, and the next call sends it again. The policy has to
        be picklable, and the script that starts it needs
        ``if __name__ == "__main__":``.

    Examples:
        >>> worker = ProcessWorker()  # no process before the first call
        >>> worker.close()
    """

    def __init__(self) -> None:
        super().__init__()
        self._policy: TensorDictModuleBase | None = None
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None

    def submit(self, job: Callable[[], Result], step: int) -> Future[Result]:
        """Send a call of the policy, behind those that wait.

        Raises:
            ExecutionError: the job is no :class:`PolicyCall`, or of another policy.
        """
        policy = getattr(job, "policy", None)
        if policy is None or (self._policy is not None and policy is not self._policy):
            raise ExecutionError(
                "ProcessWorker: expected calls of one policy, got "
                f"{type(job).__name__} of {type(policy).__name__}. Give each executor "
                "a worker of its own. No action was sent."
            )
        self._policy = policy
        modes = interaction_type()
        return super().submit(lambda: self._call(job, modes), step)  # type: ignore[arg-type]

    def _call(self, job: PolicyCall, modes: InteractionType | None) -> Any:
        """Let the process call the policy; runs in the worker's thread."""
        try:
            if self._connection is None:
                self._start(job.policy)
            connection = self._connection
            assert connection is not None
            connection.send_bytes(pickle.dumps((job.inputs, job.modes, modes)))
            is_answer, value, trace = pickle.loads(connection.recv_bytes())
        except (EOFError, OSError) as error:
            self._end()
            raise ExecutionError(
                "ProcessWorker: expected an answer of the policy's process, and it "
                "has ended. The next call starts another."
            ) from error
        if is_answer:
            return value
        raise value from _RemoteError(trace)

    def _start(self, policy: TensorDictModuleBase) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        seed = int(torch.randint(2**62, ()))  # follows torch.manual_seed
        process = context.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        self._process = process
        theirs.close()
        self._connection.send_bytes(pickle.dumps((policy, seed)))

    def close(self) -> None:
        """End the process, also one that hangs, and the thread that waits for it."""
        process = self._process
        if process is not None:
            process.terminate()
            process.join(self.grace_s)
        super().close()
        self._end()
        self._policy = None

    def _end(self) -> None:
        connection, self._connection = self._connection, None
        self._process = None
        if connection is not None:
            connection.close()


def _serve(connection: Connection) -> None:
    """Answer calls until the other side closes; runs in the process."""
    try:
        policy, seed = pickle.loads(connection.recv_bytes())
        torch.manual_seed(seed)
        while True:
            inputs, modes, interaction = pickle.loads(connection.recv_bytes())
            try:
                with set_interaction_type(interaction):
                    answer = PolicyCall(policy, inputs, modes)()
                sent = pickle.dumps((True, answer, ""))
            except Exception as error:
                sent = _describe(error)
            connection.send_bytes(sent)
    except (EOFError, OSError, KeyboardInterrupt):
        pass  # the worker has closed


def _describe(error: Exception) -> bytes:
    trace = traceback.format_exc()
    try:
        sent = pickle.dumps((False, error, trace))
        pickle.loads(sent)
        return sent
    except Exception:
        return pickle.dumps((False, RuntimeError(repr(error)), trace))


class _RemoteError(Exception):
    """Traceback of an error in the process, as text."""

    def __str__(self) -> str:
        return f"in the policy's process:\n{self.args[0]}"
