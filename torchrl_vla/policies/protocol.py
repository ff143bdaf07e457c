"""Protocol of policies: the border for users' modules, and what the rest asks of them.

Everything above this folder takes a policy through :func:`as_policy` and the functions
here, and tests no concrete class. Members that a policy may define, with the defaults
of :class:`VLAWrapperBase`:

=================================  =====================================================
``chunk_size``, ``action_dim``     ``H`` and ``A``; required
``cloning_loss``                   name of the loss that clones into it (``"chunk"``)
``policy_space``                   space of its numbers, set by training (None)
``training_metadata``              of the data, set by training (None)
``has_likelihood``                 True = it has ``get_dist`` and log-probabilities
``keeps_state``                    True = a call depends on those before it, so that it
                                   serves one robot at a time (False)
``make_critic()``                  an untrained critic (None)
``to_stochastic(...)``             itself with log-probabilities (None)
``make_target_transform()``        chunks to the head's targets (None)
``make_environment_transform()``   what it needs from step to step (nothing)
``to_folder``, ``from_folder``     reading and writing
=================================  =====================================================
"""

from __future__ import annotations

from pathlib import Path

from tensordict.nn import TensorDictModuleBase
from torch import nn
from torchrl.envs import Compose, EnvBase, Transform

from torchrl_vla.errors import SettingsError
from torchrl_vla.policies.critics.observation_encoder import ObservationEncoder
from torchrl_vla.policies.gaussian.gaussian_around import GaussianAround
from torchrl_vla.policies.lerobot.lerobot_folder import (
    is_lerobot_folder,
    read_lerobot_folder,
)
from torchrl_vla.policies.module_description import PolicyFactory
from torchrl_vla.policies.module_policy import ModulePolicy, declared
from torchrl_vla.policies.policy_folder import read_policy
from torchrl_vla.policies.readable_weights import uncompiled
from torchrl_vla.policies.steering.steering_folder import (
    is_steering_folder,
    read_steering,
)
from torchrl_vla.policies.tiny.tiny_critic import TinyCritic
from torchrl_vla.policies.tiny.tiny_policy import TinyPolicy
from torchrl_vla.policies.vla_policy import ContinuousVLAWrapper, VLAWrapperBase
from torchrl_vla.policies.vlm.vlm_folder import is_vlm_folder, read_vlm_policy
from torchrl_vla.schema import (
    ROBOT_SPACE,
    ArgumentTypeError,
    InstructionTable,
    ObservationKeys,
    RobotDatasetMetadata,
    SchemaError,
)

_INSTEAD = (
    "Write an nn.Module whose forward(tensordict) returns the chunk [*B, H, A], with "
    "attributes chunk_size and action_dim. A callable that takes LeRobot's batch "
    "dictionaries goes into LeRobotPolicyWrapper(callable, action_dim=, chunk_size=)."
)


def as_policy(
    module: nn.Module,
    *,
    chunk_size: int | None = None,
    action_dim: int | None = None,
    keys: ObservationKeys = ObservationKeys(),
    factory: PolicyFactory | None = None,
) -> VLAWrapperBase:
    """Return a user's module as a policy; a policy is returned as it is.

    A module needs no base class: its ``forward(tensordict)`` returns the chunk
    ``[*B, H, A]``, or the tensordict with ``action_chunk``. It may say itself what is
    otherwise an argument: attributes ``chunk_size``, ``action_dim`` and ``in_keys``.

    Args:
        module: a policy, compiled or not, or the user's module; trained in place.

    Keyword Args:
        chunk_size: ``H``; None = the module's attribute.
        action_dim: ``A``; None = the module's attribute.
        keys: observation entries that a module without ``in_keys`` reads.
        factory: how the module was made, to store a module that cannot be rebuilt from
            its class; see :func:`make_from_factory`.

    Raises:
        ArgumentTypeError: it is no ``nn.Module``.
        SchemaError: a size is unknown, or an argument contradicts an attribute.

    Examples:
        >>> import torch
        >>> class Linear(nn.Module):
        ...     chunk_size, action_dim = 4, 2
        ...
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = nn.Linear(3, 8)
        ...
        ...     def forward(self, tensordict):
        ...         state = tensordict["observation", "state"]
        ...         return self.layer(state).unflatten(-1, (4, 2))
        >>> as_policy(Linear()).chunk_size
        4
    """
    check_module("as_policy", module)
    inside = uncompiled(module)
    chunk_size = _size(inside, "chunk_size", chunk_size)
    action_dim = _size(inside, "action_dim", action_dim)
    if factory is not None:
        factory.record(inside)
    if isinstance(inside, VLAWrapperBase):
        return module  # type: ignore[return-value]  # compiled: stands for it
    return ModulePolicy(module, action_dim=action_dim, chunk_size=chunk_size, keys=keys)


