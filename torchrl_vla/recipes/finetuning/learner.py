"""Learner: from rollouts to optimizer steps."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.envs import EnvBase
from torchrl.objectives import LossModule

from torchrl_vla.data import check_labels
from torchrl_vla.distributed import Ranks, ShareSampler
from torchrl_vla.distributed.gradient_sharing import average_gradients
from torchrl_vla.distributed.shared_mean import shared_batch
from torchrl_vla.objectives import (
    ChunkPPOLoss,
    add_reference_log_probs,
    recompute_log_probs,
)
from torchrl_vla.policies import StochasticVLAWrapper
from torchrl_vla.profiling import Sections
from torchrl_vla.recipes.behavior_cloning import make_training_transform
from torchrl_vla.recipes.dataset_opening import Demonstrations
from torchrl_vla.recipes.finetuning.advantage_estimation import count_outcomes
from torchrl_vla.recipes.finetuning.algorithms import Algorithm
from torchrl_vla.recipes.finetuning.finetune_settings import (
    FinetuneSettings,
    SettingsError,
)
from torchrl_vla.recipes.finetuning.policies import choose_critic
from torchrl_vla.recipes.policy_factory import make_cloning_loss
from torchrl_vla.recipes.training_loop import check_finite, count_elements
from torchrl_vla.rollout import iteration_seed
from torchrl_vla.schema import EXECUTED_STEPS_KEY, SchemaError, metadata_of
from torchrl_vla.spaces import ModelSpace
from torchrl_vla.testing import FirstStepCheck

#: Log-ratio of a batch that rounding in other batch sizes may cause.
_ROUNDING = 1e-2


class Learner:
    """Turn rollouts into optimizer steps.

    Weights that do not require a gradient stay as they are. In a process group every
    rank has the rollouts of all, and takes its share of each minibatch: advantages,
    groups and minibatches are those of one process.

    Args:
        policy: trained in place.
        space: of the policy; None = robot space.
        settings: how.
        demonstrations: to clone beside.
        critic: trained in place; None = see :func:`choose_critic`.
        env: for whose observations a critic is made where the policy makes none.
        sections: of the profiler, if there is one.

    Raises:
        SettingsError: they do not fit together.
    """

    def __init__(
        self,
        policy: StochasticVLAWrapper,
        space: ModelSpace | None,
        settings: FinetuneSettings,
        demonstrations: Demonstrations | None,
        critic: TensorDictModuleBase | None = None,
        env: EnvBase | None = None,
        sections: Sections = Sections(),
    ) -> None:
        self.settings = settings
        self.section = sections.section
        self.policy = policy
        self.ranks = Ranks.current()
        self.cloning = _Cloning(policy, space, settings, demonstrations)
        algorithm = cast(Algorithm, settings.algorithm)
        self.algorithm = algorithm
        self.critic = choose_critic(policy, critic, algorithm, env)
        self.reference = _frozen_copy(policy) if settings.reference_kl_coeff else None
        self.loss = ChunkPPOLoss(
            policy,
            self.critic,
            granularity=settings.granularity,
            clip_epsilon=settings.clip_epsilon,
            entropy_coeff=settings.entropy_coeff,
            reference_kl_coeff=settings.reference_kl_coeff,
        )
        groups = [{"params": _trainable(policy), "lr": settings.lr}]
        self.parts: dict[str, Any] = {"policy": policy}
        if self.critic is not None:
            parameters = _trainable(self.critic)
            groups.append({"params": parameters, "lr": algorithm.critic_lr})
            self.parts["critic"] = self.critic
        if self.reference is not None:
            self.parts["reference"] = self.reference
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        self.parts["optimizer"] = self.optimizer
        self.trainable = [
            p for group in self.optimizer.param_groups for p in group["params"]
        ]
        check = partial(FirstStepCheck, optimizer=self.optimizer, may_be_flat=True)
        self.policy_check = check("finetune", policy)
        self.critic_check = (
            None if self.critic is None else check("finetune", self.critic)
        )

    def begin(self) -> None:
        """Nothing to do before the first batch."""

    def commit(self) -> None:
        """Nothing to do after a state was written."""

    def learn(self, rollout: TensorDictBase, iteration: int) -> dict[str, float]:
        """Take the optimizer steps of a batch; return the numbers for the log."""
        settings = self.settings
        if settings.lr_decay:
            left = 1 - (iteration - 1) / settings.iterations
            self.optimizer.param_groups[0]["lr"] = settings.lr * left  # the policy's
        episodes, successes = count_outcomes(rollout)
        with self.section("advantage"):
            decisions = self.algorithm.estimate_advantages(rollout, self.critic)
        numbers = {
            "env_steps": int(rollout["next", EXECUTED_STEPS_KEY].sum()),
            "decisions": len(decisions),
            "episodes": episodes,
            "train_success": successes / max(1, episodes),
        }
        if not len(decisions):  # all groups agree: there is no advantage
            return numbers
        size = settings.minibatch_size
        order = torch.randperm(len(decisions))
        if settings.recompute:
            # In the batches of the first epoch: in others, kernels may round otherwise.
            shuffled = decisions[order]
            recompute_log_probs(self.policy, shuffled, minibatch_size=size)
            decisions = shuffled[order.argsort()]
        if self.reference is not None:
            add_reference_log_probs(self.reference, decisions, minibatch_size=size)
        warmup = self.algorithm.critic_warmup
        self.cloning.begin(iteration)
        history: dict[str, list[Tensor]] = {}
        for epoch in range(settings.epochs):
            if epoch:
                order = torch.randperm(len(decisions))
            for rows in order.split(size):
                is_fresh = not (settings.recompute or epoch or history)
                critic_only = iteration <= warmup
                out = self._step(decisions[rows], iteration, critic_only, is_fresh)
                for name, value in out.items():
                    history.setdefault(name, []).append(value)
        means = {
            name: torch.stack(seen).mean().item() for name, seen in history.items()
        }
        return {**numbers, **means}

    def _step(
        self,
        batch: TensorDictBase,
        iteration: int,
        critic_only: bool,
        is_fresh: bool = False,
    ) -> dict[str, Tensor]:
        ranks = self.ranks
        share = batch[ranks.rank :: ranks.count]
        with self.section("forward"), shared_batch(ranks, counts=len(share) > 0):
            # A rank without a row computes one of another's, which does not count.
            out = dict(self.loss(share if len(share) else batch[:1]).items())
        if not ranks.is_alone:  # of a share it says nothing about the minibatch
            out.pop("explained_variance", None)
        seen = {name: self._over_ranks(name, value) for name, value in out.items()}
        if is_fresh:
            _check_same_arithmetic(seen, iteration)
        limit = self.settings.target_kl
        # KL early stop: the critic learns on, the policy does not.
        stops = critic_only or (limit is not None and seen["kl_approx"].item() > limit)
        seen["policy_update_fraction"] = torch.tensor(float(not stops))
        losses = [
            value
            for name, value in out.items()
            if name == "loss_critic" or (name.startswith("loss_") and not stops)
        ]
        if self.cloning.loss is not None and not stops:
            with self.section("forward"):
                cloning = self.cloning()
            losses.append(cloning)
            seen["loss_bc"] = self._over_ranks("loss_bc", cloning)
        if losses:  # none where a policy without a critic stops
            checks = [self.critic_check, None if stops else self.policy_check]
            self._descend(
                sum(losses),
                f"in iteration {iteration}",
                [check for check in checks if check is not None],
            )
        return seen

    def _over_ranks(self, name: str, value: Tensor) -> Tensor:
        """Return a number of the whole minibatch."""
        value = value.detach()
        if name == "max_ratio" and not self.ranks.is_alone:
            return torch.stack(self.ranks.collect(value)).max()
        return self.ranks.mean(value)

    def _descend(
        self, loss: Tensor, where: str, checks: Sequence[FirstStepCheck]
    ) -> None:
        check_finite("finetune", "loss", self.ranks.mean(loss.detach()), where)
        self.optimizer.zero_grad(set_to_none=True)
        with self.section("backward"):
            loss.backward()
            average_gradients(self.trainable, self.ranks)
        for group in self.optimizer.param_groups:  # the critic's norm is its own
            limit = self.settings.max_grad_norm
            with self.section("grad_clip"):
                norm = nn.utils.clip_grad_norm_(group["params"], limit)
            check_finite("finetune", "gradient", norm, where)
        for check in checks:
            check.after_backward()
        with self.section("optimizer"):
            self.optimizer.step()
        for check in checks:
            check.after_step()


class _Cloning:
    """Weighted cloning loss on batches of demonstrations."""

    def __init__(
        self,
        policy: StochasticVLAWrapper,
        space: ModelSpace | None,
        settings: FinetuneSettings,
        demonstrations: Demonstrations | None,
    ) -> None:
        if (settings.bc_coeff > 0) != (demonstrations is not None):
            raise SettingsError(
                "finetune: expected demonstrations and bc_coeff > 0 together, got "
                f"bc_coeff={settings.bc_coeff} and demonstrations="
                f"{type(demonstrations).__name__}."
            )
        self.settings = settings
        self.ranks = Ranks.current()
        self.loss: LossModule | None = None
        if demonstrations is not None:
            known = space.metadata if space is not None else metadata_of(policy)
            if known is not None:
                sides = ("the policy's training data", "the demonstrations")
                known.check_compatible(demonstrations.metadata, sides=sides)
            check_labels("finetune", demonstrations)
            self.loss = _loss_beside(policy)
            self.buffer = demonstrations.replay_buffer(
                settings.minibatch_size,
                transform=make_training_transform(
                    policy, space, demonstrations.storage
                ),
            )
            ShareSampler.share(self.buffer, self.ranks)

    def begin(self, iteration: int) -> None:
        """Seed the batches of an iteration."""
        if self.loss is not None:
            seed = iteration_seed(self.settings.seed, iteration)
            self.buffer.set_rng(torch.Generator().manual_seed(seed))

    def __call__(self) -> Tensor:
        """Return the weighted loss of the next batch."""
        assert self.loss is not None, "there are no demonstrations"
        (name,) = self.loss.out_keys
        batch = self.buffer.sample()
        loss = self.settings.bc_coeff * self.loss(batch)[name]
        if self.ranks.is_alone:
            return loss
        size = count_elements(self.loss, batch)
        return loss * (size / self.ranks.mean(size)).to(loss)


def _check_same_arithmetic(out: dict[str, Tensor], iteration: int) -> None:
    """Refuse a batch whose log-probabilities the weights that acted do not repeat."""
    ratio, kl = float(out["max_ratio"]), float(out["kl_approx"])
    if ratio - 1 > _ROUNDING or kl > _ROUNDING**2:
        raise SettingsError(
            f"finetune: expected the weights that acted to give the stored "
            f"log-probabilities again in iteration {iteration}, got ratios up to "
            f"{ratio:g} and KL {kl:g} before the first step. Acting and learning "
            "differ in precision (bfloat16, autocast), mode (dropout) or batch: let "
            "both be alike, or compute the log-probabilities again in the learner, "
            "recompute=True (--recompute)."
        )


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]


def _frozen_copy(policy: StochasticVLAWrapper) -> StochasticVLAWrapper:
    """Copy a policy; frozen weights are shared, not copied."""
    frozen = {id(p): p for p in policy.parameters() if not p.requires_grad}
    return copy.deepcopy(policy, frozen).requires_grad_(False).eval()


def _loss_beside(policy: StochasticVLAWrapper) -> LossModule:
    try:
        return make_cloning_loss(policy)
    except SchemaError as error:
        raise SettingsError(
            "finetune: expected a policy whose cloning loss takes demonstrations as "
            f"they are, got a refusal: {error} Leave demonstrations and bc_coeff out; "
            "to clone first, call train_lerobot with that option."
        ) from error
