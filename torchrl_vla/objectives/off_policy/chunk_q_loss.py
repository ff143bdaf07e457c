"""Base class of losses with a critic of chunks."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictParams
from torch import Tensor
from torchrl.objectives import LossModule
from torchrl.objectives.utils import distance_loss

from torchrl_vla.objectives.off_policy.decision_targets import (
    DecisionKeys,
    decision_targets,
    read_chunk,
)


class ChunkCritic(Protocol):
    """Critic of an observation and a chunk, such as ``TinyChunkCritic``."""

    in_keys: list[NestedKey]
    #: bool ``[H]``, True = the position is executed unless the episode ends.
    planned: Tensor

    def encode(self, tensordict: TensorDictBase) -> Tensor:
        """Return the features ``[*B, F]`` of an observation."""

    def values(
        self, features: Tensor, chunk: Tensor, counts: Tensor | None = None
    ) -> Tensor:
        """Return the estimates ``[E, *B]``."""


class SampledChunks(Protocol):
    """Distribution that an actor's ``get_dist`` returns."""

    def rsample_with_log_probs(self) -> tuple[Tensor, Tensor]:
        """Return a chunk with its gradient, and its log-probabilities.

        Both are ``[*B, H, A]``.
        """


@dataclass(frozen=True)
class BackupConfig:
    """How a critic's targets are made.

    Args:
        gamma: discount of one control step, not of a decision.
        truncated_is_failure: True = nothing follows a time limit.
        members: of the ensemble, drawn anew for each batch, whose minimum is the
            target; None = all of them.

    Raises:
        ValueError: a number is out of its range.
    """

    gamma: float = 0.99
    truncated_is_failure: bool = False
    members: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.gamma <= 1.0:
            raise ValueError(
                f"BackupConfig: expected gamma in [0, 1], got {self.gamma}."
            )
        if self.members is not None and self.members < 1:
            raise ValueError(f"BackupConfig: expected members >= 1, got {self.members}")


class ChunkQLoss(LossModule):
    """Fit a critic of chunks to targets of decisions.

    Abstract: a subclass says what the next observation is worth
    (:meth:`next_value`). The target critic is a copy that
    ``torchrl.objectives.SoftUpdate(loss, tau=...)`` moves.

    Args:
        critic: an ensemble, see :class:`ChunkCritic`.

    Keyword Args:
        backup: of the targets.
        loss_function: ``"l2"``, ``"smooth_l1"`` or ``"l1"``.
    """

    _AcceptedKeys = DecisionKeys
    tensor_keys: DecisionKeys
    default_keys = DecisionKeys
    critic: ChunkCritic
    critic_params: TensorDictParams
    target_critic_params: TensorDictParams

    def __init__(
        self,
        critic: ChunkCritic,
        *,
        backup: BackupConfig = BackupConfig(),
        loss_function: str = "l2",
    ) -> None:
        super().__init__()
        self.convert_to_functional(critic, "critic", create_target_params=True)
        self.backup = backup
        self.loss_function = loss_function

    @property
    def caller(self) -> str:
        """Name that opens error messages."""
        return type(self).__name__

    def with_critic(self, kind: str = "trained") -> AbstractContextManager[object]:
        """Return a context in which the critic has weights of a kind.

        Args:
            kind: ``"trained"``, ``"frozen"`` (the same without gradient) or
                ``"target"``.
        """
        params = {
            "trained": lambda: self.critic_params,
            "frozen": lambda: self.critic_params.detach(),
            "target": lambda: self.target_critic_params,
        }[kind]()
        return params.to_module(self.critic, preserve_module_state=False)

    def next_value(self, following: TensorDictBase, features: Tensor) -> Tensor:
        """Return the value ``[N]`` of the observations after the decisions.

        Args:
            following: the entries of ``next``.
            features: of the target critic, ``[N, F]``.
        """
        raise NotImplementedError

    @torch.no_grad()
    def targets(self, tensordict: TensorDictBase) -> Tensor:
        """Return what the critic should predict, ``[N]``."""
        following = tensordict.get("next")
        with self.with_critic("target"):
            value = self.next_value(following, self.critic.encode(following))
        return decision_targets(
            tensordict,
            value,
            gamma=self.backup.gamma,
            truncated_is_failure=self.backup.truncated_is_failure,
            keys=self.tensor_keys,
            caller=self.caller,
        )

    def pessimistic(self, values: Tensor) -> Tensor:
        """Return the minimum ``[*B]`` of the members ``[E, *B]`` that are asked."""
        if self.backup.members is not None:
            drawn = torch.randperm(len(values), device=values.device)
            values = values[drawn[: self.backup.members].sort()[0]]
        return values.min(0)[0]

    def predict(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Return the estimates ``[E, N]`` and features ``[N, F]`` of a batch."""
        chunk, _, counts = read_chunk(tensordict, self.tensor_keys, self.caller)
        with self.with_critic():
            features = self.critic.encode(tensordict)
            return self.critic.values(features, chunk, counts), features

    def fit(self, predicted: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the critic's loss and the numbers that are logged with it."""
        error = distance_loss(
            predicted, target.expand_as(predicted), loss_function=self.loss_function
        )
        # SAC sums over the members; REDQ and RLPD average.
        over = error.sum(0) if self.backup.members is None else error.mean(0)
        return {
            "loss_qvalue": over.mean(),
            "q_value": predicted.detach().mean(),
            "td_error": (predicted - target).detach().abs().mean(),
        }

    @property
    def in_keys(self) -> list[NestedKey]:
        """Keys that the loss reads."""
        keys = self.tensor_keys
        read = [
            *self.critic.in_keys,
            *(("next", *_parts(key)) for key in self._next_keys()),
            *(keys.action, keys.executed, keys.steps),
            *(keys.reward, keys.done, keys.terminated),
        ]
        return list(dict.fromkeys(read))

    def _next_keys(self) -> list[NestedKey]:
        action = self.tensor_keys.action
        return [key for key in self.critic.in_keys if key != action]


def _parts(key: NestedKey) -> tuple[str, ...]:
    return (key,) if isinstance(key, str) else key
