"""Policies to serve, from a checkpoint, and executors of policies that are served."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from tensordict import NonTensorStack, TensorDict
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase

from torchrl_vla import policies
from torchrl_vla._internal.named_objects import is_named_object
from torchrl_vla.errors import SettingsError
from torchrl_vla.evaluation import hash_folder, hash_weights
from torchrl_vla.execution import ChunkExecutor, MultiStepActorWrapper
from torchrl_vla.policies.module_policy import declared
from torchrl_vla.recipes.builtin_policies import is_builtin_policy
from torchrl_vla.recipes.checkpoints import load_executor, make_executor
from torchrl_vla.recipes.executor_options import DEFAULT_EXECUTOR, ExecutorOptions
from torchrl_vla.schema import (
    IMAGE_KEY,
    INSTRUCTION_KEY,
    STATE_KEY,
    RobotDatasetMetadata,
)
from torchrl_vla.serving import (
    ClientOptions,
    Link,
    RemotePolicy,
    ServerManifest,
    describe_policy,
    is_server_address,
)
from torchrl_vla.serving.observation_leaves import path_of
from torchrl_vla.spaces import ConvertedPolicy
from torchrl_vla.transforms import RobotConversion

#: Environment variable of a server's token: a command line is seen by others.
TOKEN_VARIABLE = "TORCHRL_VLA_TOKEN"
#: A simulation waits for its policy, so no answer of it is too old.
_SIMULATION = ClientOptions(request_timeout_s=600.0, max_age_s=None)


def load_served_policy(
    source: str, *, device: str | None = None, **options: Any
) -> tuple[TensorDictModuleBase, ServerManifest]:
    """Load a policy with all its processing, in robot space, and describe it.

    Args:
        source: a folder that ``torchrl-vla train`` or LeRobot wrote, a repo id of the
            Hugging Face Hub, or ``"module:function"``.

    Keyword Args:
        device: of the policy; None = the CPU, or where a LeRobot policy was trained.
        options: for LeRobot checkpoints, of :func:`load_executor`.

    Raises:
        SettingsError: the policy acts through an executor of its own kind, which a
            client does not have; a function takes no options.
        FileNotFoundError: there is no such checkpoint.
    """
    if is_named_object(source) and not Path(source).is_dir():
        if options:
            raise SettingsError(
                f"load_served_policy: expected no {sorted(options)} for {source!r}, a "
                "function, which returns the policy as it acts. Leave them out."
            )
        policy: TensorDictModuleBase = policies.make_from_factory(source).eval()
        policy = policy.to(device or "cpu")
        return policy, describe_policy(policy, revision=hash_weights(policy))
    is_ours = (Path(source).expanduser() / "policy").is_dir()
    if device is not None and not is_ours:
        options["device"] = device
    # Undeclared, so that nothing is compared here: each client is, when it comes.
    anyone = RobotDatasetMetadata("any robot")
    executor = load_executor(source, metadata=anyone, **options)
    match executor:
        case MultiStepActorWrapper():
            policy = executor.policy.eval()
        case _:
            raise SettingsError(
                "load_served_policy: expected a policy whose chunks any executor may "
                f"execute, got one for {type(executor).__name__}. Serve an ACT without "
                "temporal_ensemble_coeff, and average at the client."
            )
    policy = policy.to(device or "cpu") if is_ours else policy
    folder = Path(source).expanduser()
    revision = hash_folder(folder) if folder.is_dir() else hash_weights(policy)
    return policy, describe_policy(policy, revision=revision, name=source)


def example_observation(manifest: ServerManifest) -> TensorDict | None:
    """Return a black observation ``[1]`` to warm a policy up; None = sizes are unknown.

    Args:
        manifest: of the policy.
    """
    robot = manifest.metadata
    known = {path_of(key) for key in (IMAGE_KEY, STATE_KEY, INSTRUCTION_KEY)}
    if robot is None or not set(manifest.in_keys) <= known:
        return None
    made = TensorDict({}, [1])
    for path in manifest.in_keys:
        if path == path_of(INSTRUCTION_KEY):
            made.set(path, NonTensorStack("warm up"))
        elif path == path_of(STATE_KEY):
            if robot.state_dim is None:
                return None
            made.set(path, torch.zeros(1, robot.state_dim))
        else:
            if robot.image_sizes is None:
                return None
            places = manifest.image_paths.values()
            for place, size in zip(places, robot.image_sizes, strict=True):
                made.set(place, torch.zeros(1, *size, dtype=torch.uint8))
    return made


def load_remote_executor(
    address: str,
    env: EnvBase,
    *,
    replan_interval: int | None = None,
    convert: bool = False,
    execution: ExecutorOptions = DEFAULT_EXECUTOR,
    **options: Any,
) -> ChunkExecutor:
    """Make an executor of a server's policy for a simulated environment.

    The server compares its robot with the environment's. Its token is that of the
    environment variable ``TORCHRL_VLA_TOKEN``. A missing answer raises.

    Args:
        address: ``"ws://host:port"``.
        env: where the policy acts.

    Keyword Args:
        replan_interval: actions of a chunk to execute; None = all, or the policy's own.
        convert: True = convert between the conventions of both where they differ.
        execution: which executor.
        options: there are none; the server has them.

    Raises:
        SettingsError: there are options.
        SessionRefusedError: the policy is another robot's.
        ServingError: there is no server.
    """
    if options:
        raise SettingsError(
            f"load_any_executor: expected no {sorted(options)} for {address!r}: the "
            "policy's device, cameras and overrides are the server's. Pass them to "
            "`torchrl-vla serve`."
        )
    link = Link(address, token=os.environ.get(TOKEN_VARIABLE))
    with warnings.catch_warnings():
        if convert:  # that nothing is compared is what was asked for
            warnings.simplefilter("ignore", UserWarning)
        policy = RemotePolicy(
            link,
            robot=None if convert else env.metadata,
            instructions=env.instructions,
            options=_SIMULATION,
        )
    make = make_executor(policy, replan_interval, execution)
    acting: TensorDictModuleBase = policy
    trained = policy.training_metadata
    if convert and trained is not None:
        conversion = RobotConversion(env.metadata, trained)
        acting = ConvertedPolicy(policy, conversion) if conversion.changes else policy
    return make(acting)


def policy_digest(source: str, executor: TensorDictModuleBase) -> str:
    """Return what tells the weights of a policy from others.

    Args:
        source: of :func:`~torchrl_vla.recipes.own_policies.load_any_executor`.
        executor: that it returned.
    """
    folder = Path(source).expanduser()
    if folder.is_dir() and not is_builtin_policy(source):
        return hash_folder(folder)
    if is_server_address(source):
        return declared(executor.policy, "manifest", None).revision
    return hash_weights(executor)
