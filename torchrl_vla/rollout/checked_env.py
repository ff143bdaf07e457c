"""Environment of others whose every step is checked."""

from __future__ import annotations

from typing import Literal, get_args

from tensordict import TensorDictBase
from torchrl.data import Bounded, TensorSpec
from torchrl.envs import EnvBase, TransformedEnv

from torchrl_vla._internal.constructor_signature import ConstructorSignature
from torchrl_vla.errors import MissingKeyError, SchemaError, SettingsError
from torchrl_vla.rollout.acting_border import check_environment, check_outcome
from torchrl_vla.schema import advise_on_action, check_action_of

Beyond = Literal["clip", "refuse", "pass"]


class CheckedEnv(TransformedEnv):
    """Check every action and every outcome of an environment, whoever steps it.

    ``evaluate`` and ``collect`` check the actions of any environment. An environment
    that is stepped by something else, such as ``env.rollout``, a collector of
    TorchRL's or your own loop, broadcasts, truncates or executes what it gets, unless
    it is one of ours or is wrapped in this one. ``--env module:function`` and
    :func:`checked_env` wrap those that do not check by themselves.

    A ``TransformedEnv`` without transforms of its own: wrap it in another one, outside
    ``MultiAction``, which then sends single actions through it.

    **Reads** the environment's actions; another float dtype is converted to that of the
    spec. **Writes** what the environment writes, ``success`` as bool.

    Args:
        env: the environment.

    Keyword Args:
        beyond: what becomes of actions beyond the bounds of the action spec:
            ``"clip"`` executes the nearest action within, as the environments here do
            (the tensordict keeps the policy's); ``"refuse"`` raises; ``"pass"`` leaves
            it to the environment.

    Raises:
        ArgumentTypeError: it is no environment of TorchRL's.
        SettingsError: there is no such ``beyond``.
        MissingKeyError: there is no action; at a step.
        SchemaError: an action has another shape or dtype than the spec, is not finite,
            or is refused; success is something else than bool, or 0 and 1; the reward
            is not finite; at a step. Of a bad action nothing is executed.

    Examples:
        >>> import torch
        >>> from torchrl.envs import PendulumEnv
        >>> env = CheckedEnv(PendulumEnv(), beyond="refuse")
        >>> env.step(env.reset().set("action", torch.tensor([torch.nan])))
        Traceback (most recent call last):
        ...
        torchrl_vla.errors.SchemaError: CheckedEnv: expected finite actions at ...
    """

    __signature__ = ConstructorSignature()

    #: True = every action is checked before it is executed.
    checks_actions = True

    def __init__(self, env: EnvBase, *, beyond: Beyond = "clip") -> None:
        check_environment("CheckedEnv", env)
        if beyond not in get_args(Beyond):
            raise SettingsError(
                f"CheckedEnv: expected beyond of {get_args(Beyond)}, got {beyond!r}."
            )
        super().__init__(env)
        self.beyond = beyond

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        missing = [k for k in self.action_keys if tensordict.get(k, None) is None]
        if missing:
            raise MissingKeyError(
                f"CheckedEnv: expected an action at {missing}, got only "
                f"{sorted(map(str, tensordict.keys(True, True)))}. "
                f"{advise_on_action(missing, tensordict)} No action was sent."
            )
        executed = tensordict.copy()  # the policy's own action stays as it is
        for key in self.action_keys:
            leaf = self.full_action_spec[key]
            check_action_of("CheckedEnv", key, leaf, executed)
            if isinstance(leaf, Bounded) and self.beyond != "pass":
                executed.set(key, self._within(key, leaf, executed))
        outcome = super()._step(executed)
        check_outcome("CheckedEnv", outcome)
        return outcome

    def _within(
        self, key: object, leaf: TensorSpec, step: TensorDictBase
    ) -> TensorDictBase:
        action = step.get(key)
        clipped = action.clamp(leaf.space.low, leaf.space.high)
        beyond = clipped != action
        if self.beyond == "refuse" and bool(beyond.any()):
            where = beyond.nonzero()[0].tolist()
            raise SchemaError(
                f"CheckedEnv: expected actions within {leaf.space.low.min():g} .. "
                f"{leaf.space.high.max():g} at {key!r}, as the action spec says, got "
                f"{action[tuple(where)].item():g} at index {where}. Look at the "
                "statistics that denormalize the policy's actions, or pass "
                "beyond='clip'. No action was sent."
            ).at_envs(beyond.reshape(step.numel(), -1).any(-1))
        return clipped


def checked_env(env: EnvBase) -> EnvBase:
    """Return an environment that checks its actions: itself, or a `CheckedEnv`.

    Args:
        env: of others, or one of ours, which check by themselves.

    Examples:
        >>> from torchrl.envs import PendulumEnv
        >>> from torchrl_vla.envs import TabletopEnv
        >>> type(checked_env(PendulumEnv())).__name__
        'CheckedEnv'
        >>> type(checked_env(TabletopEnv(1))).__name__
        'TabletopEnv'
    """
    check_environment("checked_env", env)
    return env if getattr(env, "checks_actions", False) else CheckedEnv(env)
