"""Policy with an expert that takes over (DAgger), labeling who acted."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_vla.schema import (
    ACTION_KEY,
    EXPERT_ACTION_KEY,
    IS_DECISION_KEY,
    IS_INIT_KEY,
    IS_INTERVENTION_KEY,
    IS_LABELED_KEY,
    OBSERVATION_NEEDED_KEY,
    ExecutionError,
    MissingKeyError,
)

#: Returns where the expert takes over, bool ``[*B, 1]``.
Takeover = Callable[[TensorDictBase], Tensor]


class InterventionPolicy(TensorDictModuleBase):
    """Act with the policy's executor, or with an expert where it takes over.

    DAgger and its relatives collect with it: the states are the policy's, the targets
    the expert's. With a gate (:class:`EpisodeMixing`, or a callable) the gate decides;
    without one the expert does, by writing ``is_intervention`` beside its action
    (HG-DAgger: a person with a button).

    Note:
        When the expert lets go, the chunk in execution was planned for a state that no
        longer holds. The executor sees ``is_init`` True for that environment, and for
        no other, and plans again. The policy keeps no state: who acted on the step
        before is read from the tensordict, and where that is missing the executor plans
        again too.

    Give it to :func:`~torchrl_vla.data.collect`, which stores ``expert_action`` as the
    target with both flags; a frame without a label is no target there. Where the expert
    acts, the policy's other outputs (log-probabilities) are of an action that was not
    executed; ``select_decisions`` leaves those steps out.

    **Reads** what policy and expert read; ``is_init`` bool ``[*B, 1]``;
    ``is_intervention`` as it was written on the step before.

    **Writes** the policy's out_keys, with ``action`` ``[*B, A]`` the expert's where it
    acts, ``is_decision`` False there and ``observation_needed`` True everywhere (an
    expert looks at each step); ``expert_action`` ``[*B, A]``, the expert's where it is
    labeled, else the executed one; ``is_intervention`` bool ``[*B, 1]``, True = the
    expert acted; ``is_labeled`` bool ``[*B, 1]``, True = ``expert_action`` is the
    expert's.

    Args:
        policy: an executor, or any actor that writes ``action``.
        expert: writes ``action``, which it executes; ``expert_action``, if that is
            among its out_keys, is its intended action and the label. It reads nothing
            that the policy writes.

    Keyword Args:
        gate: takes the tensordict with the expert's answer and returns where the
            expert takes over. None = the expert writes ``is_intervention``.
        label_all: True = the expert labels every frame (DAgger); False = only those on
            which it acts (HG-DAgger).

    Raises:
        ValueError: the policy makes environments wait, or nothing decides who acts.
        MissingKeyError: the tensordict has no ``is_init``, or the expert did not write
            its answer.
        ExecutionError: the expert's action has another shape or is not finite where it
            counts, or the gate returns no bool ``[*B, 1]``.

    Examples:
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import TensorDictModule
        >>> def constant(value):
        ...     return TensorDictModule(
        ...         lambda x: torch.full_like(x, value), ["state"], ["action"]
        ...     )
        >>> actor = InterventionPolicy(
        ...     constant(0.0),
        ...     constant(1.0),
        ...     gate=lambda td: td["state"] > 5,
        ...     label_all=False,
        ... )
        >>> step = TensorDict(
        ...     state=torch.tensor([[2.0], [7.0]]), is_init=torch.ones(2, 1).bool()
        ... )
        >>> actor(step.auto_batch_size_(1))["action"].flatten()
        tensor([0., 1.])
        >>> step["is_labeled"].flatten()
        tensor([False,  True])

    Source: S. Ross et al. (AISTATS 2011), DAgger; M. Kelly et al., arXiv:1810.02890,
    HG-DAgger.
    """

    def __init__(
        self,
        policy: TensorDictModuleBase,
        expert: TensorDictModuleBase,
        *,
        gate: Takeover | None = None,
        label_all: bool,
    ) -> None:
        super().__init__()
        if getattr(policy, "makes_wait", False):
            raise ValueError(
                "InterventionPolicy: expected a policy that makes no environment wait, "
                f"got a {type(policy).__name__} with align=True: an expert cannot act "
                "in an environment that is not stepped. Make it with align=False."
            )
        if gate is None and IS_INTERVENTION_KEY not in _keys(expert):
            raise ValueError(
                f"InterventionPolicy: expected {IS_INTERVENTION_KEY!r} among the "
                f"out_keys of {type(expert).__name__}, got {list(expert.out_keys)}. "
                "Pass gate=..., which says when the expert takes over."
            )
        self.policy = policy
        self.expert = expert
        self.gate = gate
        self.label_all = label_all
        self._label_key = ACTION_KEY
        if EXPERT_ACTION_KEY in _keys(expert):
            self._label_key = EXPERT_ACTION_KEY
        ours = [EXPERT_ACTION_KEY, IS_INTERVENTION_KEY, IS_LABELED_KEY]
        self.in_keys = list(
            dict.fromkeys([*policy.in_keys, *expert.in_keys, IS_INIT_KEY])
        )
        self.out_keys = [key for key in _keys(policy) if key not in ours] + ours
        self._hidden = [*self.out_keys, *_keys(expert)]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the action of the policy or the expert, and the flags."""
        is_init = tensordict.get(IS_INIT_KEY, None)
        if is_init is None:
            raise MissingKeyError(
                f"InterventionPolicy: expected a bool [*B, 1] at {IS_INIT_KEY!r}, got "
                f"only {sorted(map(str, tensordict.keys(True, True)))}. Append "
                "InitTracker() to the environment. No action was sent."
            )
        answer = self.expert(tensordict.exclude(*self._hidden))
        acts = self._who_acts(answer, is_init)
        before = tensordict.get(IS_INTERVENTION_KEY, None)
        lets_go = ~acts if before is None else before & ~acts
        planned = self.policy(tensordict.copy().set(IS_INIT_KEY, is_init | lets_go))
        tensordict.update(planned.select(*self.policy.out_keys))

        proposed = tensordict.get(ACTION_KEY)
        labeled = torch.ones_like(acts) if self.label_all else acts
        action = self._read(answer, ACTION_KEY, acts, proposed)
        action = torch.where(acts, action, proposed)
        label = self._read(answer, self._label_key, labeled, proposed)
        tensordict.set(ACTION_KEY, action)
        tensordict.set(EXPERT_ACTION_KEY, torch.where(labeled, label, action))
        tensordict.set(IS_INTERVENTION_KEY, acts)
        tensordict.set(IS_LABELED_KEY, labeled)
        if (is_decision := tensordict.get(IS_DECISION_KEY, None)) is not None:
            tensordict.set(IS_DECISION_KEY, is_decision & ~acts)
        if (
            observation_needed := tensordict.get(OBSERVATION_NEEDED_KEY, None)
        ) is not None:
            tensordict.set(OBSERVATION_NEEDED_KEY, torch.ones_like(observation_needed))
        return tensordict

    def _who_acts(self, answer: TensorDictBase, is_init: Tensor) -> Tensor:
        """Return where the expert takes over, bool ``[*B, 1]``."""
        if self.gate is not None:
            acts, source = self.gate(answer), "the gate"
        else:
            acts, source = answer.get(IS_INTERVENTION_KEY, None), "the expert"
        if acts is None or acts.dtype != torch.bool or acts.shape != is_init.shape:
            got = "none" if acts is None else f"{acts.dtype} {list(acts.shape)}"
            raise ExecutionError(
                f"InterventionPolicy: expected bool {list(is_init.shape)} from "
                f"{source}, True = the expert acts, got {got}. No action was sent."
            )
        return acts.clone()

    def _read(
        self, answer: TensorDictBase, key: NestedKey, envs: Tensor, like: Tensor
    ) -> Tensor:
        """Return an action of the expert, checked where ``envs`` is True."""
        value = answer.get(key, None)
        if value is None:
            raise MissingKeyError(
                f"InterventionPolicy: expected {type(self.expert).__name__} to write "
                f"{key!r}, got {sorted(map(str, answer.keys(True, True)))}. No action "
                "was sent."
            )
        if value.shape != like.shape:
            raise ExecutionError(
                f"InterventionPolicy: expected {list(like.shape)} at {key!r} of the "
                f"expert, the shape of the policy's action, got {list(value.shape)}. "
                "No action was sent."
            )
        if not (value.isfinite() | ~envs).all():
            raise ExecutionError(
                f"InterventionPolicy: expected finite numbers at {key!r} where the "
                "expert acts or labels, got others. No action was sent."
            )
        return value.to(like.dtype)

    def extra_repr(self) -> str:
        """Show what decides and what is labeled."""
        gate = "the expert's own" if self.gate is None else self.gate
        return f"gate={gate}, label_all={self.label_all}"


def _keys(module: TensorDictModuleBase) -> list[NestedKey]:
    return [unravel_key(key) for key in module.out_keys]
