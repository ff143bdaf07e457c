"""Policies that need no training: the scripted expert and random actions."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase

from torchrl_vla.envs.known_environments import ExpertEnvironmentName
from torchrl_vla.errors import SettingsError
from torchrl_vla.rollout import RandomActions
from torchrl_vla.schema import OBSERVATION_NEEDED_KEY

#: Their names, which ``--policy`` takes.
BuiltinPolicyName = Literal["random", "scripted"]


def is_builtin_policy(source: str) -> bool:
    """Return whether a policy's name is one of these; a folder is then ``./random``."""
    return source in get_args(BuiltinPolicyName)


def make_builtin_policy(
    source: BuiltinPolicyName | str, env: EnvBase, **options: Any
) -> TensorDictModuleBase:
    """Make a policy that needs no training.

    Args:
        source: ``"random"``: :class:`~torchrl_vla.rollout.RandomActions`, for every
            environment; ``"scripted"``: the environment's own expert, without noise.
        env: where it acts.
        options: of policies with a chunk or weights; those that are set are refused.

    Raises:
        SettingsError: an option would have no effect, or there is no expert.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if given:
        flags = ", ".join("--" + name.replace("_", "-") for name in given)
        raise SettingsError(
            f"evaluate: expected no {sorted(given)} ({flags}) for "
            f"{source!r}, got {given}. It has no chunk, no weights and no conventions "
            "of its own: leave them out."
        )
    if source == "random":
        spec = env.full_action_spec[env.action_key]
        return _WithoutImages(RandomActions(spec, env.action_key))
    return _WithoutImages(make_expert("evaluate", env))


def make_expert(
    caller: str, env: EnvBase, *, noise: float | None = None, seed: int = 0
) -> TensorDictModuleBase:
    """Make the scripted expert of an environment.

    Args:
        caller: opens the error messages.
        env: with a method ``make_expert(seed=...)``.

    Keyword Args:
        noise: on the executed action; None = the expert's own default.
        seed: of the noise.

    Raises:
        SettingsError: the environment has no expert, or one that takes neither.
        ValueError: one of its tasks has none.
    """
    maker = getattr(env, "make_expert", None)
    if maker is None:
        raise SettingsError(
            f"{caller}: expected an environment with a scripted expert at --env, got "
            f"{type(env).__name__}, which has none. Use "
            f"{', '.join(get_args(ExpertEnvironmentName))}, or your own with a method "
            "make_expert(seed=...)."
        )
    options = {} if noise is None else {"noise": noise}
    try:
        return maker(**options, seed=seed)
    except TypeError as error:
        raise SettingsError(
            f"{caller}: expected {type(env).__name__}.make_expert to take "
            f"{[*options, 'seed']} by name, got {error}. Declare them, or leave "
            "--noise out."
        ) from error


class _WithoutImages(TensorDictModuleBase):
    """Say at every step that no image is read: rendering on demand renders none.

    **Reads** what the policy reads; **writes** what it writes, and
    ``observation_needed`` bool ``[*B, 1]``.

    Args:
        policy: reads no image.
    """

    def __init__(self, policy: TensorDictModuleBase) -> None:
        super().__init__()
        self.policy = policy
        self.in_keys = policy.in_keys
        self.out_keys = [*policy.out_keys, OBSERVATION_NEEDED_KEY]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Act, and say so."""
        tensordict = self.policy(tensordict)
        needed = torch.zeros(
            (*tensordict.batch_size, 1), dtype=torch.bool, device=tensordict.device
        )
        return tensordict.set(OBSERVATION_NEEDED_KEY, needed)
