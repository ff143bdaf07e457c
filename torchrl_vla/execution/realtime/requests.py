"""Questions that are on their way while chunks are being executed."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchrl_vla.execution.realtime.staggered_chunks import Answer, StaggeredChunks


@dataclass(eq=False)
class InFlightRequest:
    """A question on its way.

    Args:
        rows: bool ``[*B]``, those that still want the answer.
        shown: bool ``[*B]``, those that it is about; None = all.
        batch_size: of what the policy was shown.
        step: of the observation.
        answer: what the policy wrote.
        read: the same, checked.
    """

    rows: Tensor
    shown: Tensor | None
    batch_size: torch.Size
    step: int
    answer: Future[Any]
    read: Answer | None = None


class AsyncState:
    """The chunks in execution, and which rows wait for others."""

    def __init__(self, chunks: StaggeredChunks) -> None:
        self.chunks = chunks
        self.requests: list[InFlightRequest] = []
        self.step = 0
        self.quiet_steps = 0
        self.is_asked = torch.zeros_like(chunks.positions, dtype=torch.bool)
        self.asked_at = torch.zeros_like(chunks.positions)

    @property
    def batch_size(self) -> torch.Size:
        """``*B``."""
        return self.chunks.batch_size

    @property
    def serials(self) -> Tensor:
        """Numbers of the decisions in execution, int64 ``[*B, 1]``."""
        return self.chunks.serials

    def newest_positions(self) -> Tensor:
        """Return where in its newest chunk, there or not, each row will be next."""
        if not self.requests:
            return self.chunks.positions
        asked = self.step + 1 - self.asked_at
        return torch.where(self.is_asked, asked, self.chunks.positions)

    def add(self, request: InFlightRequest) -> None:
        """Note a question."""
        self.requests.append(request)
        self.is_asked = self.is_asked | request.rows
        self.asked_at = self.asked_at.masked_fill(request.rows, request.step)

    def remove(self, request: InFlightRequest, rows: Tensor) -> None:
        """Let rows want a request's answer no longer."""
        request.rows = request.rows & ~rows
        self.is_asked = self.is_asked & ~rows
        if request in self.requests and not request.rows.any():
            request.answer.cancel()
            self.requests.remove(request)

    def drop(self, rows: Tensor) -> None:
        """Let rows want no answer that is on its way."""
        for request in list(self.requests):
            self.remove(request, rows)
