"""In-flight requests of the asynchronous executor."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from torch import Tensor

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
        read: the same, checked.
    """

    envs: Tensor
    planned: Tensor | None
    batch_size: torch.Size
    step: int
    answer: Future[TensorDictBase]
    read: Answer | None = None


class AsyncState:
    """The chunks in execution, and the requests in flight."""

    def __init__(self, chunks: StaggeredChunks) -> None:
        self.chunks = chunks
        self.requests: list[InFlightRequest] = []
        self.step = 0
        self.steps_until_event = 0
        self.in_flight = torch.zeros_like(chunks.positions, dtype=torch.bool)
        self.requested_at = torch.zeros_like(chunks.positions)

    @property
    def batch_size(self) -> torch.Size:
        """``*B``."""
        return self.chunks.batch_size

    @property
    def serials(self) -> Tensor:
        """Numbers of the decisions in execution, int64 ``[*B, 1]``."""
        return self.chunks.serials

    def newest_positions(self) -> Tensor:
        """Return each environment's next position in its newest chunk, int64 ``[*B]``.

        That is the chunk of its request, where one is in flight.
        """
        if not self.requests:
            return self.chunks.positions
        requested = self.step + 1 - self.requested_at
        return torch.where(self.in_flight, requested, self.chunks.positions)

    def add(self, request: InFlightRequest) -> None:
        """Add a request."""
        self.requests.append(request)
        self.in_flight = self.in_flight | request.envs
        self.requested_at = self.requested_at.masked_fill(request.envs, request.step)

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
