"""In-flight requests of the executors that call the policy in a worker."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_vla.execution.chunk_cache import Outputs
from torchrl_vla.execution.realtime.staggered_chunks import Answer, StaggeredChunks


@dataclass(eq=False)
class InFlightRequest:
    """A call of the policy that has not been executed yet.

    Args:
        envs: bool ``[*B]``, the environments that still need the answer.
        planned: bool ``[*B]``, the environments that it is for; None = all.
        batch_size: of the policy's inputs.
        step: of the observation.
        answer: what the policy writes.
        delay: steps after which the answer may be executed, not earlier.
        outputs: what the executor adds to the policy's outputs.
        read: the answer, checked; None = it was not read.
        has_arrived: True = it is there, without a wait that was skipped.
    """

    envs: Tensor
    planned: Tensor | None
    batch_size: torch.Size
    step: int
    answer: Future[TensorDictBase]
    delay: int = 0
    outputs: Outputs = field(default_factory=dict)
    read: Answer | None = None
    has_arrived: bool = False


class AsyncState:
    """The chunks in execution, and the requests in flight.

    Args:
        begins: True for all environments, bool ``[*B]``.
    """

    def __init__(self, begins: Tensor) -> None:
        self.batch_size = begins.shape
        self.chunks: StaggeredChunks | None = None
        self.requests: list[InFlightRequest] = []
        self.step = 0
        #: The next step on which an environment is due, or has no action left.
        self.next_event = 0
        self.in_flight = torch.zeros_like(begins)
        self.requested_at = torch.zeros_like(begins, dtype=torch.int64)
        #: Environments that have had no chunk in their episode, bool ``[*B]``.
        self.empty = torch.ones_like(begins)
        #: The action of the step before, ``[*B, A]``.
        self.last_action: Tensor | None = None
        #: Steps without motion since the request, int64 ``[*B]``; None = none.
        self.idle: Tensor | None = None
        #: Late steps in a row, int64 ``[*B]``.
        self.late_steps = torch.zeros_like(self.requested_at)
        #: Chunks blended in each action, int64 ``[*B, H, 1]``; None = not counted.
        self.blended: Tensor | None = None
        self._serials = self.late_steps.unsqueeze(-1)

    @property
    def serials(self) -> Tensor:
        """Numbers of the decisions in execution, int64 ``[*B, 1]``."""
        return self._serials if self.chunks is None else self.chunks.serials

    def without_action(self) -> Tensor:
        """Return the environments for which no action is left, bool ``[*B]``."""
        if self.chunks is None:
            return self.empty
        return self.empty | (self.chunks.positions >= self.chunks.chunk_size)

    def newest_positions(self) -> Tensor:
        """Return each environment's next position in its newest chunk, int64 ``[*B]``.

        That is the chunk of its request, where one is in flight.
        """
        assert self.chunks is not None
        if not self.requests:
            return self.chunks.positions
        requested = self.step + 1 - self.requested_at
        if self.idle is not None:
            requested = requested - self.idle
        return torch.where(self.in_flight, requested, self.chunks.positions)

    def entry_position(self, age: int, envs: Tensor) -> int | Tensor:
        """Return the index at which chunks of an age are entered, for all or ``[N]``.

        Steps on which the robot stood still do not count.
        """
        if self.idle is None:
            return age
        positions = age - self.idle[envs]
        first = int(positions[0])
        return positions if (positions != first).any() else first

    def note_late(self, envs: Tensor, is_idle: bool) -> None:
        """Count a step on which environments had no action; idle = without motion."""
        self.late_steps = self.late_steps + envs
        if is_idle:
            self.idle = envs.long() if self.idle is None else self.idle + envs

    def begin(self, envs: Tensor) -> None:
        """Drop what environments whose episode begins have had, bool ``[*B]``."""
        self.drop(envs)
        self.empty = self.empty | envs

    def number(self, envs: Tensor, serial: int) -> None:
        """Number what environments do that have no chunk yet."""
        serials = self.serials.masked_fill(envs.unsqueeze(-1), serial)
        if self.chunks is None:
            self._serials = serials
        else:
            self.chunks.serials = serials

    def add(self, request: InFlightRequest) -> None:
        """Add a request."""
        self.requests.append(request)
        self.in_flight = self.in_flight | request.envs
        self.requested_at = self.requested_at.masked_fill(request.envs, request.step)
        if self.idle is not None:
            self.idle = self.idle.masked_fill(request.envs, 0)

    def enter(
        self, envs: Tensor, answer: Answer, position: int | Tensor, is_all: bool
    ) -> None:
        """Execute the chunks of an answer from a position on.

        Args:
            envs: bool ``[*B]``, ``N`` of them True.
            answer: for these environments; ``[*B]`` where it ``is_all``.
            position: for all of them, or ``[N]``.
            is_all: True = every environment, with one position.
        """
        if is_all:
            self.chunks = StaggeredChunks(answer, int(position))
        else:
            if self.chunks is None:
                self.chunks = StaggeredChunks(_spread(answer, envs))
                self.chunks.serials = self._serials
            self.chunks.replace(envs, answer, position)
        self.empty = self.empty & ~envs
        self.late_steps = self.late_steps.masked_fill(envs, 0)

    def remove(self, request: InFlightRequest, envs: Tensor) -> None:
        """Remove environments from a request; cancel it when none is left."""
        request.envs = request.envs & ~envs
        self.in_flight = self.in_flight & ~envs
        if request in self.requests and not request.envs.any():
            request.answer.cancel()
            self.requests.remove(request)

    def drop(self, envs: Tensor) -> None:
        """Remove environments from every request."""
        for request in list(self.requests):
            self.remove(request, envs)


def _spread(answer: Answer, envs: Tensor) -> Answer:
    """Return an answer for ``N`` environments as one for all, to be replaced."""
    actions, outputs, _ = answer
    first = torch.zeros(envs.shape, dtype=torch.int64, device=envs.device)
    spread = {key: value[first] for key, value in outputs.items()}
    return actions[first], spread, 0