def check_module(caller: str, policy: nn.Module) -> None:
    """Refuse what is no module where a policy is asked for.

    Args:
        caller: opens the error message.
        policy: what was passed for it.

    Raises:
        ArgumentTypeError: it is something else; says what to write.
    """
    inside = uncompiled(policy)
    if not isinstance(inside, nn.Module):
        raise ArgumentTypeError(
            f"{caller}: expected a policy or an nn.Module, got "
            f"{type(inside).__name__}. {_INSTEAD}"
        )


def make_from_factory(
    reference: str,
    *,
    metadata: RobotDatasetMetadata | None = None,
    instructions: InstructionTable | None = None,
) -> VLAWrapperBase:
    """Make a policy by calling a user's function.

    ``function(metadata, instructions)`` is called by keyword, with those of the two
    that it declares. The policy's checkpoint stores the reference and both arguments,
    and the function is called again to load it.

    Args:
        reference: ``"module:function"``, importable.

    Keyword Args:
        metadata: of the dataset that the policy will be trained on.
        instructions: table of that dataset's instruction ids.

    Raises:
        SchemaError: there is no such function, or it needs other arguments.
        TypeError: it returned no module.
    """
    factory = PolicyFactory(reference, metadata, instructions)
    return as_policy(factory(), factory=factory)


def cloning_loss_name(policy: nn.Module) -> str:
    """Return the name of the loss that clones demonstrations into a policy."""
    return as_policy(policy).cloning_loss


def make_critic(policy: nn.Module) -> TensorDictModuleBase | None:
    """Return an untrained critic that suits a policy; None = it makes none."""
    return as_policy(policy).make_critic()


def make_critic_for(env: EnvBase) -> TensorDictModuleBase:
    """Return an untrained critic of an environment's observations.

    Raises:
        SchemaError: the environment writes no instruction.
    """
    return TinyCritic.from_env(env)


def observation_encoder(
    policy: nn.Module, env: EnvBase, *, frozen: bool = True
) -> ObservationEncoder:
    """Return an encoder for the critic or the small actor around a policy.

    That of a tiny policy begins with its features; for any other policy it is an
    untrained one of the environment's observations.

    Args:
        policy: that is acted around.
        env: whose observations it reads.

    Keyword Args:
        frozen: True = a tiny policy's features are not trained. An untrained encoder
            always is.

    Raises:
        SchemaError: the environment writes no instruction.
    """
    inside = uncompiled(policy)
    match inside:
        case TinyPolicy():
            return ObservationEncoder.from_policy(inside, frozen=frozen)
        case GaussianAround():
            return observation_encoder(inside.policy, env, frozen=frozen)
    critic = TinyCritic.from_env(env)
    encoder = ObservationEncoder(
        critic.backbone.config, keys=critic.backbone.keys, frozen=False
    )
    encoder.instructions = critic.instructions
    return encoder


def environment_transforms(policy: nn.Module) -> Compose:
    """Return what a policy, or any module, needs in its environment for each step."""
    make = declared(policy, "make_environment_transform", Compose)
    return make()


def target_transform(policy: nn.Module) -> Transform | None:
    """Return what turns chunks into the targets of a policy's head; None = nothing."""
    return as_policy(policy).make_target_transform()


