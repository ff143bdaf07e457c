"""Check that an environment was reset before it is stepped."""

from __future__ import annotations

from torchrl.envs import EnvBase

from torchrl_vla.schema import ExecutionError


def check_has_begun(env: EnvBase, has_begun: bool) -> None:
    """Refuse a step before the first reset.

    Args:
        env: opens the error message.
        has_begun: True = every environment that is stepped was reset.

    Raises:
        ExecutionError: one was not.
    """
    if not has_begun:
        name = type(env).__name__
        raise ExecutionError(
            f"{name}: expected an episode to step, got a step before the first reset. "
            "Call td = env.reset() and step from what it returns, or use env.rollout("
            "...). No action was sent."
        )
