"""Loading of a provider's policy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from tensordict.nn import TensorDictModuleBase

from torchrl_vla._internal.named_objects import import_named, is_named_object
from torchrl_vla.errors import ActionProviderError
from torchrl_vla.policies import is_lerobot_folder, load_lerobot_policy
from torchrl_vla.policies.lerobot import KINDS
from torchrl_vla.policies.module_policy import declared
from torchrl_vla.recipes.checkpoints import load_checkpoint

PolicyLoader = Callable[[], TensorDictModuleBase]


def check_policy_type(policy_type: str) -> None:
    """Refuse a type of LeRobot's that is not supported.

    Raises:
        ActionProviderError: lists the supported ones.

    Examples:
        >>> check_policy_type("act")
    """
    if policy_type not in KINDS:
        raise ActionProviderError(
            f"ActionProvider: expected a policy_type of {sorted(KINDS)}, got "
            f"{policy_type!r}."
        )


def load_robot_policy(
    source: Path | str, policy_type: str | None, device: str
) -> TensorDictModuleBase:
    """Load a policy of robot space.

    Args:
        source: a folder of ours or LeRobot's, a repo id, or ``"module:function"``.
        policy_type: of LeRobot's that it must have; None = any.
        device: for a LeRobot policy, which moves what it reads.

    Raises:
        ActionProviderError: it is of another type.
    """
    folder = Path(source).expanduser()
    if is_named_object(str(source)) and not folder.is_dir():
        make = import_named("ActionProvider", str(source))
        policy = cast(TensorDictModuleBase, make())
    elif folder.is_dir() and not is_lerobot_folder(folder):
        policy, space = load_checkpoint(folder)
        policy = policy if space is None else space.robot_policy(policy)
    else:
        policy = load_lerobot_policy(source, device=device)
    if policy_type is not None:
        config = declared(policy, "config", None)
        found = None if config is None else config.type
        if found != policy_type:
            raise ActionProviderError(
                f"ActionProvider: expected a policy of type {policy_type!r} at "
                f"{str(source)!r}, got {found!r}. Correct the path or the type."
            )
    return policy


def prepare(policy: TensorDictModuleBase, device: str) -> TensorDictModuleBase:
    """Move a policy, set it to evaluation, freeze it and reset it, where it can be."""
    for name, argument in (
        ("to", (torch.device(device),)),
        ("eval", ()),
        ("requires_grad_", (False,)),
        ("reset", ()),
    ):
        method = declared(policy, name, None)
        if method is not None:
            method(*argument)
    return policy
