"""Conservative and calibrated Q-learning over decisions."""

from __future__ import annotations

import math

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from torch import Tensor

from torchrl_vla.objectives.off_policy.chunk_q_loss import (
    BackupConfig,
    ChunkCritic,
)
from torchrl_vla.objectives.off_policy.chunk_sac import ChunkSACLoss, EntropyConfig
from torchrl_vla.objectives.off_policy.decision_targets import read_decisions
from torchrl_vla.schema import check_positive_int


class ChunkCalQLLoss(ChunkSACLoss):
    """Learn from stored chunks first and online after, by calibrated Q-learning.

    :class:`ChunkSACLoss` with a critic that is pushed down at chunks that are not in
    the data (CQL), but not below the return that the data reached (Cal-QL): so the
    first steps online do not unlearn the policy. With chunks of one action, one random
    chunk and no calibration it is TorchRL's ``CQLLoss``.

    Note:
        With more than one random chunk TorchRL's penalty is another: it takes the
        log-sum-exp over the three kinds of chunks per draw instead of over all, and
        values the next observation's chunks at the next observation. Here both are as
        in the paper.

    **Reads** what :class:`ChunkSACLoss` reads; with ``calibrated``, ``return_to_go``
    float ``[N, 1]``, what the data's policy received from the decision on. **Writes**
    what it writes, and ``loss_cql``.

    Args:
        actor_network: see :class:`ChunkSACLoss`.
        critic: see :class:`ChunkCritic`.

    Keyword Args:
        num_random: chunks of each kind per decision: uniform in ``[-1, 1]``, of the
            actor there, and of the actor at the next observation.
        weight: of the penalty.
        calibrated: False = plain CQL.
        backup: of the targets.
        entropy: its weight.
        loss_function: ``"l2"``, ``"smooth_l1"`` or ``"l1"``.

    Raises:
        ValueError: ``num_random`` is not positive.

    Examples:
        >>> from torchrl_vla.policies import (
        ...     BackboneConfig, TinyChunkCritic, TinyGaussianVLA,
        ... )
        >>> policy = TinyGaussianVLA(
        ...     action_dim=1, chunk_size=2,
        ...     backbone=BackboneConfig(cameras=(), state_dim=3, hidden=8),
        ... )
        >>> loss = ChunkCalQLLoss(policy, TinyChunkCritic.from_policy(policy))
        >>> ("loss_cql" in loss.out_keys, "return_to_go" in loss.in_keys)
        (True, True)

    Source: A. Kumar et al., arXiv:2006.04779 (CQL); M. Nakamoto et al.,
    arXiv:2303.05479 (Cal-QL).
    """

    def __init__(
        self,
        actor_network: TensorDictModuleBase,
        critic: ChunkCritic,
        *,
        num_random: int = 4,
        weight: float = 1.0,
        calibrated: bool = True,
        backup: BackupConfig = BackupConfig(),
        entropy: EntropyConfig = EntropyConfig(in_backup=False),
        loss_function: str = "l2",
    ) -> None:
        check_positive_int("ChunkCalQLLoss", "num_random", num_random)
        super().__init__(
            actor_network,
            critic,
            backup=backup,
            entropy=entropy,
            loss_function=loss_function,
        )
        self.num_random, self.weight, self.calibrated = num_random, weight, calibrated

    @property
    def in_keys(self) -> list[NestedKey]:
        """Keys that the loss reads."""
        keys = super().in_keys
        return [*keys, self.tensor_keys.return_to_go] if self.calibrated else keys

    @property
    def out_keys(self) -> list[str]:
        """Keys that the loss writes."""
        return [*super().out_keys, "loss_cql"]

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the losses of a batch of decisions."""
        predicted, features = self.predict(tensordict)
        out = self.fit(predicted, self.targets(tensordict))
        unseen = self._unseen(tensordict, features)  # [E, 3n, N]
        penalty = torch.logsumexp(unseen, 1) - predicted
        out["loss_cql"] = self.weight * penalty.sum(0).mean()
        return TensorDict({**out, **self.improve(tensordict, features.detach())})

    def _unseen(self, tensordict: TensorDictBase, features: Tensor) -> Tensor:
        """Return importance-weighted estimates of other chunks, ``[E, 3n, N]``."""
        chunk = read_decisions(tensordict, self.tensor_keys.action, self.caller)
        planned = self.critic.planned
        dims = int(planned.sum()) * chunk.shape[-1]
        floor = None
        if self.calibrated:
            key = self.tensor_keys.return_to_go
            floor = read_decisions(tensordict, key, self.caller).squeeze(-1)
        found = []
        for _ in range(self.num_random):
            uniform = torch.empty_like(chunk).uniform_(-1, 1)
            drawn = [(uniform, torch.full_like(chunk[:, 0, 0], -dims * math.log(2.0)))]
            with torch.no_grad():
                drawn += [
                    self.sample(seen)[:2]
                    for seen in (tensordict, tensordict.get("next"))
                ]
            with self.with_critic():
                for number, (other, log_prob) in enumerate(drawn):
                    values = self.critic.values(features, other)
                    if floor is not None and number:  # not of the uniform ones
                        values = torch.maximum(values, floor)
                    found.append(values - log_prob)
        return torch.stack(found, 1)
