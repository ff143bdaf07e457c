"""Check of what a function is given to act: a policy and its environment."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import nn
from torchrl.envs import EnvBase

from torchrl_vla.errors import ArgumentTypeError, SchemaError, SettingsError
from torchrl_vla.rollout.seeds import seed_purpose
from torchrl_vla.schema import SUCCESS_KEY, read_flags


def check_environment(caller: str, env: EnvBase) -> None:
    """Refuse what is no environment of TorchRL's.

    Args:
        caller: opens the error message.
        env: what was passed for it.

    Raises:
        ArgumentTypeError: it is something else.
    """
    if not isinstance(env, EnvBase):
        raise ArgumentTypeError(
            f"{caller}: expected an environment of TorchRL's (EnvBase) at argument "
            f"'env', got {_kind(env)}. Wrap one of gymnasium's: GymnasiumEnv(make_env, "
            "SimulatorInterface(observe, success_key=...), instructions=...)."
        )


def check_acting(caller: str, env: EnvBase, policy: TensorDictModuleBase) -> None:
    """Refuse a policy that cannot act in an environment, before its first step.

    Args:
        caller: opens the error message.
        env: where it acts.
        policy: observation to action.

    Raises:
        ArgumentTypeError: one of the two is of another kind; says how to wrap it.
    """
    check_environment(caller, env)
    try:
        policy.in_keys, policy.out_keys, policy.modules  # noqa: B018 (EAFP)
    except AttributeError:
        wrapped = "TensorDictModule(function, in_keys=[...], out_keys=['action'])"
        if isinstance(policy, nn.Module):
            wrapped = (
                "MultiStepActorWrapper(as_policy(module)), if it returns chunks, or "
                "TensorDictModule(module, in_keys=[...], out_keys=['action'])"
            )
        raise ArgumentTypeError(
            f"{caller}: expected a policy that reads and writes a tensordict, with "
            f"in_keys and out_keys, at argument 'policy', got {_kind(policy)}. Wrap "
            f"it: {wrapped}."
        ) from None


def check_device(caller: str, policy: nn.Module, env: EnvBase) -> None:
    """Refuse a policy on another device than the observations that it reads.

    Args:
        caller: opens the error message.
        policy: whose weights are looked at; one without weights fits every device.
        env: that gives the observations.

    Raises:
        SettingsError: the devices differ.
    """
    weight = next(policy.parameters(), None)
    own = torch.device("cpu") if env.device is None else env.device
    if weight is not None and weight.device.type != own.type:
        raise SettingsError(
            f"{caller}: expected the policy on {str(own)!r}, where the environment "
            f"{type(env).__name__} writes its observations, got one on "
            f"{str(weight.device)!r}. Move it with policy.to({str(own)!r}), or wrap "
            "the environment: TransformedEnv(env, DeviceCastTransform("
            f"{str(weight.device)!r}))."
        )


def check_outcome(caller: str, outcome: TensorDictBase) -> None:
    """Refuse a success that is no bool, and a reward that is not finite.

    Args:
        caller: opens the error message.
        outcome: of a step or reset, ``[*B]``; its success becomes bool.

    Raises:
        SchemaError: one of them is something else.
    """
    success = outcome.get(SUCCESS_KEY, None)
    if success is not None:
        outcome.set(SUCCESS_KEY, read_flags(caller, SUCCESS_KEY, success))
    reward = outcome.get("reward", None)
    if reward is not None and not reward.isfinite().all():
        bad = ~reward.isfinite()
        raise SchemaError(
            f"{caller}: expected finite rewards, got {reward[bad][0].item()}. The "
            "simulation diverged, or the reward is undefined."
        ).at_envs(bad.reshape(outcome.numel(), -1).any(-1))


def check_initial_states(caller: str, env: EnvBase, seeds: Sequence[int]) -> None:
    """Refuse evaluations with more episodes than there are initial states for them.

    The first states would come again, and a deterministic policy would be counted
    twice on each: an interval of 100 such episodes is that of 50.

    Args:
        caller: opens the error message.
        env: with ``official_episodes``, where its evaluations have a list of states:
            how many episodes begin from different ones.
        seeds: of the episodes.

    Raises:
        SettingsError: there are more episodes of the purpose ``"evaluation"``.
    """
    limit = getattr(env, "official_episodes", None)
    if limit is None:
        return
    purposes = [seed_purpose(seed) for seed in seeds]
    last = max((index for kind, index in purposes if kind == "evaluation"), default=-1)
    if last >= limit:
        raise SettingsError(
            f"{caller}: expected at most {limit} episodes, each from an official "
            f"initial state of its own, got episode {last}, which would repeat one. "
            f"Pass episodes={limit} (--episodes {limit}) or fewer. A policy that "
            "samples can run them once more, with another seed, as a second "
            "evaluation."
        )


def _kind(value: object) -> str:
    cls = value if isinstance(value, type) else type(value)
    prefix = "the class " if cls is value else ""
    return f"{prefix}{cls.__module__}.{cls.__qualname__}".replace("builtins.", "")
