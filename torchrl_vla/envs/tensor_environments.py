"""Environments that simulate with tensor operations, on any device."""

from __future__ import annotations

from torchrl.envs import EnvBase

from torchrl_vla.envs.tabletop import TabletopEnv


def simulates_on_any_device(env: EnvBase) -> bool:
    """Return True for an environment that ``env.to(device)`` takes there altogether.

    Examples:
        >>> simulates_on_any_device(TabletopEnv(1))
        True
    """
    return isinstance(env, TabletopEnv)
