"""Settings of fine-tuning by reinforcement learning."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Annotated, Any

from tyro.conf import Suppress

from torchrl_vla._internal.option_names import Granularity, Reward
from torchrl_vla.errors import SettingsError as SettingsError
from torchrl_vla.recipes.finetuning.algorithms import PPO, Algorithm
from torchrl_vla.recipes.finetuning.off_policy_algorithms import OffPolicy

#: Settings that change when something is evaluated or written, and no weight.
_REPORTING = ("eval_interval", "checkpoint_interval")
_COUNTS = ("iterations", "epochs", "minibatch_size", "eval_episodes", *_REPORTING)


@dataclass(frozen=True)
class FinetuneSettings:
    """Settings of fine-tuning by reinforcement learning.

    Args:
        algorithm: Estimates advantages: :class:`PPO`, :class:`GRPO` or :class:`RLOO`;
            or learns from a replay: :class:`RLPD`, :class:`QC`, :class:`Residual` or
            :class:`NoiseSpace`, which read no setting that speaks of ratios.
        iterations: Number of batches that are collected and learned from.
        num_decisions: Decisions per environment index and batch. With None, an episode
            of the environment's ``max_steps`` fits.
        replan_interval: Actions of a chunk to execute; None = all, or LeRobot's
            ``n_action_steps``.
        reward: Reward of a decision: ``success`` = 1 in success, ``environment`` = the
            sum of what the environment pays.
        epochs: Passes over each batch.
        minibatch_size: Decisions per optimizer step.
        lr: Learning rate of the policy.
        lr_decay: True = the learning rate falls linearly, to ``lr / iterations`` in the
            last iteration. The training can then not be resumed with other
            ``iterations``.
        target_kl: KL early stop: only the critic learns on a minibatch whose
            ``kl_approx`` is above this (nats per ratio of ``granularity``): as far from
            the policy that collected it, the batch says little. None = no early stop.
            At the same ``lr``, heads move by very different distances.
        clip_epsilon: How far an importance ratio may move away from 1; a pair gives the
            distances below and above 1.
        granularity: What one importance ratio covers: a chunk, an action or a token.
        entropy_coeff: Weight of the entropy bonus (token and gaussian heads).
        reference_kl_coeff: Weight of staying near the policy as it was at the start.
        bc_coeff: Weight of cloning the demonstrations beside the reinforcement
            learning.
        max_grad_norm: Gradients are clipped to this norm.
        recompute: True = the learner computes the log-probabilities of a batch again
            before it learns from it; for policies that act in another precision.
        eval_episodes: Episodes of each evaluation, all on the same seeds.
        eval_interval: Iterations between two evaluations.
        checkpoint_interval: Iterations between two states that the training can be
            resumed from.
        seed: Seed of everything random. The evaluations run the episodes of this run
            that have the purpose ``"evaluation"`` (see ``episode_seeds``).

    Raises:
        SettingsError: a number is out of its range.
    """

    algorithm: Annotated[Algorithm | OffPolicy, Suppress] = field(default_factory=PPO)
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
        values = vars(self)
        for name in _COUNTS:
            if values[name] < 1:
                raise SettingsError(
                    f"FinetuneSettings: expected {name} >= 1, got {values[name]}."
                )
        for name in ("lr", "max_grad_norm", "target_kl"):
            value = values[name]
            if value is not None and not (isfinite(value) and value > 0):
                raise SettingsError(
                    f"FinetuneSettings: expected {name} > 0, got {value}."
                )

    def as_values(self) -> dict[str, Any]:
        """Return what the weights depend on as plain values.

        Left out are the settings that may change when a training is resumed: when it
        is evaluated and written and, unless ``lr`` decays, the number of iterations.
        """
        values = asdict(self)
        for name in _REPORTING:
            del values[name]
        if not self.lr_decay:
            del values["iterations"]
        values["algorithm"] = {
            "name": type(self.algorithm).__name__,
            **values["algorithm"],
        }
        return values
