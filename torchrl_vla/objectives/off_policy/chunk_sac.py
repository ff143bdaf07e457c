"""Soft actor-critic over decisions, and RLPD."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase, TensorDictParams, dispatch
from torch import Tensor, nn

from torchrl_vla.objectives.off_policy.chunk_q_loss import (
    BackupConfig,
    ChunkCritic,
    ChunkQLoss,
)


@dataclass(frozen=True)
class EntropyConfig:
    """Entropy in soft actor-critic.

    Args:
        initial_alpha: first weight of the entropy.
        target: entropy in nats per decision that the weight is tuned for; None = minus
            the number of planned numbers of a chunk.
        learned: False = the weight stays as it is.
        in_backup: True = targets contain the entropy of what follows.

    Raises:
        ValueError: ``initial_alpha`` is not positive.
    """

    initial_alpha: float = 1.0
    target: float | None = None
    learned: bool = True
    in_backup: bool = True

    def __post_init__(self) -> None:
        if not 0.0 < self.initial_alpha < math.inf:
            raise ValueError(
                "EntropyConfig: expected initial_alpha > 0, got "
                f"{self.initial_alpha}. A tiny one is as good as none."
            )


class ChunkSACLoss(ChunkQLoss):
    """Improve a chunk policy by soft actor-critic over decisions.

    A decision of ``k`` steps is discounted by ``gamma ** k``. Positions of a chunk that
    are not planned (``replan_interval`` of the critic) count neither in the critic nor
    in the entropy; of a stored chunk, what was not executed has no gradient. With
    chunks of one action it is TorchRL's ``SACLoss``; with ``BackupConfig(members=n)``
    the actor follows the mean of the ensemble and the target a random part of it, as
    in REDQ, and with half of each batch from demonstrations that is RLPD.

    **Reads** decisions ``[N]``: what actor and critic read, at the root and under
    ``next``; the chunk; ``next``: ``is_executed`` bool ``[N, H]``, ``executed_steps``
    int64, ``reward`` float, ``done`` and ``terminated`` bool, each ``[N, 1]``.

    **Writes** ``loss_qvalue``, ``loss_actor`` and ``loss_alpha``; for logging
    ``alpha``, ``entropy``, ``q_value`` and ``td_error``.

    Args:
        actor_network: its ``get_dist`` samples with a gradient, see
            :class:`SampledChunks`: a Gaussian policy, ``ResidualPolicy`` or
            ``NoiseSpacePolicy``.
        critic: see :class:`ChunkCritic`.

    Keyword Args:
        backup: of the targets.
        entropy: its weight.
        loss_function: ``"l2"``, ``"smooth_l1"`` or ``"l1"``.

    Raises:
        MissingKeyError: a key is missing.
        SchemaError: a shape or dtype is wrong, or nothing was executed.

    Examples:
        >>> from torchrl.objectives import SoftUpdate
        >>> from torchrl_vla.policies import (
        ...     BackboneConfig, TinyChunkCritic, TinyGaussianVLA,
        ... )
        >>> policy = TinyGaussianVLA(
        ...     action_dim=1, chunk_size=2,
        ...     backbone=BackboneConfig(cameras=(), state_dim=3, hidden=8),
        ... )
        >>> seen = TensorDict(observation={"state": torch.ones(1, 3)}, batch_size=[1])
        >>> seen = seen.set("language_instruction", ["reach"])
        >>> end = torch.tensor([[True]])
        >>> data = seen.copy().set("action_chunk", torch.zeros(1, 2, 1))
        >>> data["next"] = seen.copy().update(dict(
        ...     reward=torch.ones(1, 1), done=end, terminated=end,
        ...     executed_steps=torch.tensor([[1]]),
        ...     is_executed=torch.tensor([[True, False]]),
        ... ))
        >>> loss = ChunkSACLoss(policy, TinyChunkCritic.from_policy(policy))
        >>> updater = SoftUpdate(loss, tau=0.005)
        >>> sorted(key for key in loss(data).keys() if key.startswith("loss_"))
        ['loss_actor', 'loss_alpha', 'loss_qvalue']

    Source: T. Haarnoja et al., arXiv:1812.05905 (SAC); X. Chen et al.,
    arXiv:2101.05982 (REDQ); P. Ball et al., arXiv:2302.02948 (RLPD).
    """

    actor_network: TensorDictModuleBase
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams

    def __init__(
        self,
        actor_network: TensorDictModuleBase,
        critic: ChunkCritic,
        *,
        backup: BackupConfig = BackupConfig(),
        entropy: EntropyConfig = EntropyConfig(),
        loss_function: str = "l2",
    ) -> None:
        super().__init__(critic, backup=backup, loss_function=loss_function)
        self.convert_to_functional(actor_network, "actor_network")
        self.entropy = entropy
        planned = self.critic.planned
        log_alpha = torch.tensor(math.log(entropy.initial_alpha), device=planned.device)
        self.log_alpha: Tensor
        if entropy.learned:
            self.log_alpha = nn.Parameter(log_alpha)
        else:
            self.register_buffer("log_alpha", log_alpha)
        self._planned_positions = int(planned.sum())

    @property
    def out_keys(self) -> list[str]:
        """Keys that the loss writes."""
        names = ["loss_qvalue", "loss_actor", "loss_alpha", "alpha", "entropy"]
        return [*names, "q_value", "td_error"]

    @property
    def alpha(self) -> Tensor:
        """Weight of the entropy, without a gradient."""
        return self.log_alpha.detach().exp()

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the losses of a batch of decisions."""
        predicted, features = self.predict(tensordict)
        out = self.fit(predicted, self.targets(tensordict))
        return TensorDict({**out, **self.improve(tensordict, features.detach())})

    def next_value(self, following: TensorDictBase, features: Tensor) -> Tensor:
        """Return the soft value of chunks that the actor samples."""
        chunk, log_prob, _ = self.sample(following)
        values = self.critic.values(features, chunk)
        if self.entropy.in_backup:
            values = values - self.alpha * log_prob
        return self.pessimistic(values)

    def sample(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor, Tensor]:
        """Return chunks of the actor, and their log-probabilities ``[N]``.

        The third are the elements ``[N, H, A]``.
        """
        with self.actor_network_params.to_module(
            self.actor_network, preserve_module_state=False
        ):
            dist = self.actor_network.get_dist(tensordict)
            chunk, elements = dist.rsample_with_log_probs()
        planned = self.critic.planned.unsqueeze(-1)
        return chunk, torch.where(planned, elements, 0.0).sum((-2, -1)), elements

    def improve(
        self, tensordict: TensorDictBase, features: Tensor
    ) -> dict[str, Tensor]:
        """Return the losses of the actor and of the entropy's weight."""
        chunk, log_prob, elements = self.sample(tensordict)
        with self.with_critic("frozen"):
            values = self.critic.values(features, chunk)
        worth = values.min(0)[0] if self.backup.members is None else values.mean(0)
        target = self.entropy.target
        if target is None:
            target = -float(self._planned_positions * elements.shape[-1])
        lacking = (log_prob.detach() + target).mean()
        return {
            "loss_actor": (self.alpha * log_prob - worth).mean(),
            "loss_alpha": -self.log_alpha * lacking,
            "alpha": self.alpha,
            "entropy": -log_prob.detach().mean(),
        }
