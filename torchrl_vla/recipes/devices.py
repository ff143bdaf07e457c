"""Devices of policies and environments."""

from __future__ import annotations

import torch
from torchrl.envs import DeviceCastTransform, EnvBase, TransformedEnv

from torchrl_vla.envs.tensor_environments import simulates_on_any_device
from torchrl_vla.errors import SettingsError


def parse_device(caller: str, name: str) -> torch.device:
    """Return a device by name, or say why there is none.

    Args:
        caller: opens the error message.
        name: e.g. ``"cuda:0"``.

    Raises:
        SettingsError: PyTorch knows no such device, or this machine has none.

    Examples:
        >>> parse_device("train", "cpu")
        device(type='cpu')
    """
    try:
        device = torch.device(name)
        torch.zeros((), device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SettingsError(
            f"{caller}: expected a device of this machine, such as cpu or cuda:0, got "
            f"{name!r}: {reason}"
        ) from error
    return device


def on_device(env: EnvBase, device: str | None) -> EnvBase:
    """Let an environment read and write tensors of a policy's device.

    Args:
        env: keeps its own device; the tabletop moves there, as it simulates and
            renders with tensor operations.
        device: of the policy; None or the environment's own = nothing changes.
    """
    own = torch.device("cpu") if env.device is None else env.device
    if device is None or parse_device("on_device", device) == own:
        return env
    if simulates_on_any_device(env):
        return env.to(device)
    cast = DeviceCastTransform(torch.device(device), orig_device=own)
    return TransformedEnv(env, cast)
