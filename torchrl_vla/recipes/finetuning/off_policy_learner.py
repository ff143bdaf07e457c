"""Learner from a replay of decisions."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torchrl.envs import EnvBase
from torchrl.objectives import SoftUpdate

from torchrl_vla.data import OnlineReplay
from torchrl_vla.distributed import Ranks
from torchrl_vla.policies import VLAWrapperBase
from torchrl_vla.profiling import Sections
from torchrl_vla.recipes.checkpoints import interval_of
from torchrl_vla.recipes.dataset_opening import Demonstrations
from torchrl_vla.recipes.finetuning.advantage_estimation import count_outcomes
from torchrl_vla.recipes.finetuning.demonstration_decisions import (
    demonstration_decisions,
)
from torchrl_vla.recipes.finetuning.finetune_settings import (
    FinetuneSettings,
    SettingsError,
)
from torchrl_vla.recipes.finetuning.off_policy_algorithms import OffPolicy
from torchrl_vla.recipes.training_loop import check_finite
from torchrl_vla.rollout import iteration_seed
from torchrl_vla.schema import (
    BASE_CHUNK_KEY,
    CANDIDATE_CHUNKS_KEY,
    EXECUTED_STEPS_KEY,
    IS_EXECUTED_KEY,
    OBSERVATION_FEATURES_KEY,
    metadata_of,
)
from torchrl_vla.spaces import ModelSpace
from torchrl_vla.testing import FirstStepCheck

REPLAY = "replay"
_ONLINE, _DEMONSTRATIONS = "online", "demonstrations"
_OUTCOME = ("reward", "done", "terminated", EXECUTED_STEPS_KEY, IS_EXECUTED_KEY)
_STORED = (OBSERVATION_FEATURES_KEY, BASE_CHUNK_KEY, CANDIDATE_CHUNKS_KEY)
#: Settings of on-policy learning, which have no effect here.
_ON_POLICY = (
    *("epochs", "lr_decay", "target_kl", "clip_epsilon", "granularity"),
    *("entropy_coeff", "reference_kl_coeff", "bc_coeff", "recompute"),
)


class OffPolicyLearner:
    """Add rollouts to a replay, and take optimizer steps on batches of it.

    Args:
        policy: as it was cloned; what acts is :attr:`policy`.
        space: of the policy; None = robot space.
        settings: how; the algorithm is an :class:`OffPolicy`.
        demonstrations: mixed into each batch.
        env: where it learns.
        folder: of the training; the replay is below it.
        sections: of the profiler, if there is one.

    Raises:
        SettingsError: they do not fit together.
    """

    critic = None  # of on-policy learning

    def __init__(
        self,
        policy: VLAWrapperBase,
        space: ModelSpace | None,
        settings: FinetuneSettings,
        demonstrations: Demonstrations | None,
        env: EnvBase,
        folder: Path,
        sections: Sections = Sections(),
    ) -> None:
        algorithm = settings.algorithm
        assert isinstance(algorithm, OffPolicy)
        self.algorithm, self.settings = algorithm, settings
        self.section = sections.section
        self.ranks = Ranks.current()
        _check(settings, demonstrations, self.ranks)
        #: Actions that are executed per decision; None = whole chunks.
        self.executed = interval_of(policy, settings.replan_interval)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            made = algorithm.make_parts(policy, env, self.executed)
        device = next(policy.parameters()).device
        self.policy = made.policy.to(device)
        self.made, self.loss = made, made.loss.to(device)
        self.updater = SoftUpdate(self.loss, tau=algorithm.tau)
        groups = [{"params": _trainable(made.critic), "lr": algorithm.critic_lr}]
        if made.actor is not None:
            own = [*_trainable(made.actor), *self._of_loss()]
            groups.append({"params": own, "lr": settings.lr})
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        self.replay = OnlineReplay(
            folder / REPLAY, self._shares(demonstrations), capacity=algorithm.capacity
        )
        self.parts: dict[str, Any] = {
            "policy": self.policy,
            "loss": self.loss,
            "optimizer": self.optimizer,
            REPLAY: self.replay,
        }
        self._demonstrations = (demonstrations, policy, space)
        check = partial(FirstStepCheck, optimizer=self.optimizer, may_be_flat=True)
        self._check_critic = check("finetune", made.critic)

    def begin(self) -> None:
        """Fill a fresh replay with demonstrations, and warm the critic up on them."""
        demonstrations, policy, space = self._demonstrations
        if demonstrations is None or self.replay.count(_DEMONSTRATIONS):
            return
        known = space.metadata if space is not None else metadata_of(policy)
        if known is not None:
            sides = ("the policy's training data", "the demonstrations")
            known.check_compatible(demonstrations.metadata, sides=sides)
        frames = demonstration_decisions(policy, space, demonstrations, self.executed)
        for rows in frames:
            self.replay.add(_DEMONSTRATIONS, self._complete(rows))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(iteration_seed(self.settings.seed, 0))
            for number in range(self.algorithm.warm_up):
                self._step(f"in step {number + 1} of the warm-up", critic_only=True)

    def learn(self, rollout: TensorDictBase, iteration: int) -> dict[str, float]:
        """Take the optimizer steps of a batch; return the numbers for the log."""
        episodes, successes = count_outcomes(rollout)
        decisions = rollout.reshape(-1)
        with self.section("replay"):
            self.replay.add(_ONLINE, self._complete(decisions))
        updates = round(len(decisions) * self.algorithm.updates_per_decision)
        history: dict[str, list[Tensor]] = {}
        for _ in range(updates):
            for name, value in self._step(f"in iteration {iteration}").items():
                history.setdefault(name, []).append(value.detach())
        means = {n: torch.stack(seen).mean().item() for n, seen in history.items()}
        return {
            "env_steps": int(rollout["next", EXECUTED_STEPS_KEY].sum()),
            "decisions": len(decisions),
            "episodes": episodes,
            "train_success": successes / max(1, episodes),
            "updates": updates,
            "replay": len(self.replay),
            **means,
        }

    def commit(self) -> None:
        """Remove what the state that was just written does not need."""
        self.replay.prune()

    def _step(self, where: str, critic_only: bool = False) -> dict[str, Tensor]:
        device = next(self.loss.parameters()).device
        batch = self.replay.sample(self.settings.minibatch_size).to(device)
        with self.section("forward"):
            out = dict(self.loss(batch).items())
        names = [name for name in out if name.startswith("loss_")]
        if critic_only:
            names = [name for name in names if name == "loss_qvalue"]
        total = sum(out[name] for name in names)
        check_finite("finetune", "loss", total.detach(), where)
        self.optimizer.zero_grad(set_to_none=True)
        with self.section("backward"):
            total.backward()
        for group in self.optimizer.param_groups:
            norm = nn.utils.clip_grad_norm_(
                group["params"], self.settings.max_grad_norm
            )
            check_finite("finetune", "gradient", norm, where)
        self._check_critic.after_backward()
        with self.section("optimizer"):
            self.optimizer.step()
        self._check_critic.after_step()
        self.updater.step()
        return out

    def _complete(self, decisions: TensorDictBase) -> TensorDict:
        """Return the entries that the replay keeps."""
        device = next(self.policy.parameters()).device
        policy, key = self.policy, self.loss.tensor_keys.action
        seen = [*policy.in_keys, *_STORED]
        with torch.no_grad():
            root = decisions.select(*policy.in_keys).to(device)
            root = self.made.stores.store(root)
            after = decisions["next"].select(*policy.in_keys).to(device)
            after = self.made.stores.store(after)
        if not self.made.keeps_observations:
            seen = [name for name in seen if name not in policy.in_keys]
        rows = TensorDict(
            root.select(*seen, strict=False).exclude(CANDIDATE_CHUNKS_KEY).to_dict(),
            batch_size=[len(decisions)],
        )
        rows.set(key, decisions[key])
        following = after.select(*seen, strict=False).to_dict()
        rows.set("next", TensorDict(following, batch_size=[len(decisions)]))
        outcome = {name: decisions["next", name] for name in _OUTCOME}
        rows["next"].update(outcome)
        return rows

    def _shares(self, demonstrations: Demonstrations | None) -> dict[str, float]:
        if demonstrations is None:
            return {_ONLINE: 1.0}
        share = self.algorithm.demonstration_share
        return {_DEMONSTRATIONS: share, _ONLINE: 1.0 - share}

    def _of_loss(self) -> list[nn.Parameter]:
        """Return the loss's own parameters: the weight of the entropy."""
        return [
            p for n, p in self.loss.named_parameters(recurse=False) if p.requires_grad
        ]


