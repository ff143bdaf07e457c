"""Base class of everything that writes one action per control step."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, cast

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import Compose, Transform
from typing_extensions import Self

from torchrl_vla.execution.chunk_cache import Outputs
from torchrl_vla.execution.executor_keys import ExecutorKeys
from torchrl_vla.execution.skip_waiting import SkipWaiting
from torchrl_vla.execution.stream_watch import StreamWatch
from torchrl_vla.schema import (
    IS_WAITING_KEY,
    OBSERVATION_NEEDED_KEY,
    ExecutionError,
    MissingKeyError,
    check_tensordict,
)


class Executor(TensorDictModuleBase, ABC):
    """Write one action per control step, from a plan that it keeps (abstract).

    One executor serves one stream of steps, every step of an episode through it. When a
    tensordict shows that another stream used it in between, it raises rather than act
    on a plan for something else; when the tensordict carries an action that this
    executor did not write (a collector's random frames), every environment is planned
    for again. A loop that makes a fresh tensordict at each step does not show whose
    step it is: one robot needs nothing more, of several each is named with
    :meth:`for_stream`. An unnamed executor raises where two show themselves.

    Everything that a subclass remembers is in ``_state``, which has ``batch_size`` and
    ``serials`` (int64 ``[*B, 1]``, what it wrote at ``decision_index``). A move, a copy
    and :meth:`reset` drop it; to plan again is always right.

    **Reads** ``is_init`` bool ``[*B, 1]``, True = first step of an episode (TorchRL's
    ``InitTracker`` writes it); ``decision_index`` as it was written on the step before,
    and ``action``, if they are there.

    **Writes** ``action`` ``[*B, A]``; ``is_decision`` bool ``[*B, 1]``, True on the
    first step of a chunk's execution; ``decision_index`` int64 ``[*B, 1]``, number of
    the decision in execution, unique in the process; ``observation_needed`` bool ``[*B,
    1]``, False = the policy does not read the observation that this step produces.

    Args:
        keys: of what is read and written; None = ``ExecutorKeys()``.

    Raises:
        ArgumentTypeError: what it is called with is no tensordict.
        MissingKeyError: the tensordict has no ``is_init``, or environments have to wait
            and there is no :class:`SkipWaiting`.
        ExecutionError: the batch size changed in mid-episode, or the tensordict comes
            from another stream, or does not show from which.
    """

    #: What :meth:`for_stream` was called with; None = the stream was not named.
    stream: str | None = None
    _state: Any

    def __init__(self, keys: ExecutorKeys | None = None) -> None:
        super().__init__()
        self.keys = ExecutorKeys() if keys is None else keys
        self._state = None
        self._watch = StreamWatch()
        self._streams: dict[str, Executor] = {}

    @property
    def makes_wait(self) -> bool:
        """True = environments may wait, which takes :class:`SkipWaiting`."""
        return False

    def reset(self) -> None:
        """Drop every plan: the next step plans for all environments."""
        self._state = None
        self._watch = StreamWatch()

    def for_stream(self, name: str) -> Self:
        """Return the executor of one stream of steps, such as one of several robots.

        It shares the policy and has plans of its own. Its tensordicts need not carry
        anything from step to step. The same name returns the same executor.

        Args:
            name: of the stream.

        Examples:
            >>> from tensordict.nn import TensorDictModule
            >>> from torchrl_vla.execution import MultiStepActorWrapper
            >>> policy = TensorDictModule(lambda s: s, ["state"], ["action_chunk"])
            >>> executor = MultiStepActorWrapper(policy)
            >>> left = executor.for_stream("left")
            >>> left is executor.for_stream("left"), left.policy is policy
            (True, True)
        """
        if name not in self._streams:
            self._streams[name] = self._make_stream(name)
        return cast(Self, self._streams[name])

    def _make_stream(self, name: str) -> Executor:
        made = copy.copy(self)  # without plans
        made.stream, made._watch, made._streams = name, StreamWatch(), {}
        return made

    def make_environment_transform(self) -> Compose:
        """Return the transforms that its environment needs, those of the policy first.

        ``TransformedEnv(env, executor.make_environment_transform())`` gives a policy
        its history, where it reads one, and skips environments that wait.
        """
        transforms = self._policy_transforms()
        if self.makes_wait and not any(isinstance(t, SkipWaiting) for t in transforms):
            transforms.append(SkipWaiting())
        return Compose(*transforms)

    def _policy_transforms(self) -> list[Transform]:
        return []

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the next action; call the policy where it is due."""
        check_tensordict(self._name, tensordict)
        if self.makes_wait:
            self._check_can_wait(tensordict)
        return self._serve(tensordict, self._envs_that_begin(tensordict))

    @abstractmethod
    def _serve(self, tensordict: TensorDictBase, begins: Tensor) -> TensorDictBase:
        """Write this step's action.

        Args:
            tensordict: ``[*B]``.
            begins: bool ``[*B]``, the environments that need a new plan; all of them
                where ``_state`` is None.
        """

    def _envs_that_begin(self, tensordict: TensorDictBase) -> Tensor:
        """Return the environments without a valid plan, bool ``[*B]``."""
        is_init = tensordict.get(self.keys.is_init, None)
        if is_init is None:
            raise MissingKeyError(
                f"{self._name}: expected a bool [*B, 1] at {self.keys.is_init!r}, "
                f"got only {sorted(map(str, tensordict.keys(True, True)))}. Append "
                "InitTracker() to the environment: it marks the first step of each "
                "episode. No action was sent."
            )
        batch_size = tensordict.batch_size
        if self._state is not None and self._state.batch_size != batch_size:
            self._check_new_batch(is_init, batch_size)
            self.reset()
        if self._state is not None:
            carried = tensordict.get(self.keys.decision_index, None)
            if carried is not None or tensordict.get(self.keys.action, None) is None:
                self._check_same_stream(tensordict, carried, is_init)
                return (
                    is_init.squeeze(-1)  # a view in a third of the time of reshape
                    if is_init.ndim > len(batch_size)
                    else is_init.reshape(batch_size)
                )
            self.reset()  # another one acted, such as a collector at random
        self._begin(tensordict)
        return torch.ones(batch_size, dtype=torch.bool, device=is_init.device)

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _check_can_wait(self, tensordict: TensorDictBase) -> None:
        if tensordict.numel() > 1 and tensordict.get(IS_WAITING_KEY, None) is None:
            raise MissingKeyError(
                f"{self._name}: expected a bool [*B, 1] at {IS_WAITING_KEY!r}, got "
                f"only {sorted(map(str, tensordict.keys(True, True)))}. Append "
                "SkipWaiting() to the environment, after its other transforms: without "
                "it environments that wait would be stepped. No action was sent."
            )

    def _check_new_batch(self, is_init: Tensor, batch_size: torch.Size) -> None:
        if not is_init.all():
            raise ExecutionError(
                f"{self._name}: expected batch size "
                f"{list(self._state.batch_size)}, that of the chunks in execution, got "
                f"{list(batch_size)} in mid-episode. Give each environment its own "
                f"{self._name}(policy), or call reset() to plan again. No "
                "action was sent."
            )

    def _check_same_stream(
        self, tensordict: TensorDictBase, carried: Tensor | None, is_init: Tensor
    ) -> None:
        ours = self._state.serials
        if carried is None:
            self._watch_fresh(tensordict, is_init)
            return
        if carried is ours or torch.equal(carried, ours):
            self._watch.forget()
            return
        foreign = (carried != ours) & ~is_init.reshape(ours.shape)
        if foreign.any():
            raise ExecutionError(
                f"{self._name}: expected the environment whose decisions "
                f"{ours[foreign].tolist()} are in execution, got one at "
                f"{carried[foreign].tolist()} (key {self.keys.decision_index!r}): "
                "another environment used this executor in between. Give each "
                f"environment its own {self._name}(policy), or call reset() to "
                "plan again. No action was sent."
            )
        self._begin(tensordict)  # all begin

    def _begin(self, tensordict: TensorDictBase) -> None:
        if self.stream is None and not torch.compiler.is_compiling():
            self._watch.begin(self._numbers(tensordict))

    def _watch_fresh(self, tensordict: TensorDictBase, is_init: Tensor) -> None:
        """Raise where steps that carry nothing show two streams."""
        if self.stream is not None or torch.compiler.is_compiling():
            return
        if is_init.all():
            self._begin(tensordict)
            return
        problem = self._watch.find_other_stream(self._numbers(tensordict))
        if problem is not None:
            raise ExecutionError(
                f"{self._name}: expected the steps of one stream, got a tensordict "
                f"without {self.keys.decision_index!r} {problem}: another robot used "
                "this executor in between. Give each its own, executor.for_stream("
                "name); or, for one robot, call executor.reset() where an episode "
                "begins. No action was sent."
            )

    def _numbers(self, tensordict: TensorDictBase) -> Tensor | None:
        """Return what the policy reads as one vector: floats, or else images."""
        values = [tensordict.get(key, None) for key in self.in_keys]
        found = [v for v in values if torch.is_tensor(v) and v.dtype != torch.bool]
        floats = [value for value in found if value.is_floating_point()]
        parts = [value.detach().reshape(-1).double() for value in floats or found]
        return torch.cat(parts) if parts else None

    def _write(
        self,
        tensordict: TensorDictBase,
        action: Tensor,
        decided: Tensor | None,
        outputs: Outputs,
        observation_needed: Tensor | None = None,
    ) -> TensorDictBase:
        """Write a step's action and marks; ``_state.serials`` number the decisions.

        Args:
            tensordict: ``[*B]``, written to.
            action: ``[*B, A]``.
            decided: bool ``[*B]``, where a new chunk begins; None = nowhere.
            outputs: of the chunk in execution.
            observation_needed: bool ``[*B]``, a tensor of its own; None = everywhere.
        """
        serials = self._state.serials
        tensordict.set(self.keys.action, action)
        tensordict.set(self.keys.is_decision, flag(decided, serials))
        if tensordict.get(self.keys.decision_index, None) is not serials:
            tensordict.set(self.keys.decision_index, serials)
        if observation_needed is None:
            tensordict.set(
                OBSERVATION_NEEDED_KEY, torch.ones_like(serials, dtype=torch.bool)
            )
        else:
            tensordict.set(OBSERVATION_NEEDED_KEY, observation_needed.unsqueeze(-1))
        for key, value in outputs.items():
            tensordict.set(key, value)
        return tensordict

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Executor:
        # Plans are no buffers (the environment decides their shape), so a move or cast
        # drops them.
        self.reset()
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_state": None, "_streams": {}}


def transforms_of(policy: TensorDictModuleBase) -> list[Transform]:
    """Return the environment transforms that a policy declares, if any."""
    make_transform = getattr(policy, "make_environment_transform", None)
    return [] if make_transform is None else list(make_transform())


def flag(envs: Tensor | None, like: Tensor) -> Tensor:
    """Return a new bool ``[*B, 1]``: ``envs`` may be a view of ``is_init``."""
    if envs is None:
        return torch.zeros_like(like, dtype=torch.bool)
    return envs.unsqueeze(-1).clone()
