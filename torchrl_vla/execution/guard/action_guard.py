"""Action guard: the last check between a policy or executor and a robot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import get_args

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_vla._internal.option_names import OnViolation
from torchrl_vla.execution.action_reference import MAKE_ABSOLUTE
from torchrl_vla.execution.guard.action_limits import StepLimit
from torchrl_vla.execution.guard.action_translator import EmbodimentActionTranslator
from torchrl_vla.execution.guard.embodiment_contract import EmbodimentContract
from torchrl_vla.execution.guard.guard_keys import GuardKeys
from torchrl_vla.execution.transparent_wrapper import PolicyWrapper
from torchrl_vla.schema import (
    ACTION_CHUNK_KEY,
    ACTION_KEY,
    ExecutionError,
    MissingKeyError,
    RobotDatasetMetadata,
    check_robot_space,
    instruction_texts,
    is_text,
)


class ActionGuard(PolicyWrapper):
    """Let only legal actions of a policy or executor pass to the robot.

    Checks that actions are finite, have the width (and, for a chunk, the horizon) of
    the embodiment, are within its limits and change by at most ``max_step`` per control
    step. It wraps a policy of chunks, an executor, or any policy of single actions, and
    can stand wherever that can: every other member is forwarded
    (:class:`PolicyWrapper`). What passes is the policy's own tensor, unchanged; one
    number is read back from the device.

    ``on_violation`` is one of

    - ``"refuse"``: raise, and leave the tensordict as it was;
    - ``"clip"``: move each number to the nearest legal one; raise where it is not
      finite or the shape is wrong;
    - ``"hold"``: repeat the last legal action in place of an illegal one, in that
      environment; raise where there is none yet, or the shape is wrong.

    Note:
        Around a policy of chunks the guard compares within each chunk only, since it
        cannot know which of the actions were executed: the first one is free (see
        ``GuardKeys.state``) and cannot be held. Around an executor it compares every
        executed action with the one before, and ``is_init`` starts it afresh per
        environment.

    **Reads** what the policy reads; around single actions, with ``max_step`` or
    ``"hold"``, ``is_init`` bool ``[*B, 1]``; what ``keys`` names.

    **Writes** what the policy writes, with legal actions; the translator's actions, if
    there is one.

    Args:
        policy: writes a chunk float ``[*B, H, A]`` or an action ``[*B, A]``, in robot
            space.
        contract: of the embodiment; None = the translator's.

    Keyword Args:
        on_violation: what to do with an illegal action.
        max_step: largest change per control step, per dimension or one for all, in the
            actions' units; None = no rate limit.
        translator: makes the robot's actions of the legal ones.
        keys: of what is read and written; None = ``GuardKeys()``.

    Raises:
        ValueError: contract and translator disagree, or both are missing; an unknown
            ``on_violation``; ``max_step`` is not positive, or of another width.
        SpaceError: the policy is of model space.
        MissingKeyError: the policy does not write the action's key; or a tensordict
            lacks ``is_init``, the tag or the state.
        ActionGuardError: an action is refused; lists why.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import TensorDictModule
        >>> policy = TensorDictModule(
        ...     lambda state: state.expand(4, 2), [("observation", "state")],
        ...     ["action_chunk"],
        ... )
        >>> arm = EmbodimentContract("arm", 2, action_low=(-1, -1), action_high=(1, 1))
        >>> td = TensorDict({"observation": {"state": torch.tensor([0.0, 3.0])}})
        >>> ActionGuard(policy, arm, on_violation="clip")(td)["action_chunk"][0]
        tensor([0., 1.])
        >>> ActionGuard(policy, arm)(td)
        Traceback (most recent call last):
        ...
        torchrl_vla.errors.ActionGuardError: EmbodimentContract 'arm': ...
    """

    def __init__(
        self,
        policy: TensorDictModuleBase,
        contract: EmbodimentContract | None = None,
        *,
        on_violation: OnViolation = "refuse",
        max_step: float | Sequence[float] | None = None,
        translator: EmbodimentActionTranslator | None = None,
        keys: GuardKeys | None = None,
    ) -> None:
        check_robot_space("ActionGuard", policy)
        super().__init__(policy)
        if contract is None and translator is not None:
            contract = translator.contract
        if contract is None or (translator and translator.contract != contract):
            raise ValueError(
                "ActionGuard: expected a contract, or a translator with the same "
                f"one, got contract={contract!r} and translator={translator!r}."
            )
        if on_violation not in get_args(OnViolation):
            raise ValueError(
                f"ActionGuard: expected on_violation of {list(get_args(OnViolation))}, "
                f"got {on_violation!r}."
            )
        self.contract = contract
        self.on_violation = on_violation
        self.step_limit = None
        if max_step is not None:
            self.step_limit = StepLimit(max_step, contract.action_dim)
        self.translator = translator
        self.guard_keys = GuardKeys() if keys is None else keys
        self._action_key = self._find_action_key()
        self._last: Tensor | None = None  # of single actions, [*B, 1, A]
        self._add_keys()
        self._set_sizes()

    @classmethod
    def from_metadata(
        cls,
        policy: TensorDictModuleBase,
        metadata: RobotDatasetMetadata,
        *,
        on_violation: OnViolation = "refuse",
        max_step: float | Sequence[float] | None = None,
        keys: GuardKeys | None = None,
    ) -> ActionGuard:
        """Guard a policy by what the metadata of a dataset or robot declare.

        Args:
            policy: see :class:`ActionGuard`, as for the other arguments.
            metadata: with ``action_dim``; limits are compared where they are declared.
            on_violation: ``"hold"`` is refused for actions that are deltas.
            max_step: largest change per control step; None = no rate limit.
            keys: of what is read and written; None = ``GuardKeys()``.

        Raises:
            MetadataError: the metadata do not declare ``action_dim``.
            ValueError: a delta is to be held, which would move the robot on.
        """
        if on_violation == "hold" and "delta" in (metadata.action_reference or ()):
            raise ValueError(
                "ActionGuard: expected on_violation 'refuse' or 'clip' for actions of "
                "reference 'delta', got 'hold': a delta that is repeated moves on. "
                f"{MAKE_ABSOLUTE}"
            )
        return cls(
            policy,
            EmbodimentContract.from_metadata(metadata),
            on_violation=on_violation,
            max_step=max_step,
            keys=keys,
        )

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Call the policy; write its outputs once the actions are legal."""
        answer = self.policy(tensordict.copy())
        raw = answer.get(self._action_key)
        self._check_tags(tensordict, raw)
        is_single = isinstance(raw, Tensor) and raw.ndim == tensordict.ndim + 1
        actions = raw.unsqueeze(-2) if is_single else raw
        self.contract.check_outside(actions, any_horizon=is_single)
        last, has_last = self._last_actions(tensordict, actions, is_single)
        legal = self._make_legal(actions, tensordict, last, has_last)
        sent = legal
        if self.translator is not None:
            sent = self.translator.translate_checked(legal)
        if sent is not actions:
            answer.set(self._action_key, sent.squeeze(-2) if is_single else sent)
        if self.guard_keys.raw is not None:
            answer.set(self.guard_keys.raw, raw)
        if is_single and self._is_stateful:
            self._last = legal.detach()
        return tensordict.update(answer.select(*self.out_keys))

    def reset(self) -> None:
        """Forget the last actions, and reset the policy where it can be."""
        self._last = None
        reset = getattr(self.policy, "reset", None)
        if reset is not None:
            reset()

    def _make_legal(
        self,
        actions: Tensor,
        tensordict: TensorDictBase,
        last: Tensor | None,
        has_last: Tensor | None,
    ) -> Tensor:
        """Return actions ``[*B, H, A]`` that may be sent, or refuse them."""
        before, comparable = last, has_last
        legal = self.contract.limits.legal(actions)
        if self.step_limit is not None:
            before, comparable = self._compared(tensordict, actions, last, has_last)
            legal = legal & self.step_limit.legal(actions, before, comparable)
        if legal.all().item():
            return actions
        if self.on_violation == "refuse":
            raise self._refusal(actions, legal)
        if self.on_violation == "hold":
            return self._hold(actions, (before, comparable), (last, has_last))
        if not actions.isfinite().all():
            raise self._refusal(actions, actions.isfinite())
        clipped = self.contract.limits.clip(actions)
        if self.step_limit is None:
            return clipped
        return self.step_limit.clip(clipped, before, comparable)

    def _hold(
        self,
        actions: Tensor,
        compared: tuple[Tensor | None, Tensor | None],
        last: tuple[Tensor | None, Tensor | None],
    ) -> Tensor:
        """Replace each illegal action by the legal one before it."""
        before, comparable = compared
        held, can_hold = last
        out: list[Tensor] = []
        for action in actions.unbind(-2):
            step = action.unsqueeze(-2)
            legal = self.contract.limits.legal(step)
            if self.step_limit is not None:
                legal = legal & self.step_limit.legal(step, before, comparable)
            passes = legal.all(-1).squeeze(-1)
            stuck = ~passes if can_hold is None else ~passes & ~can_hold
            if (held is None or can_hold is not None) and stuck.any():
                shown = legal | ~stuck[..., None, None]
                raise self._refusal(step, shown, "no legal action before it to hold")
            chosen = action
            if held is not None:
                chosen = torch.where(passes.unsqueeze(-1), action, held)
            out.append(chosen)
            before = held = chosen
            comparable = can_hold = None
        return torch.stack(out, -2)

    def _compared(
        self,
        tensordict: TensorDictBase,
        actions: Tensor,
        last: Tensor | None,
        has_last: Tensor | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return what the first actions are compared with, and where they are."""
        key = self.guard_keys.state
        if key is None:
            return last, has_last
        state = tensordict.get(key, None)
        wanted = (*actions.shape[:-2], actions.shape[-1])
        if state is None or state.shape != wanted:
            got = "none" if state is None else list(state.shape)
            raise MissingKeyError(
                f"ActionGuard: expected a position {list(wanted)} at {key!r}, got "
                f"{got}. Write it, or leave GuardKeys.state out. No action was sent."
            )
        if last is None or has_last is None:
            return state, None
        return torch.where(has_last.unsqueeze(-1), last, state), None

    def _last_actions(
        self, tensordict: TensorDictBase, actions: Tensor, is_single: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the actions ``[*B, A]`` that were sent last, and where there is one.

        ``(None, None)`` = nowhere.
        """
        if not is_single or not self._is_stateful:
            return None, None
        key = self.guard_keys.is_init
        is_init = tensordict.get(key, None)
        if is_init is None:
            raise MissingKeyError(
                f"ActionGuard: expected a bool [*B, 1] at {key!r}, got only "
                f"{sorted(map(str, tensordict.keys(True, True)))}. Append "
                "InitTracker() to the environment. No action was sent."
            )
        if self._last is None:
            return None, None
        if self._last.shape != actions.shape:
            if not is_init.all():
                raise ExecutionError(
                    "ActionGuard: expected actions of shape "
                    f"{list(self._last.squeeze(-2).shape)}, as on the step before, got "
                    f"{list(actions.squeeze(-2).shape)} in mid-episode. Give each "
                    "environment its own guard, or call reset(). No action was sent."
                )
            return None, None
        return self._last.squeeze(-2), ~is_init.reshape(tensordict.batch_size)

    @property
    def _is_stateful(self) -> bool:
        return self.step_limit is not None or self.on_violation == "hold"

    def _refusal(
        self, actions: Tensor, legal: Tensor, why: str | None = None
    ) -> Exception:
        within = self.contract.limits.legal(actions)
        found = list(self.contract.describe_illegal(actions, within | legal))
        fast = (~legal & within).nonzero().tolist()
        if fast and self.step_limit is not None:
            steps = self.step_limit.max_step.tolist()
            found.append(
                f"expected a change of at most max_step={steps} per step, got more at "
                f"(env index, step, dimension) {fast[:8]}"
            )
        expected = "a chunk within the contract"
        if why is not None:
            expected = f"actions within the contract, or one to hold; there is {why}"
        return self.contract.refusal(expected, found)

    def _check_tags(self, tensordict: TensorDictBase, chunk: Tensor) -> None:
        key = self.guard_keys.tag
        if key is None:
            return
        value = tensordict.get(key, None)
        if value is None or not is_text(value):
            raise MissingKeyError(
                f"ActionGuard: expected the embodiment tag as text at {key!r}, got "
                f"{value!r}. Write it, or leave GuardKeys.tag out. No action was sent."
            )
        others = set(instruction_texts(value)) - {self.contract.embodiment_tag}
        if others:
            self.contract.check(chunk, ", ".join(sorted(others)))

    def _find_action_key(self) -> NestedKey:
        wanted = self.guard_keys.action
        likely = [ACTION_CHUNK_KEY, ACTION_KEY] if wanted is None else [wanted]
        found = [key for key in likely if key in self.out_keys]
        if len(found) != 1:
            raise MissingKeyError(
                f"ActionGuard: expected a policy that writes one of {likely}, got "
                f"{type(self.policy).__name__} with out_keys {self.out_keys}. Name its "
                "key with keys=GuardKeys(action=...)."
            )
        return found[0]

    def _add_keys(self) -> None:
        keys = self.guard_keys
        added = [key for key in (keys.tag, keys.state) if key is not None]
        if self._is_stateful and self._action_key != ACTION_CHUNK_KEY:
            added.append(keys.is_init)
        self.in_keys = list(dict.fromkeys([*self.in_keys, *added]))
        if keys.raw is not None:
            self.out_keys = [*self.out_keys, keys.raw]

    def _set_sizes(self) -> None:
        """Set ``action_dim`` and ``chunk_size`` where the contracts declare them."""
        if self.translator is None:
            self.action_dim: int | None = self.contract.action_dim
            if self.contract.action_horizon is not None:
                self.chunk_size: int | None = self.contract.action_horizon
            return
        out = self.translator.out_contract
        self.action_dim = None if out is None else out.action_dim
        self.chunk_size = None if out is None else out.action_horizon

    def _apply(
        self, fn: Callable[[Tensor], Tensor], recurse: bool = True
    ) -> ActionGuard:
        self._last = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_last": None}

    def extra_repr(self) -> str:
        """Show the embodiment and what happens to illegal actions."""
        tag = self.contract.embodiment_tag
        return f"embodiment={tag!r}, on_violation={self.on_violation!r}"