def check_off_policy(
    settings: FinetuneSettings, critic: object | None, collector: object | None
) -> None:
    """Refuse what only on-policy algorithms take."""
    given = {"critic": critic, "collector": collector}
    for name, value in given.items():
        if value is not None:
            raise SettingsError(
                f"finetune: expected no {name} with "
                f"{type(settings.algorithm).__name__}, which makes its own, got "
                f"{type(value).__name__}. Leave it out, or use PPO."
            )


def _check(
    settings: FinetuneSettings, demonstrations: Demonstrations | None, ranks: Ranks
) -> None:
    algorithm = settings.algorithm
    name = type(algorithm).__name__
    assert isinstance(algorithm, OffPolicy)
    if not ranks.is_alone:
        raise SettingsError(
            f"finetune: expected one process with {name}, got {ranks.count} ranks. "
            "Use PPO, GRPO or RLOO on several."
        )
    if demonstrations is not None and not algorithm.takes_demonstrations:
        raise SettingsError(
            f"finetune: expected no demonstrations with {name}, whose critic values "
            f"{algorithm.action_key!r}, which they do not have, got "
            f"{type(demonstrations).__name__}. Leave them out, or use Residual or QC."
        )
    if algorithm.warm_up and demonstrations is None:
        raise SettingsError(
            f"finetune: expected demonstrations with {name}(warm_up="
            f"{algorithm.warm_up}), which learns from them before the first batch, "
            "got none."
        )
    plain = FinetuneSettings(algorithm=algorithm)
    unused = {
        key: vars(settings)[key]
        for key in _ON_POLICY
        if vars(settings)[key] != vars(plain)[key]
    }
    if unused:
        raise SettingsError(
            f"finetune: expected no settings of on-policy learning with {name}, on "
            f"which they have no effect, got {unused}. Leave them out."
        )


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]
