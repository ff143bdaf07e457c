"""Request of actions, checked before the policy is called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from tensordict import TensorDictBase

from torchrl_vla._internal.option_names import ActionMode
from torchrl_vla.errors import ActionProviderError
from torchrl_vla.schema import check_positive_int, check_tensordict


@dataclass(frozen=True, eq=False)
class ActionRequest:
    """Ask a provider for actions.

    Args:
        observation: what the policy reads, in the canonical schema, ``[*B]``.
        embodiment_tag: the robot that the actions are for; None = not said.
        action_horizon: actions that the chunk must have; None = any number. Nothing is
            cut or padded.
        mode: ``"select_action"`` = the next action, ``"predict_chunk"`` = the chunk.

    Raises:
        ArgumentTypeError: the observation is no tensordict.
        ActionProviderError: it is empty, or the mode is unknown.
        ValueError: the horizon is no positive number.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> ActionRequest(TensorDict(state=torch.zeros(3)), "aloha").mode
        'predict_chunk'
    """

    observation: TensorDictBase
    embodiment_tag: str | None = None
    action_horizon: int | None = None
    mode: ActionMode = "predict_chunk"

    def __post_init__(self) -> None:
        check_tensordict("ActionRequest", self.observation)
        if self.observation.is_empty():
            raise ActionProviderError(
                "ActionRequest: expected an observation with entries, got none. Fill "
                "it in the canonical schema, e.g. ('observation', 'state')."
            )
        if self.mode not in get_args(ActionMode):
            raise ActionProviderError(
                f"ActionRequest: expected a mode of {list(get_args(ActionMode))}, got "
                f"{self.mode!r}."
            )
        if self.action_horizon is not None:
            check_positive_int("ActionRequest", "action_horizon", self.action_horizon)
