"""Checks, critic and executor of the policy that is fine-tuned."""

from __future__ import annotations

from pathlib import Path

from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase

from torchrl_vla.execution import MultiStepActorWrapper
from torchrl_vla.policies import (
    StochasticVLAWrapper,
    VLAWrapperBase,
    make_critic,
    make_critic_for,
)
from torchrl_vla.recipes.checkpoints import interval_of, save_checkpoint
from torchrl_vla.recipes.finetuning.algorithms import Algorithm
from torchrl_vla.recipes.finetuning.finetune_settings import SettingsError
from torchrl_vla.schema import (
    ROBOT_SPACE,
    RobotDatasetMetadata,
    check_meeting,
    mark_space,
)
from torchrl_vla.spaces import ModelSpace

_VALUE = "state_value"


def check_finetunable(
    policy: VLAWrapperBase,
    space: ModelSpace | None,
    env: EnvBase,
    *,
    needs_likelihood: bool = True,
) -> None:
    """Refuse a policy that would learn nothing, or could not be saved afterwards.

    Args:
        policy: to be trained; marked with the space.
        space: that it was trained in; None = robot space.
        env: where it learns.

    Keyword Args:
        needs_likelihood: False = the algorithm does without log-probabilities, and may
            keep a policy whose weights are frozen.

    Raises:
        TypeError: the policy has no log-probabilities.
        SpaceError: it was trained in another space.
        SettingsError: the space is not the policy's; all its weights are frozen; the
            environment has no metadata to write beside the policy.
        SchemaError: the policy could not be read back from a checkpoint.
        IncompatibleMetadataError: it was trained for another robot than the
            environment's.
    """
    name = type(policy).__name__
    if needs_likelihood and not policy.has_likelihood:
        raise TypeError(
            "finetune: expected a policy with log-probabilities of its samples, got "
            f"{name}. {policy.likelihood_advice}"
        )
    marked = policy.policy_space
    if space is not None and marked == ROBOT_SPACE:
        raise SettingsError(
            f"finetune: expected space=None for {name}, whose own processors "
            f"normalize, got a ModelSpace of {space.metadata.dataset_id!r}. Its "
            "numbers would be normalized twice: pass None."
        )
    if space is not None:
        mark_space(policy, space.policy_space)
    elif policy.needs_model_space or marked not in (None, ROBOT_SPACE):
        raise SettingsError(
            f"finetune: expected the ModelSpace that {name} was trained in, got None. "
            "It reads and writes normalized numbers: pass the space that "
            "load_checkpoint returned beside it."
        )
    if space is None:
        _metadata_of(env)
    acting = policy if space is None else space.robot_policy(policy)
    check_meeting("finetune", acting, env)
    if needs_likelihood and not any(
        parameter.requires_grad for parameter in policy.parameters()
    ):
        raise SettingsError(
            f"finetune: expected a {name} with weights to train, got one whose "
            "requires_grad is False everywhere. Unfreeze some of them."
        )
    if policy.folder_format is None:
        policy.check_writable()


def make_executor(
    policy: VLAWrapperBase, space: ModelSpace | None, replan_interval: int | None
) -> MultiStepActorWrapper:
    """Return the executor that is evaluated, in robot space."""
    replan_interval = interval_of(policy, replan_interval)
    if space is None:
        return MultiStepActorWrapper(policy, replan_interval=replan_interval)
    return space.executor(policy, replan_interval=replan_interval)


def choose_critic(
    policy: StochasticVLAWrapper,
    critic: TensorDictModuleBase | None,
    algorithm: Algorithm,
    env: EnvBase | None = None,
) -> TensorDictModuleBase | None:
    """Return the critic that an algorithm trains; None = it trains none.

    Args:
        policy: makes its own critic, if it can.
        critic: that the user passed.
        algorithm: estimates advantages.
        env: gets an untrained critic of its observations, where the policy makes none.

    Raises:
        SettingsError: there is one too many or too few; it writes no ``state_value``;
            its gradient would train the policy.
    """
    name = type(algorithm).__name__
    if not algorithm.needs_critic:
        if critic is not None:
            raise SettingsError(
                f"finetune: expected no critic with {name}, which trains none, got a "
                f"{type(critic).__name__}. Leave it out, or use PPO."
            )
        return None
    if critic is None:
        critic = make_critic(policy)
    if critic is None and env is not None:
        critic = make_critic_for(env)
    if critic is None:
        raise SettingsError(
            f"finetune: expected a critic with {name} for {type(policy).__name__}, "
            "from which none can be made, got None. Define make_critic() in the "
            f"policy, or pass critic=, a module that writes {_VALUE!r} [*B, 1], e.g. "
            "make_critic_for(env) of torchrl_vla.policies; or use GRPO or RLOO, "
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
    folder: Path, policy: VLAWrapperBase, space: ModelSpace | None, env: EnvBase
) -> None:
    """Write a policy as ``load_executor`` reads it.

    Args:
        folder: to write to.
        policy: after the training.
        space: of it; None = robot space.
        env: its metadata say what the numbers of a robot-space policy mean.
    """
    metadata = None if space is not None else _metadata_of(env)
    save_checkpoint(folder, policy, space, metadata)


def _metadata_of(env: EnvBase) -> RobotDatasetMetadata:
    metadata = getattr(env, "metadata", None)
    match metadata:
        case RobotDatasetMetadata():
            return metadata
    raise SettingsError(
        "finetune: expected a RobotDatasetMetadata at env.metadata, which is written "
        "beside a policy of robot space to say what its numbers mean, got "
        f"{type(metadata).__name__} of {type(env).__name__}. Set it, to the policy's "
        "metadata if nothing more is known."
    )
