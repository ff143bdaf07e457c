"""Which policies can be fine-tuned, and what differs from one kind to another."""

from __future__ import annotations

from pathlib import Path

import torch
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase

from torchrl_vla.execution import MultiStepActorWrapper
from torchrl_vla.policies import (
    FlowSDENoise,
    LearnedNoise,
    LeRobotFlowPolicy,
    StochasticVLAWrapper,
    TinyCritic,
)
from torchrl_vla.recipes.checkpoints import save_checkpoint, save_lerobot_checkpoint
from torchrl_vla.recipes.finetuning.algorithms import Algorithm
from torchrl_vla.recipes.finetuning.finetune_settings import SettingsError
from torchrl_vla.recipes.heads import TinyPolicies
from torchrl_vla.schema import RobotDatasetMetadata
from torchrl_vla.spaces import ModelSpace

_WEIGHTS = "weights.pt"
_VALUE = "state_value"


def check_finetunable(
    policy: StochasticVLAWrapper, space: ModelSpace | None, env: EnvBase
) -> None:
    """Refuse a policy that would learn nothing, or in a space that is not its own.

    Args:
        policy: to be trained.
        space: that it was trained in; None = it speaks robot space by itself.
        env: where it learns.

    Raises:
        TypeError: the policy has no log-probabilities.
        SettingsError: the space is not the policy's; all its weights are frozen; the
            environment does not say what the numbers of a LeRobot checkpoint mean.
    """
    name = type(policy).__name__
    if not isinstance(policy, StochasticVLAWrapper):
        raise TypeError(
            "finetune: expected a policy that knows how likely its chunks were, got "
            f"{name} without get_dist of StochasticVLAWrapper. to_stochastic(policy) "
            "makes one of a tiny policy, LeRobotFlowPolicy(policy, noise=FlowSDENoise("
            "0.5)) of a LeRobotPolicyWrapper around SmolVLA, pi0 or pi05."
        )
    if isinstance(policy, TinyPolicies) and space is None:
        raise SettingsError(
            f"finetune: expected the ModelSpace that {name} was trained in, got None. "
            "It reads and writes normalized numbers: pass the space that "
            "load_checkpoint returned beside it."
        )
    if isinstance(policy, LeRobotFlowPolicy):
        if space is not None:
            raise SettingsError(
                f"finetune: expected space=None for {name}, whose own processors "
                f"normalize, got a ModelSpace of {space.metadata.dataset_id!r}. Its "
                "numbers would be normalized twice: pass None."
            )
        _metadata_of(env)
    if not any(parameter.requires_grad for parameter in policy.parameters()):
        raise SettingsError(
            f"finetune: expected a {name} with weights to train, got one whose "
            "requires_grad is False everywhere. Unfreeze some of them."
        )


def make_executor(
    policy: StochasticVLAWrapper,
    space: ModelSpace | None,
    replan_interval: int | None,
) -> MultiStepActorWrapper:
    """Return what is evaluated: observation to one action, both in robot space."""
    if space is None:
        return MultiStepActorWrapper(policy, replan_interval=replan_interval)
    return space.executor(policy, replan_interval=replan_interval)


def make_critic(
    policy: StochasticVLAWrapper,
    critic: TensorDictModuleBase | None,
    algorithm: Algorithm,
) -> TensorDictModuleBase | None:
    """Return the critic that an algorithm trains; None = it trains none.

    Args:
        policy: a tiny one brings its own, from a copy of its backbone.
        critic: that the user passed.
        algorithm: which judges decisions.

    Raises:
        SettingsError: there is one too many or too few; it writes no ``state_value``;
            its gradient would train the policy.
    """
    judge = type(algorithm).__name__
    if not algorithm.needs_critic:
        if critic is not None:
            raise SettingsError(
                f"finetune: expected no critic with {judge}, which trains none, got a "
                f"{type(critic).__name__}. Leave it out, or use PPO."
            )
        return None
    if critic is None and isinstance(policy, TinyPolicies):
        return TinyCritic.from_policy(policy)
    if critic is None:
        raise SettingsError(
            f"finetune: expected a critic with {judge} for {type(policy).__name__}, "
            "from which none can be made, got None. Pass critic=, a module that writes "
            f"{_VALUE!r} [*B, 1], e.g. TinyCritic.from_policy(TinyVLA(...)) with the "
            "environment's cameras, state_dim and instructions; or use GRPO or RLOO, "
            "which need none."
        )
    if _VALUE not in critic.out_keys:
        raise SettingsError(
            f"finetune: expected a critic that writes {_VALUE!r}, got "
            f"{type(critic).__name__} with out_keys {list(critic.out_keys)}."
        )
    own = {id(p) for p in policy.parameters() if p.requires_grad}
    shared = sum(id(p) in own for p in critic.parameters())
    if shared:
        raise SettingsError(
            "finetune: expected a critic with weights of its own, got one that shares "
            f"{shared} with the policy that it would train. Give it a copy of them; "
            "frozen ones may be shared."
        )
    return critic


def save_finetuned(
    folder: Path,
    policy: StochasticVLAWrapper,
    space: ModelSpace | None,
    env: EnvBase,
) -> None:
    """Write a policy as its kind is written.

    A tiny policy and LeRobot's become what ``load_executor`` reads; a noise of the
    user's own class is left out beside the latter. Of any other class ``weights.pt`` is
    its ``state_dict``, because only its author knows how it is built.

    Args:
        folder: to write to.
        policy: after the training.
        space: of it.
        env: says what the numbers of a LeRobot checkpoint mean.
    """
    if isinstance(policy, TinyPolicies):
        save_checkpoint(folder, policy, space)
    elif isinstance(policy, LeRobotFlowPolicy):
        known = type(policy.noise) in (FlowSDENoise, LearnedNoise)
        written = policy if known else policy.wrapper
        save_lerobot_checkpoint(folder, written, _metadata_of(env))
    else:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(policy.state_dict(), folder / _WEIGHTS)


def _metadata_of(env: EnvBase) -> RobotDatasetMetadata:
    metadata = getattr(env, "metadata", None)
    if not isinstance(metadata, RobotDatasetMetadata):
        raise SettingsError(
            "finetune: expected a RobotDatasetMetadata at env.metadata, which is "
            "written beside a LeRobot checkpoint to say what its numbers mean, got "
            f"{type(metadata).__name__} of {type(env).__name__}. Set it, to "
            "policy.wrapper.metadata if nothing more is known."
        )
    return metadata
