"""How a policy is fine-tuned."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from torchrl_vla.objectives import Granularity
from torchrl_vla.recipes.finetuning.algorithms import PPO, Algorithm
from torchrl_vla.recipes.finetuning.rollouts import Reward
from torchrl_vla.rollout import iteration_seed
from torchrl_vla.schema import VLAError


class SettingsError(VLAError, ValueError):
    """Settings of a training that contradict each other, or what they are for."""


@dataclass(frozen=True)
class FinetuneSettings:
    """How a policy is fine-tuned.

    Args:
        algorithm: judges decisions: :class:`PPO`, :class:`GRPO` or :class:`RLOO`.
        iterations: of collecting a batch and learning from it.
        num_decisions: per row and batch; None = an episode of the environment's
            ``max_steps`` fits.
        replan_interval: actions of a chunk to execute; None = all.
        reward: see :func:`make_decision_env`.
        epochs: passes over a batch.
        minibatch_size: decisions per optimizer step.
        lr: learning rate of the policy.
        lr_decay: True = it falls linearly, to ``lr / iterations`` in the last one, so
            that the policy comes to rest. How long a training goes on is then a part of
            it: it cannot be resumed with other ``iterations``.
        target_kl: the policy rests, and only the critic learns, on a minibatch whose
            ``kl_approx`` is above it: as far as that from the policy that collected
            (nats per ratio of ``granularity``), the batch says little. None = never.
            At the same ``lr``, heads move by very different distances.
        clip_epsilon: see :class:`ChunkPPOLoss`, as for the next three.
        granularity: see there.
        entropy_coeff: see there.
        reference_kl_coeff: see there; the reference is the policy at the start.
        bc_coeff: weight of cloning the demonstrations beside it.
        max_grad_norm: gradients are clipped to this norm.
        recompute: True = the learner computes the log-probabilities of a batch again
            before it learns from it; for policies that act in another precision.
        eval_episodes: of each evaluation; all on the same seeds.
        eval_interval: iterations between two evaluations.
        checkpoint_interval: iterations between two states that can be resumed.
        seed: of everything random. The evaluations run the episodes of this run that have
            the purpose ``"evaluation"`` (see ``episode_seeds``).

    Raises:
        SettingsError: a number is out of its range.
    """

    algorithm: Algorithm = field(default_factory=PPO)
    iterations: int = 60
    num_decisions: int | None = None
    replan_interval: int | None = None
    reward: Reward = "success"
    epochs: int = 3
    minibatch_size: int = 256
    lr: float = 3e-4
    lr_decay: bool = False
    target_kl: float | None = None
    clip_epsilon: float | tuple[float, float] = 0.2
    granularity: Granularity = "token"
    entropy_coeff: float = 0.0
    reference_kl_coeff: float = 0.0
    bc_coeff: float = 0.0
    max_grad_norm: float = 1.0
    recompute: bool = False
    eval_episodes: int = 200
    eval_interval: int = 10
    checkpoint_interval: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (
            "iterations",
            "epochs",
            "minibatch_size",
            "eval_episodes",
            "eval_interval",
            "checkpoint_interval",
        ):
            if getattr(self, name) < 1:
                raise SettingsError(
                    f"FinetuneSettings: expected {name} >= 1, got "
                    f"{getattr(self, name)}."
                )
        for name in ("lr", "max_grad_norm", "target_kl"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise SettingsError(
                    f"FinetuneSettings: expected {name} > 0, got {value}."
                )

    def as_values(self) -> dict[str, Any]:
        """Return what the weights depend on as plain values.

        Without when it is judged and written and, unless ``lr`` decays, how long it
        goes on: those may change when a training is resumed.
        """
        values = asdict(self)
        for name in ("eval_interval", "checkpoint_interval"):
            del values[name]
        if not self.lr_decay:
            del values["iterations"]
        values["algorithm"] = {
            "name": type(self.algorithm).__name__,
            **values["algorithm"],
        }
        return values

    def seed_of(self, iteration: int) -> int:
        """Return the seed of an iteration's random numbers."""
        return iteration_seed(self.seed, iteration)
