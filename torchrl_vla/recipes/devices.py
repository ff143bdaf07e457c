"""Devices of policies and environments."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.envs import DeviceCastTransform, EnvBase, TransformedEnv

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
        env: keeps its own device; one that ``simulates_on_any_device``, as
            ``TabletopEnv`` does, moves there.
        device: of the policy; None or the environment's own = nothing changes.
    """
    own = torch.device("cpu") if env.device is None else env.device
    if device is None or parse_device("on_device", device) == own:
        return env
    if getattr(env, "simulates_on_any_device", False):
        return env.to(device)
    return _CastEnv(env, torch.device(device), own)


class _CastEnv(TransformedEnv):
    """An environment whose tensors are cast, also those that ``reset`` is given.

    ``DeviceCastTransform`` does not see the keywords of ``reset``, such as
    ``episode_seeds``.
    """

    def __init__(self, env: EnvBase, device: torch.device, own: torch.device) -> None:
        super().__init__(env, DeviceCastTransform(device, orig_device=own))

    def _reset(
        self, tensordict: TensorDictBase | None = None, **kwargs: Any
    ) -> TensorDictBase:
        own = self.base_env.device or "cpu"
        for name, value in kwargs.items():
            kwargs[name] = value.to(own) if torch.is_tensor(value) else value
        return super()._reset(tensordict, **kwargs)
