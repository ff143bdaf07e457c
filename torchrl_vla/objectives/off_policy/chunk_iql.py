"""Implicit Q-learning over decisions."""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase, TensorDictParams, dispatch
from torch import Tensor

from torchrl_vla.objectives.off_policy.chunk_q_loss import (
    BackupConfig,
    ChunkCritic,
    ChunkQLoss,
)
from torchrl_vla.objectives.off_policy.decision_targets import read_chunk

_LARGEST_WEIGHT = 100.0


class ChunkIQLLoss(ChunkQLoss):
    """Learn from stored chunks alone by implicit Q-learning over decisions.

    No chunk is valued that is not in the data: the value is an expectile of the target
    critic, and the policy clones chunks weighted by the exponential of their advantage.
    Positions that were not executed are not cloned; with chunks of one action it is
    TorchRL's ``IQLLoss``.

    **Reads** what :class:`ChunkSACLoss` reads, and what the value network reads.
    **Writes** ``loss_qvalue``, ``loss_value`` and ``loss_actor``; for logging
    ``q_value``, ``td_error``, ``value`` and ``weight``.

    Args:
        actor_network: its ``get_dist`` has ``element_log_probs(chunk)``, as a Gaussian
            policy's has.
        critic: see :class:`ChunkCritic`.
        value_network: writes ``state_value`` float ``[N, 1]``, such as ``TinyCritic``.

    Keyword Args:
        expectile: of the value: 0.5 = the mean, near 1 = the best that the data has.
        temperature: factor of the advantage in the exponent; 0 = plain cloning.
        backup: of the targets.
        loss_function: ``"l2"``, ``"smooth_l1"`` or ``"l1"``, of the critic.

    Raises:
        ValueError: ``expectile`` is not in (0, 1), or ``temperature`` is negative.
        MissingKeyError: a key is missing.
        SchemaError: a shape or dtype is wrong, or nothing was executed.

    Examples:
        >>> from torchrl_vla.policies import (
        ...     BackboneConfig, TinyChunkCritic, TinyCritic, TinyGaussianVLA,
        ... )
        >>> policy = TinyGaussianVLA(
        ...     action_dim=1, chunk_size=2,
        ...     backbone=BackboneConfig(cameras=(), state_dim=3, hidden=8),
        ... )
        >>> loss = ChunkIQLLoss(
        ...     policy, TinyChunkCritic.from_policy(policy), policy.make_critic()
        ... )
        >>> loss.out_keys[:3]
        ['loss_qvalue', 'loss_value', 'loss_actor']

    Source: I. Kostrikov et al., arXiv:2110.06169.
    """

    actor_network: TensorDictModuleBase
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams
    value_network: TensorDictModuleBase
    value_network_params: TensorDictParams
    target_value_network_params: TensorDictParams

    def __init__(
        self,
        actor_network: TensorDictModuleBase,
        critic: ChunkCritic,
        value_network: TensorDictModuleBase,
        *,
        expectile: float = 0.7,
        temperature: float = 3.0,
        backup: BackupConfig = BackupConfig(),
        loss_function: str = "l2",
    ) -> None:
        if not 0.0 < expectile < 1.0 or temperature < 0.0:
            raise ValueError(
                "ChunkIQLLoss: expected expectile in (0, 1) and temperature >= 0, got "
                f"{expectile} and {temperature}."
            )
        super().__init__(critic, backup=backup, loss_function=loss_function)
        self.convert_to_functional(actor_network, "actor_network")
        self.convert_to_functional(value_network, "value_network")
        self.expectile, self.temperature = expectile, temperature

    @property
    def out_keys(self) -> list[str]:
        """Keys that the loss writes."""
        names = ["loss_qvalue", "loss_value", "loss_actor"]
        return [*names, "q_value", "td_error", "value", "weight"]

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the losses of a batch of decisions."""
        predicted, _ = self.predict(tensordict)
        out = self.fit(predicted, self.targets(tensordict))
        chunk, executed, counts = read_chunk(tensordict, self.tensor_keys, self.caller)
        with torch.no_grad(), self.with_critic("target"):
            features = self.critic.encode(tensordict)
            best = self.pessimistic(self.critic.values(features, chunk, counts))
        value = self._value(tensordict)
        above = best - value
        weight = torch.where(above > 0, self.expectile, 1 - self.expectile)
        out["loss_value"] = (weight * above**2).mean()
        advantage = (above.detach() * self.temperature).exp()
        advantage = advantage.clamp_max(_LARGEST_WEIGHT)
        log_prob = self._log_prob(tensordict, chunk, executed)
        out["loss_actor"] = -(advantage * log_prob).mean()
        out["value"], out["weight"] = value.detach().mean(), advantage.mean()
        return TensorDict(out)

    def next_value(self, following: TensorDictBase, features: Tensor) -> Tensor:
        """Return the value network's estimate."""
        return self._value(following)

    def _value(self, tensordict: TensorDictBase) -> Tensor:
        inputs = tensordict.select(*self.value_network.in_keys, strict=False)
        with self.value_network_params.to_module(
            self.value_network, preserve_module_state=False
        ):
            return self.value_network(inputs).get("state_value").squeeze(-1)

    def _log_prob(
        self, tensordict: TensorDictBase, chunk: Tensor, executed: Tensor
    ) -> Tensor:
        """Return the log-probability ``[N]`` of what was executed."""
        valid = executed.unsqueeze(-1)
        with self.actor_network_params.to_module(
            self.actor_network, preserve_module_state=False
        ):
            dist = self.actor_network.get_dist(tensordict)
            elements = dist.element_log_probs(torch.where(valid, chunk, 0.0).detach())
        return torch.where(valid, elements, 0.0).sum((-2, -1))
