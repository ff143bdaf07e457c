"""Q-chunking: best-of-N targets, and a one-step policy distilled from a flow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase, TensorDictParams, dispatch
from torch import Tensor

from torchrl_vla.objectives.off_policy.chunk_q_loss import (
    BackupConfig,
    ChunkCritic,
    ChunkQLoss,
)
from torchrl_vla.schema import CANDIDATE_CHUNKS_KEY, check_positive_int


class SamplesChunks(Protocol):
    """Distribution of a stochastic policy's ``get_dist``."""

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw samples ``[*sample_shape, *B, ...]``."""


class QChunkingLoss(ChunkQLoss):
    """Fit a critic of chunks to the best of ``N`` chunks that a policy samples next.

    The policy itself is not changed: it is cloned from the data beside (its own
    cloning loss), and acts as ``BestOfN(policy, critic, n)``. So every chunk that is
    tried is one that the data's policy could have made. A decision of ``k`` steps is
    discounted by ``gamma ** k``.

    **Reads** what :class:`ChunkSACLoss` reads; where it is, ``("next",
    "candidate_chunks")`` float ``[N, n, H, A]`` instead of new samples. **Writes**
    ``loss_qvalue``; for logging ``q_value`` and ``td_error``.

    Args:
        policy: with ``get_dist`` and ``decode``, such as ``TinyFlowVLA``; has no
            gradient here.
        critic: see :class:`ChunkCritic`.

    Keyword Args:
        num_samples: ``N``.
        backup: of the targets.
        loss_function: ``"l2"``, ``"smooth_l1"`` or ``"l1"``.

    Raises:
        ValueError: ``num_samples`` is not positive.
        MissingKeyError: a key is missing.
        SchemaError: a shape or dtype is wrong, or nothing was executed.

    Examples:
        >>> from torchrl_vla.policies import (
        ...     BackboneConfig, TinyChunkCritic, TinyFlowVLA,
        ... )
        >>> policy = TinyFlowVLA(
        ...     action_dim=1, chunk_size=2,
        ...     backbone=BackboneConfig(cameras=(), state_dim=3, hidden=8),
        ... )
        >>> loss = QChunkingLoss(policy, TinyChunkCritic.from_policy(policy))
        >>> loss.out_keys
        ['loss_qvalue', 'q_value', 'td_error']

    Source: Q. Li, Z. Zhou, S. Levine, arXiv:2507.07969 (QC).
    """

    def __init__(
        self,
        policy: TensorDictModuleBase,
        critic: ChunkCritic,
        *,
        num_samples: int = 8,
        backup: BackupConfig = BackupConfig(),
        loss_function: str = "l2",
    ) -> None:
        check_positive_int(type(self).__name__, "num_samples", num_samples)
        super().__init__(critic, backup=backup, loss_function=loss_function)
        # Not a submodule: the loss trains and copies none of its weights.
        self.__dict__["policy"] = policy
        self.num_samples = num_samples

    @property
    def out_keys(self) -> list[str]:
        """Keys that the loss writes."""
        return ["loss_qvalue", "q_value", "td_error"]

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the loss of a batch of decisions."""
        predicted, _ = self.predict(tensordict)
        return TensorDict(self.fit(predicted, self.targets(tensordict)))

    def next_value(self, following: TensorDictBase, features: Tensor) -> Tensor:
        """Return the value of the best of ``N`` chunks."""
        chunks = following.get(CANDIDATE_CHUNKS_KEY, None)
        if chunks is None:
            dist = self.policy.get_dist(following)
            chunks = self.policy.decode(dist.sample((self.num_samples,)))
        else:
            chunks = chunks.movedim(-3, 0)
        each = features.expand(len(chunks), *features.shape)
        return self.pessimistic(self.critic.values(each, chunks)).max(0)[0]