def to_stochastic(
    policy: nn.Module,
    *,
    initial_std: float | None = None,
    flow_noise: float | None = None,
) -> VLAWrapperBase:
    """Return what a cloned policy becomes for reinforcement learning.

    A policy with log-probabilities stays as it is; a tiny regression policy becomes a
    Gaussian one with its weights; a flow gets noise on its steps, in place; any other
    policy of model space that predicts a chunk becomes the mean of a Gaussian.

    Args:
        policy: cloned.

    Keyword Args:
        initial_std: first standard deviation of a Gaussian, in model space; None =
            0.2.
        flow_noise: scale of a flow's :class:`FlowSDENoise`; None = 0.5.

    Raises:
        SettingsError: an option has no effect on this policy.
        TypeError: the policy can't be made stochastic.
    """
    policy = as_policy(policy)
    values = {"initial_std": initial_std, "flow_noise": flow_noise}
    given = {name: value for name, value in values.items() if value is not None}
    used = () if policy.has_likelihood else policy.stochastic_options
    unused = [name for name in given if name not in used]
    if unused:
        flags = ", ".join("--" + name.replace("_", "-") for name in unused)
        raise SettingsError(
            f"to_stochastic: expected no {unused} ({flags}) for "
            f"{type(uncompiled(policy)).__name__}, on which it has no effect, got "
            f"{given}. initial_std is of a Gaussian around a regression head, "
            "flow_noise of a flow that has no noise yet."
        )
    if policy.has_likelihood:
        return policy
    made = policy.to_stochastic(**given)
    if made is not None:
        made.policy_space = policy.policy_space
        made.training_metadata = policy.training_metadata
        return made.train(policy.training)
    inside = uncompiled(policy)
    match inside:
        case ContinuousVLAWrapper() if inside.policy_space != ROBOT_SPACE:
            gaussian = GaussianAround(inside, initial_std=initial_std or 0.2)
            gaussian.training_metadata = inside.training_metadata
            return gaussian.train(policy.training)
    raise TypeError(
        "to_stochastic: expected a policy that predicts a chunk in model space, or "
        f"that has log-probabilities, got {type(inside).__name__}. "
        f"{inside.likelihood_advice}"
    )


def save_policy(folder: Path | str, policy: nn.Module) -> Path:
    """Write a policy so that :func:`load_policy` returns an equal one.

    Stored are the class by name, the constructor's arguments, ``weights.pt`` under the
    names that the plain module has (compiled parts, parametrized and LoRA weights as
    what they amount to), instructions and the space. A class of the user's says its
    arguments in a dict ``config``, or in attributes of the parameters' names.

    Args:
        folder: is created if need be.
        policy: ours, LeRobot's, or the user's module.

    Raises:
        SchemaError: it could not be read back; says why, and nothing is written.
    """
    uncompiled(as_policy(policy)).to_folder(folder)
    return Path(folder)


def load_policy(folder: Path | str) -> VLAWrapperBase:
    """Read the policy in a folder, ours or LeRobot's, on the CPU, in evaluation mode.

    Note:
        Classes and functions are imported by the name that the folder holds, from what
        is installed. Weights are never unpickled as code.

    Raises:
        FileNotFoundError: the folder holds no complete policy.
        SchemaError: its class is not there, or its weights do not fit.
    """
    folder = Path(folder).expanduser()
    if is_steering_folder(folder):
        return as_policy(read_steering(folder, load_policy)).eval()
    if is_vlm_folder(folder):
        return read_vlm_policy(folder)
    if is_lerobot_folder(folder):
        return read_lerobot_folder(folder).eval()
    return as_policy(read_policy(folder)).eval()


def _size(module: nn.Module, name: str, given: int | None) -> int:
    own = declared(module, name, None)
    known = own if given is None else given
    if known is None:
        raise SchemaError(
            f"as_policy: expected {name} of {type(module).__name__}, got neither an "
            f"argument nor an attribute. Set self.{name} in its __init__, or call "
            f"as_policy(module, {name}=...)."
        )
    if own is not None and own != known:
        raise SchemaError(
            f"as_policy: expected {name}={own}, the attribute of "
            f"{type(module).__name__}, got {given}. Leave the argument out."
        )
    return known
