"""Temporal ensembling executor (ACT)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_vla.execution.action_reference import check_reference
from torchrl_vla.execution.chunk_executor import ChunkExecutor
from torchrl_vla.execution.executor_keys import ExecutorKeys
from torchrl_vla.schema import (
    ExecutionError,
)


class TemporalEnsemble(ChunkExecutor):
    r"""Call the policy at every step and execute the mean of its overlapping chunks.

    Each action was predicted by up to ``H`` chunks; their weighted mean is smoother
    than any of them and reacts at every step:

    .. math:: a_t = \sum_i w_i \hat{a}_t^{(i)} / \sum_i w_i, \quad w_i = e^{-m i}

    where ``i`` counts from 0, the oldest chunk of the episode that reaches ``t``.

    Note:
        With ``m > 0`` *older* predictions weigh more. The executed action is no
        chunk's own, so log-probs in the rollout are those of the newest chunk and not
        of the action: train a policy by RL under another executor.

    **Reads** the policy's ``in_keys``; ``is_init`` bool ``[*B, 1]``; ``decision_index``
    as it was written on the step before, and ``action``, if they are there.

    **Writes** ``action`` ``[*B, A]``; ``is_decision`` and ``observation_needed`` bool
    ``[*B, 1]``, always True; ``decision_index`` int64 ``[*B, 1]``; every other out_key
    of the policy, of the newest chunk.

    Args:
        policy: writes a chunk ``[*B, H, A]`` of floats, in robot space.

    Keyword Args:
        action_reference: what the actions are measured from, of ``REFERENCES``. Chunks
            that are ``"relative"`` to the state in which they were made have no mean.
        coefficient: ``m``; ACT's is 0.01, 0 is the plain mean, below 0 newer
            predictions weigh more.
        keys: of what is read and written; None = ``ExecutorKeys()``.

    Raises:
        ValueError: the coefficient is not finite, or the reference is
            ``"relative"`` or unknown.
        ExecutionError: the chunk is not of floats, or its length changes; the weights
            of so long a chunk overflow; and as :class:`ChunkExecutor`.

    Examples:
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import TensorDictModule
        >>> policy = TensorDictModule(
        ...     lambda s: s.unsqueeze(-1).expand(1, 2, 1),
        ...     in_keys=["state"],
        ...     out_keys=["action_chunk"],
        ... )
        >>> executor = TemporalEnsemble(
        ...     policy, action_reference="absolute", coefficient=0.0
        ... )
        >>> step = TensorDict(
        ...     {"state": torch.ones(1, 1), "is_init": torch.ones(1, 1).bool()}, [1]
        ... )
        >>> executor(step.clone())["action"].item()
        1.0
        >>> step["is_init"] = torch.zeros(1, 1).bool()
        >>> step["state"] = torch.full((1, 1), 4.0)  # predicts 4 now
        >>> executor(step.clone())["action"].item()
        2.5

    Source: Zhao et al., `Learning Fine-Grained Bimanual Manipulation with Low-Cost
    Hardware <https://arxiv.org/abs/2304.13705>`_ (ACT), algorithm 2; the running mean
    is updated in the order of LeRobot's ``ACTTemporalEnsembler``, bit for bit.
    """

    def __init__(
        self,
        policy: TensorDictModuleBase,
        *,
        action_reference: str,
        coefficient: float = 0.01,
        keys: ExecutorKeys | None = None,
    ) -> None:
        check_reference("TemporalEnsemble", action_reference)
        if not math.isfinite(coefficient):
            raise ValueError(
                "TemporalEnsemble: expected a finite coefficient, got "
                f"{coefficient}. ACT's is 0.01."
            )
        super().__init__(policy, keys=keys)
        self.action_reference = action_reference
        self.coefficient = coefficient

    def _serve(self, tensordict: TensorDictBase, begins: Tensor) -> TensorDictBase:
        chunk, outputs, serial = self._call_policy(tensordict, None)
        dtype, chunk = chunk.dtype, chunk.detach()
        if dtype not in (torch.float32, torch.float64):
            chunk = chunk.float()
        means, counts = self._average(chunk, begins)
        serials = torch.full((*begins.shape, 1), serial, device=chunk.device)
        # The first action of each mean is executed on this step.
        self._state = _Means(
            means[..., 1:, :], counts[..., 1:, :], serials, self._weights(chunk)
        )
        action = means[..., 0, :].to(dtype)
        return self._write(tensordict, action, torch.ones_like(begins), outputs)

    def _average(self, chunk: Tensor, begins: Tensor) -> tuple[Tensor, Tensor]:
        """Return the means ``[*B, H, A]`` and how many chunks are in each."""
        ones = torch.ones_like(chunk[..., :1], dtype=torch.int64)
        state: _Means | None = self._state
        if state is None:
            return chunk, ones
        means, n = state.means, state.counts
        weights, sums = state.weights
        means = (means * sums[n - 1] + chunk[..., :-1, :] * weights[n]) / sums[n]
        means = torch.cat([means, chunk[..., -1:, :]], -2)
        counts = torch.cat([n + 1, ones[..., -1:, :]], -2)
        fresh = begins[..., None, None]
        return torch.where(fresh, chunk, means), torch.where(fresh, ones, counts)

    def _weights(self, chunk: Tensor) -> tuple[Tensor, Tensor]:
        if self._state is not None:
            return self._state.weights
        index = torch.arange(chunk.shape[-2], device=chunk.device, dtype=chunk.dtype)
        weights = torch.exp(-self.coefficient * index)
        return weights, weights.cumsum(0)

    def _check_chunk(self, chunk: Tensor, batch_size: torch.Size) -> None:
        super()._check_chunk(chunk, batch_size)
        length = chunk.shape[-2]
        if not chunk.is_floating_point():
            raise ExecutionError(
                f"TemporalEnsemble: expected a chunk of floats at {self.chunk_key!r}, "
                f"got {chunk.dtype}, which has no mean. No action was sent."
            )
        if self._state is not None and length != self._state.length:
            raise ExecutionError(
                f"TemporalEnsemble: expected a chunk of {self._state.length} actions "
                f"at {self.chunk_key!r} as before, got {length}. Call reset() to plan "
                "again. No action was sent."
            )
        # The sum of H weights, the largest of which is the first or the last.
        if self._state is None and -self.coefficient * length > 80:
            raise ExecutionError(
                f"TemporalEnsemble: expected -coefficient * H <= 80, got coefficient="
                f"{self.coefficient} and a chunk of H={length} actions, whose weights "
                "overflow. No action was sent."
            )

    def extra_repr(self) -> str:
        """Show how old and new predictions weigh."""
        return (
            f"coefficient={self.coefficient}, "
            f"action_reference={self.action_reference!r}, {super().extra_repr()}"
        )


@dataclass
class _Means:
    """Mean predictions for the next steps.

    Args:
        means: ``[*B, H - 1, A]``.
        counts: chunks in each mean, int64 ``[*B, H - 1, 1]``.
        serials: number of the newest decision, int64 ``[*B, 1]``.
        weights: ``[H]`` of the oldest chunk to the newest, and their running sums.
    """

    means: Tensor
    counts: Tensor
    serials: Tensor
    weights: tuple[Tensor, Tensor]

    @property
    def batch_size(self) -> torch.Size:
        return self.means.shape[:-2]

    @property
    def length(self) -> int:
        return self.means.shape[-2] + 1