class QCFQLLoss(ChunkQLoss):
    """Distil a flow into a policy of one step that a critic of chunks pulls on.

    The one-step policy maps noise to a chunk. It stays near the chunk that the flow
    makes of the same noise, by ``distillation``, and follows the critic's gradient.
    Of the flow nothing is trained here: it is cloned from the data beside.

    **Reads** what :class:`ChunkSACLoss` reads. **Writes** ``loss_qvalue`` and
    ``loss_actor``; for logging ``distance``, ``q_value`` and ``td_error``.

    Args:
        one_step: with ``chunk_from(tensordict, noise)``, such as ``OneStepPolicy``.
        flow: with ``get_dist(tensordict).flow_from(noise)`` and ``decode``, such as
            ``TinyFlowVLA``; has no gradient here.
        critic: see :class:`ChunkCritic`.

    Keyword Args:
        distillation: weight of the squared distance from the flow's chunk, per number.
        backup: of the targets.
        loss_function: ``"l2"``, ``"smooth_l1"`` or ``"l1"``.

    Raises:
        ValueError: ``distillation`` is negative.
        MissingKeyError: a key is missing.
        SchemaError: a shape or dtype is wrong, or nothing was executed.

    Examples:
        >>> from torchrl_vla.policies import (
        ...     BackboneConfig, OneStepPolicy, TinyChunkCritic, TinyFlowVLA,
        ... )
        >>> flow = TinyFlowVLA(
        ...     action_dim=1, chunk_size=2,
        ...     backbone=BackboneConfig(cameras=(), state_dim=3, hidden=8),
        ... )
        >>> one_step = OneStepPolicy.from_policy(flow)
        >>> QCFQLLoss(one_step, flow, TinyChunkCritic.from_policy(flow)).out_keys[:2]
        ['loss_qvalue', 'loss_actor']

    Source: Q. Li, Z. Zhou, S. Levine, arXiv:2507.07969 (QC-FQL); S. Park, Q. Li,
    S. Levine, arXiv:2502.02538 (flow Q-learning).
    """

    one_step: TensorDictModuleBase
    one_step_params: TensorDictParams
    target_one_step_params: TensorDictParams

    def __init__(
        self,
        one_step: TensorDictModuleBase,
        flow: TensorDictModuleBase,
        critic: ChunkCritic,
        *,
        distillation: float = 1.0,
        backup: BackupConfig = BackupConfig(),
        loss_function: str = "l2",
    ) -> None:
        if distillation < 0.0:
            raise ValueError(
                f"QCFQLLoss: expected distillation >= 0, got {distillation}."
            )
        super().__init__(critic, backup=backup, loss_function=loss_function)
        self.convert_to_functional(one_step, "one_step")
        self.__dict__["flow"] = flow
        self.distillation = distillation

    @property
    def out_keys(self) -> list[str]:
        """Keys that the loss writes."""
        return ["loss_qvalue", "loss_actor", "distance", "q_value", "td_error"]

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the losses of a batch of decisions."""
        predicted, features = self.predict(tensordict)
        out = self.fit(predicted, self.targets(tensordict))
        noise = self._noise(tensordict)
        chunk = self._one_step_chunk(tensordict, noise)
        with torch.no_grad():
            path = self.flow.get_dist(tensordict).flow_from(noise)
            goal = self.flow.decode(path.reshape(len(noise), *path.shape[-3:]))
        planned = self.critic.planned.unsqueeze(-1)
        apart = torch.where(planned, (chunk - goal) ** 2, 0.0)
        distance = apart.sum((-2, -1)).mean() / (planned.sum() * chunk.shape[-1])
        with self.with_critic("frozen"):
            worth = self.critic.values(features.detach(), chunk).mean(0)
        out["loss_actor"] = self.distillation * distance - worth.mean()
        out["distance"] = distance.detach()
        return TensorDict(out)

    def next_value(self, following: TensorDictBase, features: Tensor) -> Tensor:
        """Return the value of the one-step policy's chunk."""
        chunk = self._one_step_chunk(following, self._noise(following))
        return self.pessimistic(self.critic.values(features, chunk))

    def _noise(self, tensordict: TensorDictBase) -> Tensor:
        shape = (len(tensordict), self.one_step.chunk_size, self.one_step.action_dim)
        return torch.randn(shape, device=self.critic.planned.device)

    def _one_step_chunk(self, tensordict: TensorDictBase, noise: Tensor) -> Tensor:
        with self.one_step_params.to_module(self.one_step, preserve_module_state=False):
            return self.one_step.chunk_from(tensordict, noise)
