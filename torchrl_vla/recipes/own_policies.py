"""Policies of any origin: checkpoints, the user's own functions, built-in ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase

from torchrl_vla import policies
from torchrl_vla._internal.named_objects import is_named_object
from torchrl_vla.errors import SettingsError
from torchrl_vla.recipes.builtin_policies import (
    is_builtin_policy,
    make_builtin_policy,
)
from torchrl_vla.recipes.checkpoints import load_executor, make_executor
from torchrl_vla.recipes.dataset_opening import Demonstrations
from torchrl_vla.recipes.executor_options import DEFAULT_EXECUTOR, ExecutorOptions
from torchrl_vla.recipes.served_policies import load_remote_executor
from torchrl_vla.serving import is_server_address
from torchrl_vla.spaces import ConvertedPolicy


def make_own_policy(source: str, dataset: Demonstrations) -> TensorDictModuleBase:
    """Make the untrained policy of a user's function for a dataset.

    Args:
        source: ``"module:function"``; called with those of ``metadata`` and
            ``instructions`` that it declares by name.
        dataset: gives both.
    """
    return policies.make_from_factory(
        source, metadata=dataset.metadata, instructions=dataset.instructions
    )


def runs_on_device_of_environment(source: str) -> bool:
    """Return whether a policy reads tensors on its own device only.

    LeRobot's policies move what they read; ours and the user's do not.
    """
    if is_builtin_policy(source):
        return False
    folder = Path(source).expanduser()
    return is_named_object(source) or (folder / "policy").is_dir()


def describe_conversion(executor: TensorDictModuleBase) -> str:
    """Return what the executor of :func:`load_executor` converts, line by line."""
    match executor.policy:
        case ConvertedPolicy(conversion=conversion):
            lines = "\n  - ".join(conversion.changes)
            return f"converted for the policy, and its actions back:\n  - {lines}"
    return "nothing to convert: both sides declare the same conventions"


def load_any_executor(
    source: str,
    env: EnvBase,
    *,
    replan_interval: int | None = None,
    device: str | None = None,
    execution: ExecutorOptions = DEFAULT_EXECUTOR,
    **options: Any,
) -> TensorDictModuleBase:
    """Load a checkpoint, or make the policy of a user's function, as an executor.

    Args:
        source: of :func:`load_executor`; ``"module:function"``: a policy in robot
            space that is evaluated as the function makes it; ``"ws://host:port"``, a
            server's, see :func:`load_remote_executor`; or ``"random"`` and
            ``"scripted"``, which need no executor.
        env: where the policy acts.

    Keyword Args:
        replan_interval: actions of a chunk to execute; None = all, or LeRobot's
            ``n_action_steps``.
        device: of the policy; None = the CPU, or where a LeRobot policy was trained.
        execution: which executor.
        options: of :func:`load_executor`; a function takes none, a server ``convert``.

    Raises:
        SettingsError: there are options for a function, a server or a built-in policy,
            which would have no effect; or the environment has no scripted expert.
    """
    if is_server_address(source):
        if device is not None:
            options["device"] = device
        return load_remote_executor(
            source,
            env,
            replan_interval=replan_interval,
            execution=execution,
            **options,
        )
    if is_builtin_policy(source):
        is_plain = execution == DEFAULT_EXECUTOR
        chunked = {"replan_interval": replan_interval, "device": device}
        chunked["executor"] = None if is_plain else execution.executor
        return make_builtin_policy(source, env, **chunked, **options)
    if is_named_object(source) and not Path(source).is_dir():
        if options:
            raise SettingsError(
                f"load_any_executor: expected no {sorted(options)} for {source!r}, "
                f"got {options}. The function returns the policy as it acts: convert "
                "there, with ConvertedPolicy(policy, metadata.conversion_to(...))."
            )
        policy = policies.make_from_factory(
            source, metadata=env.metadata, instructions=env.instructions
        )
        policy = policy.eval().to(device or "cpu")
        return make_executor(policy, replan_interval, execution)(policy)
    is_moved = device is not None and runs_on_device_of_environment(source)
    if device is not None and not is_moved:
        options["device"] = device
    executor = load_executor(
        source,
        metadata=env.metadata,
        instructions=env.instructions,
        replan_interval=replan_interval,
        execution=execution,
        **options,
    )
    return executor.to(device) if is_moved else executor
