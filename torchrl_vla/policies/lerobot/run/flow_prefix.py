"""What a flow policy of LeRobot's makes of an observation, once per decision."""

from __future__ import annotations

import inspect
from types import MethodType
from typing import Any

import torch
from torch import Tensor


class FlowPrefix:
    """An encoded observation, from which each step of the flow goes on.

    It holds the cache of keys and values of images, text and state, for all rows, as
    LeRobot's model hands it to its own ``denoise_step``. Time is counted as LeRobot
    does, from 1 (noise) to 0 (data), the velocity as we do: ``data - noise``.

    Args:
        model: the policy's ``model``.
        arguments: of its ``denoise_step``, all but where and when the flow is.
    """

    def __init__(self, model: Any, arguments: dict[str, Any]) -> None:
        self._model, self._arguments = model, arguments

    def velocity(self, x: Tensor, time: Tensor) -> Tensor:
        """Return ``data - noise`` as expected at ``x``, ``[N, H, D]``.

        Args:
            x: where the flow is, padded to the model's size ``D``.
            time: LeRobot's, ``[N]``.
        """
        return -self._model.denoise_step(x_t=x, timestep=time, **self._arguments)


def encode_prefix(policy: Any, frame: dict[str, Any], num_rows: int) -> FlowPrefix:
    """Encode a batch of observations as the policy does before its first step.

    LeRobot's own ``predict_action_chunk`` runs, with a ``denoise_step`` that notes what
    it is given and moves nothing. So whatever a policy does with images, text and state
    is done here, in any version. The surprise: unlike there, gradients are recorded,
    also where the policy is not frozen before its action expert.

    Args:
        policy: LeRobot's, with a ``model`` that flows.
        frame: preprocessed observations, on the policy's device.
        num_rows: ``N``.
    """
    noted: dict[str, Any] = {}

    def note(x_t: Tensor, timestep: Tensor, **arguments: Any) -> Tensor:
        noted.update(arguments)
        return torch.zeros_like(x_t)

    model, config = policy.model, policy.config
    device = next(model.parameters()).device
    size = (num_rows, config.chunk_size, config.max_action_dim)
    stand_in = _StandIn(
        policy,
        eval=lambda: None,  # it would switch the policy's modules
        model=_StandIn(
            model,
            denoise_step=note,
            rtc_processor=None,
            _rtc_enabled=lambda: False,
        ),
    )
    stand_in.predict_action_chunk(frame, noise=torch.zeros(size, device=device))
    return FlowPrefix(model, noted)


class _StandIn:
    """Run an object's methods with some of its attributes replaced.

    What they set is set here and not on the object, and their decorators, which turn
    gradients off, are left out.
    """

    def __init__(self, original: Any, **replaced: Any) -> None:
        self.__dict__.update(replaced, _original=original)

    def __getattr__(self, name: str) -> Any:
        original = self.__dict__["_original"]
        method = inspect.getattr_static(type(original), name, None)
        if inspect.isfunction(method):
            return MethodType(inspect.unwrap(method), self)
        return getattr(original, name)
